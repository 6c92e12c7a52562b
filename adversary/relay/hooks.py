"""Where addons act: messages that pass and are told, messages that are kept until an addon has spoken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from adversary.relay import frames as h2
from adversary.relay.addon import Addon, Forward
from adversary.relay.headers import ending
from adversary.relay.lane import ANSWER, ASK, Lane, Out
from adversary.relay.messages import compress, expand, prefixed, size_of
from adversary.relay.outflow import Outflow
from adversary.relay.passage import Books, Passage
from adversary.relay.stream import Stream, Turn, Way
from splitcore.telemetry.clock import now_ns
from splitcore.wire.glance import Glance

log = logging.getLogger(__name__)

MAX_CUT = 1024
"""streams that the relay ended itself, of which frames may still come"""
INTERNAL = 13
"""gRPC's code"""


class Hooks(Outflow):
    """`addon` gives the present one; `wake` is called when a held message has left bytes to write."""

    def __init__(self, addon: Callable[[], Addon], books: Books, wake: Callable[[], None]) -> None:
        super().__init__(books)
        self._addon, self._wake = addon, wake
        self._cut: dict[int, None] = {}

    def _messages(self, lane: Lane, stream: Stream, way: Way, payload: memoryview) -> Out | None:
        """What of it goes on; None: all of it, as it is."""
        reader, call = way.reader, stream.call
        assert reader is not None and call is not None
        addon = self._addon()
        wanted = call.answering if lane.index == ANSWER else self._keeps(addon)
        seen = stream.watched.got if lane.index == ASK else stream.watched.put
        if not wanted:
            if lane.index == ASK and call.at_a_glance(addon) and reader.begins(payload, self._books.glance):
                return None
            if (message := reader.skim(payload)) is not None:
                if message:
                    seen(size_of(message))
                    self._tap(lane, stream, message)
                return None
        same = reader.between or not reader.kept
        pieces: Out = []
        for piece, message in reader.feed(payload, lambda size: wanted and self._catches(stream, size)):
            if message is None:
                if piece is None:
                    same = False
                else:
                    pieces.append(piece)
                continue
            seen(size_of(message))
            if not reader.kept or isinstance(message, Glance):
                self._tap(lane, stream, message)
                if piece is not None:
                    pieces.append(piece)
            else:
                content, unchanged = self._kept(lane, stream, way, message)
                same = same and unchanged
                if content is not None:
                    pieces.append(content)
        if way.ended and reader.keeping:
            pieces.append(reader.let_go())
        return None if same else pieces

    def _keeps(self, addon: Addon) -> bool:
        """Whether requests wait until the addon has spoken; where this relay traces, to be given another parent."""
        return getattr(addon, "holds", True) or self._books.telemetry.tracer is not None

    def _tap(self, lane: Lane, stream: Stream, message: bytes | Glance) -> None:
        """A message that passes while it is looked at: a frame before it does, since the books come first."""
        call = stream.call
        assert call is not None
        if lane.index == ANSWER:
            reader = stream.ways[ANSWER].reader
            self._later(call, call.passed, (message, reader is not None and reader.compressed))
            return
        plain = message if isinstance(message, Glance) else self._plain(lane, stream, message)
        addon = self._addon()
        passage = call.frame_of(plain, addon)
        if passage is None:
            return
        assert plain is not None
        if self._keeps(addon):
            # it had begun to pass when this addon came, or there was no room to keep it
            passage.unasked("passed" if self._books.room > size_of(message) else "full")
        elif not (passage.glanced or isinstance(plain, Glance) or isinstance(passage.asked(plain), Forward)):
            raise TypeError(f"expected the addon {type(addon).__name__} to answer at once, as it holds nothing")
        call.leaves(passage)

    def _plain(self, lane: Lane, stream: Stream, message: bytes) -> bytes | None:
        reader, call = stream.ways[lane.index].reader, stream.call
        assert reader is not None and call is not None
        return expand(message, call.encoding(lane.index == ANSWER)) if reader.compressed else message

    def _kept(self, lane: Lane, stream: Stream, way: Way, message: bytes) -> tuple[bytes | None, bool]:
        """(what goes on in its place now, or None; whether that is the message as it came)."""
        call, reader = stream.call, way.reader
        assert call is not None and reader is not None
        compressed, size = reader.compressed, len(message)
        plain = self._plain(lane, stream, message)
        call.settle()
        passage = call.frame_of(plain, self._addon()) if lane.index == ASK else call.answer(plain, now_ns())
        if passage is None or plain is None:
            self._free(stream, size)
            return b"".join(prefixed(message, compressed)), True
        decision = passage.asked(plain) if lane.index == ASK else self._answered(passage, plain)
        encoding = call.encoding(lane.index == ANSWER) if compressed else b""

        def changed(forward: Forward) -> bytes | None:
            onward = passage.onward(forward.message) if lane.index == ASK else forward.message
            if onward is plain:
                return None
            return b"".join(prefixed(compress(onward, encoding) if compressed else onward, compressed))

        def packed(forward: Forward) -> bytes:
            return changed(forward) or b"".join(prefixed(message, compressed))

        keep = passage.keeps_order
        if isinstance(decision, Forward):
            if not (keep and way.turns):
                content = changed(decision)
                self._goes(lane, stream, passage)
                self._free(stream, size)
                return content or b"".join(prefixed(message, compressed)), content is None
            turn = Turn(passage, size)
            turn.content = packed(decision)
            way.turns.append(turn)
            return None, False
        turn = Turn(passage, size)
        if keep:
            way.turns.append(turn)
        way.held += 1
        future = asyncio.ensure_future(decision)
        stream.holds.add(future)
        future.add_done_callback(partial(self._released, lane, stream, way, turn, packed, Forward(plain, "", 0)))
        return None, False

    @staticmethod
    def _answered(passage: Passage, plain: bytes) -> Forward | asyncio.Future[Forward]:
        """What the addon makes of an answer; a failure of its own ends no conversation of others."""
        answer = getattr(passage.addon, "answer", None)
        try:
            if answer is None:
                return Forward(plain, "passed", 0)
            decision = answer(passage.frame, plain)
            return decision if isinstance(decision, Forward) else asyncio.ensure_future(decision)
        except Exception:
            log.exception("%s: the addon failed at the answer, which passes", passage.frame.id)
            return Forward(plain, "passed", 0)

    def _goes(self, lane: Lane, stream: Stream, passage: Passage) -> None:
        """A kept message leaves now."""
        assert stream.call is not None
        if lane.index == ANSWER:
            passage.done(now_ns())
        else:
            stream.call.leaves(passage)

    def _released(
        self, lane: Lane, stream: Stream, way: Way, turn: Turn, packed: Callable[[Forward], bytes], asis: Forward,
        future: asyncio.Future[Forward],
    ) -> None:  # fmt: skip
        """An addon has let go of a message."""
        stream.holds.discard(future)
        failure = asyncio.CancelledError("let go without an answer") if future.cancelled() else future.exception()
        if self.streams.get(stream.number) is not stream or way.closed:
            return
        if failure is not None and lane.index == ASK:
            for towards, frames in zip(self.lanes, self._failed(stream, failure), strict=True):
                towards.say(frames)
            self._wake()
            return
        if failure is not None:
            log.error("%s: the addon failed at the answer, which passes", turn.passage.frame.id, exc_info=failure)
        forward = asis if failure is not None else future.result()
        if lane.index == ASK:
            turn.passage.take(forward)
        turn.content = packed(forward)
        way.held -= 1
        going = [turn] if turn not in way.turns else []
        while way.turns and way.turns[0].content is not None:
            going.append(way.turns.popleft())
        for each in going:
            self._goes(lane, stream, each.passage)
            self._free(stream, each.size)
        self._put(lane, stream, way, b"".join(each.content or b"" for each in going), lane.out)
        self._credit(lane, stream, way)
        self._wake()

    def _failed(self, stream: Stream, failure: BaseException) -> tuple[Out, Out]:
        """The addon failed at a request: its call ends with the reason, and half a conversation helps nobody.

        What the server is to be sent, and what the client is.
        """
        log.error("the addon failed", exc_info=failure)
        number, ended = stream.number, stream.ways[ASK].ended
        text = f"relay: {type(failure).__name__}: {failure}"
        self._drop(stream, f"INTERNAL: {text}")
        self._cut[number] = None
        if len(self._cut) > MAX_CUT:
            del self._cut[next(iter(self._cut))]
        last = ending(number, INTERNAL, text, stream.begun)
        return [h2.rst_stream(number, h2.CANCEL)], [last] if ended else [last, h2.rst_stream(number, h2.NO_ERROR)]

    def _catches(self, stream: Stream, size: int) -> bool:
        """Whether there is room to keep a message of this size: then it is taken."""
        if size > self._books.room:
            return False
        self._books.room -= size
        stream.reserved += size
        return True
