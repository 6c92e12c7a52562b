"""Two HTTP/2 connections as one: frames pass byte for byte, but DATA of streams of which something is kept or changed.

No socket is touched here: bytes of either side go in, bytes for the sides come out. The lane ASK carries what the client sends,
ANSWER what the server does. All frames pass in their order, only DATA, trailers and END_STREAM of a stream wait behind what is
kept of it. Windows: window.py. RFC 9113.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from adversary.relay import frames as h2
from adversary.relay.addon import Addon, Forward
from adversary.relay.frames import H2Error
from adversary.relay.headers import MAX_BLOCK_BYTES, Requests, code_of, context_free, ending
from adversary.relay.messages import compress, expand, prefixed
from adversary.relay.passage import INFER, STREAM, Books, Call, Passage
from adversary.relay.stream import Stream, Turn, Way
from adversary.relay.window import MAX_WINDOW, Window
from splitcore.telemetry.clock import now_ns
from splitcore.wire import glance
from splitcore.wire.glance import Glance

log = logging.getLogger(__name__)

ASK, ANSWER = 0, 1
MAX_STREAMS = 16_384
"""open at once on one connection; servers allow far fewer"""
MAX_CUT = 1024
"""streams that the relay ended itself, of which frames may still come"""
QUANTUM = 64 << 10
"""bytes that a stream sends in its turn when many wait for the connection's window"""
CONNECTION_FLOOR = 32 << 10
"""of the connection's window, left to other streams while a message is put together"""

Out = list[bytes | memoryview]
INTERNAL = 13


def size_of(message: bytes | Glance) -> int:
    return message.size if isinstance(message, Glance) else len(message)


class Lane:
    """One direction of the connection."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.out: Out = []
        self.window = Window(h2.DEFAULT_WINDOW)
        self.initial = h2.DEFAULT_WINDOW
        """of a new stream, as the receiver has it"""
        self.largest = h2.DEFAULT_FRAME
        """bytes of a frame that the receiver takes"""
        self.limit = h2.DEFAULT_FRAME
        """the largest that it ever took: the sender may not know of less yet"""
        self.waiting: dict[int, Stream] = {}
        """streams with content that waits for windows"""
        self.keeping = 0
        self.next: int | None = h2.SETTINGS
        """the only type of frame that may come now"""
        self.partial: list[bytes] = []
        self.have = self.need = 0
        self.block: tuple[int, int, int, bytearray, bytearray] | None = None
        """(stream, type, flags, block, frames) of a header block that goes on in CONTINUATION frames"""
        self._early: Out = []

    def say(self, frames: Out) -> None:
        """Frames of the relay's own to the receiver: behind the sender's first SETTINGS, with which a connection begins."""
        if self.next == h2.SETTINGS:
            self._early += frames
        else:
            self.out += frames

    def settled(self) -> Out:
        """The first SETTINGS pass: what may follow them."""
        early, self._early = self._early, []
        return early


class Splice:
    """One pair of connections. `addon` gives the present one; `wake` is called when a held message has left bytes to write."""

    def __init__(self, addon: Callable[[], Addon], books: Books, wake: Callable[[], None]) -> None:
        self.lanes = (Lane(ASK), Lane(ANSWER))
        self.streams: dict[int, Stream] = {}
        self.last = 0
        """the highest stream of the client"""
        self.peer = ""
        """the client's address"""
        self._addon, self._books, self._wake = addon, books, wake
        self._requests = Requests()
        self._cut: dict[int, None] = {}
        self.unsettled: dict[Call, None] = {}
        """calls of which something passed that is not in the books yet"""
        self._preface = h2.PREFACE
        self._handlers = {
            h2.HEADERS: self._headers, h2.PUSH_PROMISE: self._headers, h2.CONTINUATION: self._continuation,
            h2.RST_STREAM: self._reset, h2.SETTINGS: self._settings, h2.WINDOW_UPDATE: self._window_update,
            h2.GOAWAY: self._goaway,
        }  # fmt: skip

    def receive(self, index: int, data: bytes) -> None:
        """What one side sent; what the sides are to be sent is in `lanes[...].out` then. Raises H2Error."""
        lane = self.lanes[index]
        if lane.partial:
            lane.partial.append(data)
            lane.have += len(data)
            if lane.have < lane.need:
                return
            data = b"".join(lane.partial)
            lane.partial.clear()
        view = memoryview(data)
        at, end = 0, len(data)
        if index == ASK and self._preface:
            size = len(self._preface)
            if data[:size] != self._preface[:end]:
                raise H2Error(h2.PROTOCOL_ERROR, f"expected the preface of HTTP/2, got {data[:24]!r}")
            if end < size:
                self._rest(lane, data, size)
                return
            self._preface = b""
            lane.out.append(data[:size])
            at = size
        run, out = at, lane.out
        while end - at >= 9:
            high, low, kind, flags, number = h2.HEADER.unpack_from(data, at)
            length = high << 16 | low
            stop = at + 9 + length
            if length > lane.limit:
                raise H2Error(h2.FRAME_SIZE_ERROR, f"expected frames of at most {lane.limit} bytes, got one of {length}")
            if stop > end:
                break
            if lane.next is not None and kind != lane.next:
                raise H2Error(h2.PROTOCOL_ERROR, f"expected a frame of type {lane.next}, got type {kind}")
            if kind == h2.DATA:
                instead = self._data(lane, number & h2.MAX_STREAM, flags, view[at + 9 : stop])
            elif (handler := self._handlers.get(kind)) is not None:
                instead = handler(lane, number & h2.MAX_STREAM, kind, flags, view[at:stop])
            else:
                instead = None
            if instead is not None:
                if run < at:
                    out.append(view[run:at])
                out += instead
                run = stop
            at = stop
        if run < at:
            out.append(view[run:at])
        if at < end:
            high, low = h2.HEADER.unpack_from(data, at)[:2] if end - at >= 9 else (0, 0)
            self._rest(lane, data[at:], 9 + (high << 16 | low))

    @staticmethod
    def _rest(lane: Lane, data: bytes, need: int) -> None:
        lane.partial.append(data)
        lane.have, lane.need = len(data), need

    # -- what the peers say of streams ------------------------------------------------------------------------------------

    def _data(self, lane: Lane, number: int, flags: int, payload: memoryview) -> Out | None:
        """None: the frame passes as it is."""
        stream = self.streams.get(number)
        n = len(payload)
        if stream is None:
            return self._stray(lane, number, n)
        way = stream.ways[lane.index]
        if way.ended:
            raise H2Error(h2.PROTOCOL_ERROR, f"expected nothing on stream {number} after its end, got DATA")
        if flags & h2.END_STREAM:
            way.ended = True
        if flags & h2.PADDED:
            payload = h2.content(flags, payload, h2.DATA)
        pieces: Out | None = None
        if way.reader is not None:
            try:
                pieces = self._messages(lane, stream, way, payload)
            except Exception as error:
                if isinstance(error, H2Error):
                    raise
                ends = self._failed(stream, error)
                self._stray(lane, number, n)
                self.lanes[1 - lane.index].say(ends[1 - lane.index])
                return ends[lane.index]
        empty = way.empty
        if pieces is None and not way.waiting and (empty or not way.ended) and way.window.fits(n) and lane.window.fits(n):
            way.window.passed(n)
            lane.window.passed(n)
            if way.ended:
                self._close(stream, way)
            return None
        out: Out = []
        way.window.received(n)
        lane.window.received(n)
        content = payload if pieces is None else pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._put(lane, stream, way, content, out)
        keeping = way.reader.keeping if way.reader is not None else 0
        lane.keeping += keeping - way.keeping
        way.keeping = keeping
        self._credit(lane, stream, way)
        return out

    def _messages(self, lane: Lane, stream: Stream, way: Way, payload: memoryview) -> Out | None:
        """What of it goes on; None: all of it, as it is."""
        reader, call = way.reader, stream.call
        assert reader is not None and call is not None
        addon = self._addon()
        wanted = call.answering if lane.index == ANSWER else self._keeps(addon)
        seen = stream.watched.got if lane.index == ASK else stream.watched.put
        if not wanted:
            if lane.index == ASK and call.at_a_glance(addon) and reader.begins(payload, glance.request):
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

    def _stray(self, lane: Lane, number: int, n: int) -> Out | None:
        """DATA of a stream that is gone: for its receiver to judge, where that would take it."""
        if number not in self._cut and lane.window.fits(n) and number:
            lane.window.passed(n)
            return None
        if not number:
            raise H2Error(h2.PROTOCOL_ERROR, "expected DATA on a stream, got it on the connection")
        lane.window.received(n)
        self._credit(lane, None, None)
        return []

    # -- the other frames; `frame` has its header ------------------------------------------------------------------------

    def _headers(self, lane: Lane, number: int, kind: int, flags: int, frame: memoryview) -> Out | None:
        fragment = h2.content(flags, frame[9:], kind)
        if flags & h2.END_HEADERS:
            return self._block(lane, number, kind, flags, bytes(fragment), frame)
        lane.block, lane.next = (number, kind, flags, bytearray(fragment), bytearray(frame)), h2.CONTINUATION
        return []

    def _continuation(self, lane: Lane, number: int, _: int, flags: int, frame: memoryview) -> Out | None:
        if lane.block is None or lane.block[0] != number:
            raise H2Error(h2.PROTOCOL_ERROR, f"expected no CONTINUATION of stream {number}, got one")
        _, kind, first, block, raw = lane.block
        block += frame[9:]
        raw += frame
        if len(raw) > 2 * MAX_BLOCK_BYTES:
            raise H2Error(h2.ENHANCE_YOUR_CALM, f"expected a header block of at most {MAX_BLOCK_BYTES} bytes, got more")
        if not flags & h2.END_HEADERS:
            return []
        lane.block = lane.next = None
        whole = bytes(raw)
        instead = self._block(lane, number, kind, first, bytes(block), memoryview(whole))
        return [whole] if instead is None else instead

    def _block(self, lane: Lane, number: int, kind: int, flags: int, block: bytes, raw: memoryview) -> Out | None:
        """A whole header block, in the frames `raw`."""
        if len(block) > MAX_BLOCK_BYTES:
            raise H2Error(h2.ENHANCE_YOUR_CALM, f"expected a header block of at most {MAX_BLOCK_BYTES} bytes, got {len(block)}")
        if kind != h2.HEADERS:
            return None
        if not number:
            raise H2Error(h2.PROTOCOL_ERROR, "expected HEADERS on a stream, got them on the connection")
        stream = self.streams.get(number)
        if lane.index == ASK:
            if stream is None and number > self.last:
                self._open(number, block, bool(flags & h2.END_STREAM))
                return None
            self._requests.follow(block)
        if stream is None:
            return [] if number in self._cut and (lane.index == ANSWER or self._requests.free) else None
        if not flags & h2.END_STREAM:
            if lane.index == ANSWER:
                stream.begun = True
                if stream.call is not None:
                    stream.call.opened(block)
            return None
        way = stream.ways[lane.index]
        if lane.index == ANSWER:
            stream.code = code_of(block)
            if stream.call is not None:
                self._later(stream.call, stream.call.closed, block)
        way.ended = True
        if not way.empty:
            if not (context_free(block) and (lane.index == ANSWER or self._requests.free)):
                raise H2Error(h2.INTERNAL_ERROR, "expected trailers behind a held message to need no dynamic table")
            way.tail = bytes(raw)
            return []
        self._close(stream, way)
        return None

    def _open(self, number: int, block: bytes, ended: bool) -> None:
        if not number & 1:
            raise H2Error(h2.PROTOCOL_ERROR, f"expected an odd stream from a client, got {number}")
        if len(self.streams) >= MAX_STREAMS:
            raise H2Error(h2.ENHANCE_YOUR_CALM, f"expected at most {MAX_STREAMS} streams at once, got more")
        self.last = number
        path, encoding, authorization = self._requests.call(block)
        if authorization:
            self._books.overheard = authorization.decode(errors="replace")
        ask, answer = self.lanes
        call = Call(self._books, path, encoding) if path in (INFER, STREAM) else None
        ways = Way(ask.initial, call is not None), Way(answer.initial, call is not None)
        kind = "bidi_stream" if path == STREAM else "unary"
        stream = Stream(number, *ways, call, self._books.calls.begin(path.decode("latin-1"), kind, self.peer))
        stream.ways[ASK].ended = stream.ways[ASK].closed = ended
        self.streams[number] = stream

    def _catches(self, stream: Stream, size: int) -> bool:
        """Whether there is room to keep a message of this size: then it is taken."""
        if size > self._books.room:
            return False
        self._books.room -= size
        stream.reserved += size
        return True

    def _free(self, stream: Stream, size: int) -> None:
        self._books.room += size
        stream.reserved -= size

    def _reset(self, lane: Lane, number: int, _: int, __: int, frame: memoryview) -> Out | None:
        code = h2.word(frame[9:], "RST_STREAM")
        stream = self.streams.get(number)
        if stream is None:
            return [] if number in self._cut else None
        if lane.index == ASK:
            self._drop(stream, "CANCELLED: the client went away")
        else:
            self._drop(stream, f"the server reset the stream: {h2.error_name(code)}")
        return None

    def _settings(self, lane: Lane, number: int, _: int, flags: int, frame: memoryview) -> Out | None:
        if number:
            raise H2Error(h2.PROTOCOL_ERROR, f"expected SETTINGS of the connection, got them on stream {number}")
        if flags & h2.ACK:
            if lane.index == ASK:
                self._requests.free = True
            return None
        towards = self.lanes[1 - lane.index]
        pairs = list(h2.settings(frame[9:]))
        for name, value in pairs:
            if name == h2.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise H2Error(h2.FLOW_CONTROL_ERROR, f"expected an initial window of at most {MAX_WINDOW}, got {value}")
                grown, towards.initial = value - towards.initial, value
                for stream in self.streams.values():
                    stream.ways[towards.index].window.resized(grown)
            elif name == h2.MAX_FRAME_SIZE:
                if not h2.DEFAULT_FRAME <= value < 1 << 24:
                    raise H2Error(h2.PROTOCOL_ERROR, f"expected a maximum frame size of 16384 to 16777215, got {value}")
                towards.largest, towards.limit = value, max(value, towards.limit)
        self._pump(towards)
        first, lane.next = lane.next is not None, None
        if not first and not any(name == h2.HEADER_TABLE_SIZE for name, _ in pairs):
            return None
        rest = [pair for pair in pairs if pair[0] != h2.HEADER_TABLE_SIZE]
        return [h2.pack_settings([(h2.HEADER_TABLE_SIZE, 0), *rest]), *lane.settled()]

    def _window_update(self, lane: Lane, number: int, _: int, __: int, frame: memoryview) -> Out | None:
        n = h2.word(frame[9:], "WINDOW_UPDATE") & MAX_WINDOW
        towards = self.lanes[1 - lane.index]
        if not number:
            towards.window.granted(n)
            self._pump(towards)
            due = towards.window.due(towards.keeping, CONNECTION_FLOOR)
        else:
            stream = self.streams.get(number)
            if stream is None:
                return [] if number in self._cut else None
            way = stream.ways[towards.index]
            way.window.granted(n)
            if way.waiting:
                self._pump(towards)
            due = way.window.due(way.keeping, way.reader.missing if way.reader is not None else 0)
        if due == n:
            return None
        return [h2.window_update(number, due)] if due else []

    def _goaway(self, lane: Lane, _: int, __: int, ___: int, frame: memoryview) -> Out | None:
        if len(frame) < 17:
            raise H2Error(h2.FRAME_SIZE_ERROR, f"expected a GOAWAY of 8 bytes or more, got {len(frame) - 9}")
        if lane.index == ANSWER:
            last = int.from_bytes(frame[9:13]) & h2.MAX_STREAM
            for stream in [stream for number, stream in self.streams.items() if number > last]:
                self._drop(stream, "UNAVAILABLE: the server went away before it took the call")
        return None

    # -- what is sent ------------------------------------------------------------------------------------------------------

    def _put(self, lane: Lane, stream: Stream, way: Way, content: bytes | memoryview, out: Out) -> None:
        """Content goes on as far as the windows allow; the stream's end behind it when nothing is kept."""
        n = len(content)
        if not way.waiting and n <= way.window.allowance and n <= lane.window.allowance:
            ends = way.ended and way.tail is None and way.empty and not way.closed
            if n:
                out += h2.data(stream.number, content, lane.largest, ends)
                way.window.sent(n)
                lane.window.sent(n)
            if ends and n:
                self._close(stream, way)
        elif n:
            way.waiting += content
            way.window.queued += n
            lane.window.queued += n
            lane.waiting[stream.number] = stream
            self._drain(lane, stream, MAX_WINDOW, out)
        self._finish(lane, stream, way, out)

    def _finish(self, lane: Lane, stream: Stream, way: Way, out: Out) -> None:
        if way.ended and not way.closed and way.empty:
            out.append(h2.header(0, h2.DATA, h2.END_STREAM, stream.number) if way.tail is None else way.tail)
            self._close(stream, way)

    def _drain(self, lane: Lane, stream: Stream, most: int, out: Out) -> bool:
        """Sends what waits on a stream, at most so many bytes; whether any went."""
        way = stream.ways[lane.index]
        n = min(len(way.waiting), way.window.allowance, lane.window.allowance, most)
        if n <= 0:
            return False
        content = bytes(memoryview(way.waiting)[:n])
        del way.waiting[:n]
        way.window.queued -= n
        lane.window.queued -= n
        ends = way.ended and way.tail is None and way.empty
        out += h2.data(stream.number, content, lane.largest, ends)
        way.window.sent(n)
        lane.window.sent(n)
        if not way.waiting:
            del lane.waiting[stream.number]
        if ends:
            self._close(stream, way)
        self._finish(lane, stream, way, out)
        return True

    def _pump(self, lane: Lane) -> None:
        """Streams that wait send by turns."""
        while lane.waiting and sum(self._drain(lane, stream, QUANTUM, lane.out) for stream in [*lane.waiting.values()]):
            pass

    def _credit(self, lane: Lane, stream: Stream | None, way: Way | None) -> None:
        """Grants the sender what it is due."""
        back = self.lanes[1 - lane.index]
        floor = 0
        if stream is not None and way is not None:
            floor = way.reader.missing if way.reader is not None else 0
            if not way.ended and (due := way.window.due(way.keeping, floor)):
                back.say([h2.window_update(stream.number, due)])
        if due := lane.window.due(lane.keeping, floor + CONNECTION_FLOOR):
            back.say([h2.window_update(0, due)])

    # -- ends --------------------------------------------------------------------------------------------------------------

    def _close(self, stream: Stream, way: Way) -> None:
        """The end of one direction has gone to its receiver."""
        way.closed = True
        ask, answer = stream.ways
        if answer.closed and not ask.closed and not ask.empty:
            # the server has said its last word: what is held would be answered by nobody
            ended = ask.ended
            self._drop(stream, "the stream ended before an answer")
            if ended:
                self.lanes[ASK].out.append(h2.rst_stream(stream.number, h2.CANCEL))
        elif answer.closed and ask.closed:
            self._drop(stream, "the stream ended before an answer")
        elif answer.closed:
            ask.reader = None
            self._forget(stream, self.lanes[ASK], ask)

    def _drop(self, stream: Stream, reason: str) -> None:
        """The stream is no more: nothing that is kept of it goes on."""
        if self.streams.pop(stream.number, None) is None:
            return
        for future in [*stream.holds]:
            future.cancel()
        for lane, way in zip(self.lanes, stream.ways, strict=True):
            self._forget(stream, lane, way)
            self._credit(lane, None, None)
        self._free(stream, stream.reserved)
        if stream.call is not None:
            self._later(stream.call, stream.call.ended, reason)
        stream.watched.end(stream.code or grpc.StatusCode.CANCELLED)

    @staticmethod
    def _forget(stream: Stream, lane: Lane, way: Way) -> None:
        lane.waiting.pop(stream.number, None)
        lane.window.queued -= len(way.waiting)
        lane.keeping -= way.keeping
        way.keeping = 0
        way.waiting = bytearray()

    def _later(self, call: Call, what: Callable[[Any, int], None], about: object) -> None:
        call.later(what, about)
        self.unsettled[call] = None

    def settle(self) -> None:
        """What can be done when the bytes are on their way: the books of answers."""
        while self.unsettled:
            self.unsettled.popitem()[0].settle()

    def close(self, reason: str) -> None:
        """The connection is no more."""
        for stream in [*self.streams.values()]:
            self._drop(stream, reason)

    def abort(self, error: H2Error) -> None:
        """Tells both sides that this connection ends, and why."""
        self.close(f"INTERNAL: {error}")
        for lane, last in zip(self.lanes, (0, self.last), strict=True):
            lane.out.append(h2.goaway(last, error.code))
