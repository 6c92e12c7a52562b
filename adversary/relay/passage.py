"""The books of what passes: one frame on its way through and back, and all of those in one call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from adversary.ledger import Kind, Ledger
from adversary.names import Names
from adversary.relay.addon import Addon, Forward
from adversary.relay.flight import Flight
from adversary.relay.headers import pick, status_of
from adversary.relay.messages import expand
from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.telemetry.calls import Calls
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.context import sampled
from splitcore.telemetry.frame_spans import RELAY
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import oip
from splitcore.wire.form import Form

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


class Passage:
    """One frame of the client on its way through."""

    __slots__ = ("_books", "_kind", "_size", "_times", "_why", "addon", "frame", "wire_id")

    def __init__(self, books: Books, addon: Addon, frame: Frame) -> None:
        self.wire_id = frame.id
        """what its client calls it"""
        self.frame = books.names.booked(frame)
        self.addon = addon
        self._kind: Kind = addon.kind
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
        self._kind, self._why, self._size = "clean", why, sum(map(len, self.frame.payloads))

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

    def replied(self, refusal: str | None) -> None:
        """An answer came, or the server's refusal in-band: then no row of it was computed."""
        self._times["reply_in"] = now_ns()
        if refusal is None:
            self._books.ledger.answered(self.frame.id, self.frame.attempt)
        else:
            self.lost(refusal)

    def lost(self, reason: str) -> None:
        self._books.ledger.lost(self.frame.id, self.frame.attempt, reason)

    def done(self) -> None:
        self._times["reply_out"] = now_ns()
        self._books.telemetry.span(self.frame.id, self.frame.attempt, self.frame.traceparent, **self._times)


class Call:
    """One call of an inference method: its frames in flight, matched with their answers."""

    def __init__(self, books: Books, path: bytes, encoding: bytes) -> None:
        self.unary = path == INFER
        self.answering = False
        """whether an addon that may change answers has seen one of its frames"""
        self._books = books
        self._encoding = encoding
        self._reply_headers = b""
        self._flight = Flight(books.correlates)
        self._later: list[tuple[Callable[..., Any], bytes | str, bool]] = []

    def encoding(self, answers: bool) -> bytes:
        """By which messages are compressed in this direction."""
        return pick(self._reply_headers, (b"grpc-encoding",)).get(b"grpc-encoding", b"") if answers else self._encoding

    def opened(self, block: bytes) -> None:
        """The response's headers came."""
        self._reply_headers = block

    def frame_of(self, message: bytes | None, addon: Addon) -> Passage | None:
        """A passage for a frame that can be accounted for; None: it passes, and the server shall judge it."""
        try:
            frame = None if message is None else self._books.form.unpack_request(message)
        except WireError:
            frame = None
        if frame is None:
            self._books.unaccounted += 1
            return None
        return Passage(self._books, addon, frame)

    def later(self, what: Callable[..., Any], about: bytes | str, compressed: bool = False) -> None:
        """Of answers that pass nothing has to be known before they do: what is to be done about them, in its order."""
        self._later.append((what, about, compressed))

    def settle(self) -> None:
        """All of that."""
        while self._later:
            what, about, compressed = self._later.pop(0)
            what(about, compressed)

    def passed(self, message: bytes, compressed: bool) -> None:
        """An answer passed."""
        passage = self.answer(expand(message, self.encoding(True)) if compressed else message)
        if passage is not None:
            passage.done()

    def leaves(self, passage: Passage) -> None:
        self.settle()
        before = self._flight.add(passage)
        if before is not None:
            before.lost("the client sent the frame again on the same stream")
        self.answering = self.answering or hasattr(passage.addon, "answer")
        passage.leaves()

    def answer(self, message: bytes | None) -> Passage | None:
        """Whose answer this is; it is in the books, and the addon that listens has heard it."""
        if message is None or not self._flight:
            return None
        reply: Reply | None = None
        if self.unary:
            passage = self._flight.only()
            passage.replied(None)
        else:
            try:
                reply = self._books.form.unpack_stream_reply(message)
            except WireError as error:
                # not ours to judge, it passes as it is; whom it answers can be known all the same
                reply = Reply(id=error.frame_id, error=f"an answer that cannot be read: {error}")
            found = self._flight.take(reply.id)
            if found is None:
                return None
            passage = found
            passage.replied(reply.error)
        listen: Callable[[Frame, Reply], Any] | None = getattr(passage.addon, "reply", None)
        if listen is not None:
            try:
                listen(passage.frame, self._books.form.unpack_reply(message) if reply is None else reply)
            except Exception:
                log.exception("%s: the addon failed at the answer, which passes", passage.frame.id)
        return passage

    def closed(self, block: bytes, _: bool = False) -> None:
        """The server has ended the call, with this header block."""
        if self._flight:
            code, message = status_of(block)
            name = CODES.get(code or 0, str(code))
            self.ended(f"{name}: {message}" if code else "the stream ended before an answer")

    def ended(self, reason: str, _: bool = False) -> None:
        """No answer will come any more."""
        for passage in self._flight.drain():
            passage.lost(reason)
