"""The books of what passes: one frame on its way through and back, and all of those in one call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from adversary.ledger import Kind, Ledger
from adversary.names import Names
from adversary.relay.addon import Addon, Forward
from adversary.relay.flight import Flight
from adversary.relay.frames import H2Error
from adversary.relay.headers import pick, status_of
from adversary.relay.messages import expand
from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.telemetry.calls import Calls
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.context import sampled
from splitcore.telemetry.frame_spans import RELAY
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import glance, oip
from splitcore.wire.form import Form
from splitcore.wire.glance import Glance, Glancer

log = logging.getLogger(__name__)

INFER, STREAM = oip.path(oip.INFER).encode(), oip.path(oip.STREAM).encode()
CODES = {int(code.value[0]): str(code.name) for code in grpc.StatusCode}


@dataclass
class Books:
    """Where the relay writes what passes, and the room that it has for what is kept."""

    ledger: Ledger
    telemetry: Telemetry
    room: int
    """bytes that may still be kept for addons, over all connections"""
    overheard: str | None = None
    """the newest `authorization` that a client said"""
    calls: Calls = field(default_factory=lambda: Calls("server"))
    """for the metrics"""
    unaccounted: int = 0
    """messages of the inference methods that passed without a place in the books: they hold no frame"""
    form: Form = oip
    """what the frames look like"""
    correlates: bool = True
    """whether answers of the server's streams say by their ids whom they answer"""
    names: Names = field(default_factory=Names)
    glance: Glancer = field(default_factory=Glancer)


class Passage:
    """One frame of the client on its way through."""

    __slots__ = ("_books", "_kind", "_size", "_times", "_why", "addon", "frame", "glanced", "wire_id")

    def __init__(self, books: Books, addon: Addon, frame: Frame, size: int | None = None) -> None:
        """`size`: of the payloads of a frame that was read at a glance, in which they are not."""
        self.wire_id = frame.id
        """what its client calls it"""
        self.frame = books.names.booked(frame)
        self.addon = addon
        self.glanced = size is not None
        self._kind: Kind = addon.kind
        self._why = "passed"
        self._size = sum(map(len, frame.payloads)) if size is None else size
        self._books = books
        self._times = {"relay_in": now_ns()}

    def asked(self, message: bytes) -> Forward | Awaitable[Forward]:
        """What the addon says of it."""
        decision = self.addon.request(self.frame, message)
        if isinstance(decision, Forward):
            self.take(decision)
        return decision

    @property
    def keeps_order(self) -> bool:
        """Its client may tell answers apart by their order alone: nothing overtakes it, whatever the addon says."""
        return self.addon.order == "keep" or not (self.frame.numbered and self._books.correlates)

    def unasked(self, why: str) -> None:
        """It passes without the addon's having a say."""
        self._kind, self._why = "clean", why

    def take(self, forward: Forward) -> None:
        self._why, self._size = forward.why, forward.payload_bytes

    def onward(self, message: bytes) -> bytes:
        """A traced frame goes on as the child of the relay's own span; of all others every byte stays."""
        before = self.frame.traceparent
        if self._books.telemetry.tracer is None or (sender := sampled(before)) is None:
            return message
        return oip.with_traceparent(message, before, str(sender.child(RELAY)))

    def leaves(self) -> None:
        """Before its last byte does."""
        self._times["relay_out"] = now_ns()
        frame = self.frame
        self._books.ledger.sent(
            frame.id, frame.attempt, self._kind, frame.rows, payload_bytes=self._size, why=self._why, client_id=self.wire_id
        )

    def replied(self, refusal: str | None, t_ns: int) -> None:
        """An answer came, or the server's refusal in-band: then no row of it was computed."""
        self._times["reply_in"] = t_ns
        if refusal is None:
            self._books.ledger.answered(self.frame.id, self.frame.attempt, t_ns)
        else:
            self.lost(refusal)

    def lost(self, reason: str) -> None:
        self._books.ledger.lost(self.frame.id, self.frame.attempt, reason)

    def done(self, t_ns: int) -> None:
        self._times["reply_out"] = t_ns
        self._books.telemetry.span(self.frame.id, self.frame.attempt, self.frame.traceparent, **self._times)


class Call:
    """One call of an inference method: its frames in flight, matched with their answers."""

    def __init__(self, books: Books, path: bytes, encoding: bytes) -> None:
        self.unary = path == INFER
        self.answering = False
        """whether an addon that may change answers has seen one of its frames"""
        self._blind = True
        """whether nobody has listened to answers so far"""
        self._books = books
        self._encoding = encoding
        self._reply_headers = b""
        self._flight = Flight(books.correlates)
        self._later: list[tuple[Callable[[Any, int], None], object, int]] = []

    def encoding(self, answers: bool) -> bytes:
        """By which messages are compressed in this direction."""
        if not answers:
            return self._encoding
        try:
            return pick(self._reply_headers, (b"grpc-encoding",)).get(b"grpc-encoding", b"")
        except H2Error:
            return b""  # headers that cannot be read name none: its compressed messages pass unread

    def opened(self, block: bytes) -> None:
        """The response's headers came."""
        self._reply_headers = block

    def frame_of(self, message: bytes | Glance | None, addon: Addon) -> Passage | None:
        """A passage for a frame that can be accounted for; None: it passes, and the server shall judge it."""
        frame, books = None, self._books
        if isinstance(message, Glance):
            return Passage(books, addon, message.frame, message.payload_bytes)
        with contextlib.suppress(WireError):
            if message is not None and self.at_a_glance(addon) and (seen := books.glance(message)) is not None:
                return Passage(books, addon, seen.frame, seen.payload_bytes)
            frame = None if message is None else books.form.unpack_request(message)
        if frame is None:
            books.unaccounted += 1
            return None
        return Passage(books, addon, frame)

    def at_a_glance(self, addon: Addon) -> bool:
        """Whether nobody wants more of a frame than its place in the books."""
        books = self._books
        blind = not getattr(addon, "looks", True) and not hasattr(addon, "reply")
        return blind and books.form is oip and books.telemetry.tracer is None

    def later(self, what: Callable[[Any, int], None], about: object) -> None:
        """Of answers that pass nothing has to be known before they do: what is to be done about them, in its order."""
        self._later.append((what, about, now_ns()))

    def settle(self) -> None:
        """All of that."""
        later, self._later = self._later, []
        for what, about, t_ns in later:
            what(about, t_ns)

    def passed(self, answer: tuple[bytes, bool], t_ns: int) -> None:
        """An answer passed: the message, and whether it is compressed."""
        message, compressed = answer
        passage = self.answer(expand(message, self.encoding(True)) if compressed else message, t_ns)
        if passage is not None:
            passage.done(t_ns)

    def leaves(self, passage: Passage) -> None:
        self.settle()
        before = self._flight.add(passage)
        if before is not None:
            before.lost("the client sent the frame again on the same stream")
        self.answering = self.answering or hasattr(passage.addon, "answer")
        self._blind = self._blind and not hasattr(passage.addon, "reply")
        passage.leaves()

    def answer(self, message: bytes | None, t_ns: int) -> Passage | None:
        """Whose answer this is; it is in the books, and the addon that listens has heard it."""
        if message is None or not self._flight:
            return None
        form = self._books.form
        reply: Reply | None = None
        if self.unary:
            passage = self._flight.only()
            passage.replied(None, t_ns)
        else:
            seen = glance.answer(message) if form is oip and self._blind else None
            if seen is None:
                try:
                    reply = form.unpack_stream_reply(message)
                except WireError as error:
                    # not ours to judge, it passes as it is; whom it answers can be known all the same
                    reply = Reply(id=error.frame_id, error=f"an answer that cannot be read: {error}")
                seen = reply.id, reply.error
            name, refusal = seen
            found = self._flight.take(name)
            if found is None:
                return None
            passage = found
            passage.replied(refusal, t_ns)
        listen: Callable[[Frame, Reply], Any] | None = getattr(passage.addon, "reply", None)
        if listen is not None:
            try:
                listen(passage.frame, form.unpack_reply(message) if reply is None else reply)
            except Exception:
                log.exception("%s: the addon failed at the answer, which passes", passage.frame.id)
        return passage

    def closed(self, block: bytes, _: int) -> None:
        """The server has ended the call, with this header block."""
        if self._flight:
            try:
                code, message = status_of(block)
            except H2Error as error:
                # the client shall judge what the server says; here the frames have ended, whatever it was
                self.ended(f"the server ended the call with trailers that cannot be read: {error}")
                return
            name = CODES.get(code or 0, str(code))
            self.ended(f"{name}: {message}" if code else "the stream ended before an answer")

    def ended(self, reason: str, _: int = 0) -> None:
        """No answer will come any more."""
        for passage in self._flight.drain():
            passage.lost(reason)
