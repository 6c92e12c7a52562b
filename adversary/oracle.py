"""Asks the tail: over the wire, or in this process. It counts nothing and judges nothing."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import grpc

from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.telemetry.calls import Calls
from splitcore.telemetry.context import METADATA
from splitcore.wire import oip
from splitcore.wire.channel import sync_channel
from splitcore.wire.form import Form
from splitcore.wire.tls import ClientTls

log = logging.getLogger(__name__)

Answered = Callable[[Reply | Exception], None]
PINGS = 5
LOOK_S = 0.1
"""how often unanswered requests are looked at"""
TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)  # fmt: skip
"""statuses that are the link's fault, or may be; the others are the server's refusal"""


class Oracle(Protocol):
    """Whatever answers queries. `answered` is called once for each frame, from any thread."""

    def ask(self, frame: Frame, answered: Answered, timeout_s: float | None = None) -> None: ...

    def round_trip_s(self) -> float:
        """Of a request without rows; it asks no query."""
        ...

    def close(self) -> None: ...


class LinkError(Exception):
    """No answer will come: the stream broke, time ran out, or the server is about to stop."""


class LiveOracle:
    """A live server of the Open Inference Protocol, over a channel of its own, apart from the frames that are relayed.

    Requests are messages of one stream, which costs either end half of what a call each does; a server without
    ModelStreamInfer gets calls, and so does one whose streams do not say which request they answer.
    """

    def __init__(
        self, target: str, form: Form = oip, *, streams: bool = True, tls: ClientTls | None = None,
        credentials: Callable[[], str | None] = lambda: None, calls: Calls | None = None, handshake: str = "",
    ) -> None:  # fmt: skip
        """`tls`: how the server is reached; None: in clear text. `credentials`: what it says of itself, as a client whose
        metadata passed said it; asked when a stream begins. `calls`: for the metrics. `handshake`: of the artefact that it
        holds, said as the phone says it, so that a server of several versions asks the same one; empty: none."""
        self._target, self._form, self._tls, self._credentials = target, form, tls, credentials
        self._holds = ((oip.ARTEFACT_METADATA, handshake),) if handshake else ()
        self._calls = calls or Calls("client")
        self._channel = sync_channel(target, tls=tls)
        self._infer = self._channel.unary_unary(oip.path(oip.INFER))
        self._live = self._channel.unary_unary(oip.path(oip.LIVE))
        self._line: _Line | None = None
        self._calls_only = not streams
        self._lock = threading.Lock()

    def ask(self, frame: Frame, answered: Answered, timeout_s: float | None = None) -> None:
        """A refusal of the server comes as a Reply with an error, a failure of the link as an exception."""
        while not self._calls_only:
            with self._lock:
                if self._line is None or self._line.broken:
                    # on a connection of its own: that of a broken one may be half open, and a stream on it is as dead
                    line = sync_channel(self._target, tls=self._tls)
                    self._line = _Line(line, self._without_stream, self._form, self._calls, self._metadata())
                line = self._line
            if line.ask(frame, answered, timeout_s):
                return  # else it broke this moment
        self._call(frame, answered, timeout_s)

    def _without_stream(self, frame: Frame, answered: Answered, timeout_s: float | None) -> None:
        if not self._calls_only:
            log.warning("the server has no ModelStreamInfer: every request is a call, at about half the rate")
            self._calls_only = True
        self._call(frame, answered, timeout_s)

    def _call(self, frame: Frame, answered: Answered, timeout_s: float | None) -> None:
        message = self._form.pack_request(frame)
        traced = ((METADATA, frame.traceparent),) if frame.traceparent else ()
        watched = self._calls.begin(oip.path(oip.INFER))
        watched.put(len(message))
        call = self._infer.future(message, timeout=timeout_s, metadata=(*self._metadata(), *traced))

        def done(call: grpc.Future) -> None:
            watched.end(call.code())
            try:
                reply = call.result()
                watched.got(len(reply))
                answered(replace(self._form.unpack_reply(reply), id=frame.id))
            except grpc.RpcError as error:
                refused = error.code() not in TRANSIENT
                answered(Reply(id=frame.id, error=f"{error.code().name}: {error.details()}") if refused else error)
            except (WireError, grpc.FutureCancelledError) as error:
                answered(error)

        call.add_done_callback(done)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        said = self._credentials()
        return self._holds if said is None else (*self._holds, ("authorization", said))

    def round_trip_s(self) -> float:
        """The shortest of a few; 0 where the server does not answer ServerLive."""
        times = []
        for _ in range(PINGS):
            start = time.perf_counter()
            try:
                self._live(b"", timeout=5.0)
            except grpc.RpcError:
                return 0.0
            times.append(time.perf_counter() - start)
        return min(times)

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        self._channel.close()


class _Line:
    """One stream; when it breaks, every request on it has failed, and the next one takes another."""

    def __init__(
        self,
        channel: grpc.Channel,
        otherwise: Callable[[Frame, Answered, float | None], None],
        form: Form,
        calls: Calls,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._form = form
        self.broken = False
        self._channel, self._otherwise = channel, otherwise
        self._lock = threading.Lock()
        self._pending: dict[str, tuple[Frame, Answered, float | None, float]] = {}
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answered_any = False
        self._watched = calls.begin(oip.path(oip.STREAM), "bidi_stream")
        self._call = channel.stream_stream(oip.path(oip.STREAM))(self._messages(), metadata=metadata)
        self._ended = threading.Event()
        threading.Thread(target=self._read, name="answers", daemon=True).start()
        threading.Thread(target=self._watch, name="patience", daemon=True).start()

    def ask(self, frame: Frame, answered: Answered, timeout_s: float | None) -> bool:
        """False: the stream has broken, and nothing was taken."""
        due = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            if self.broken:
                return False
            self._pending[frame.id] = (frame, answered, timeout_s, due)
        message = self._form.pack_request(frame)
        self._watched.put(len(message))
        self._outgoing.put(message)
        return True

    def _messages(self) -> Iterator[bytes]:
        while (message := self._outgoing.get()) is not None:
            yield message

    def _read(self) -> None:
        failure: Exception = LinkError("the server ended the stream")
        try:
            for message in self._call:
                self._watched.got(len(message))
                reply = self._form.unpack_stream_reply(message)
                self._answered_any = True
                with self._lock:
                    entry = self._pending.pop(reply.id, None)
                if entry is not None:
                    stopping = reply.error is not None and reply.error.startswith(grpc.StatusCode.UNAVAILABLE.name)
                    entry[1](LinkError(reply.error) if stopping else reply)
        except grpc.RpcError as error:
            failure = error
        except WireError as error:
            # what it answered cannot be read, nor told whom it was for
            failure = error
            self._call.cancel()
        self._break(failure)

    def _break(self, failure: Exception) -> None:
        with self._lock:
            self.broken = True
            left, self._pending = list(self._pending.values()), {}
        self._ended.set()
        self._outgoing.put(None)
        code, details = _status(failure)
        self._watched.end(code or grpc.StatusCode.OK)
        for frame, answered, timeout_s, _ in left:
            if code is grpc.StatusCode.UNIMPLEMENTED and not self._answered_any:
                self._otherwise(frame, answered, timeout_s)
            elif code is not None and code not in TRANSIENT:
                answered(Reply(id=frame.id, error=f"{code.name}: {details}"))
            else:
                answered(failure)
        self._channel.close()

    def _watch(self) -> None:
        """A request whose time has run out takes the stream with it: no late answer can be mistaken for that of a retry."""
        while not self._ended.wait(LOOK_S):
            now = time.monotonic()
            with self._lock:
                late = any(due <= now for *_, due in self._pending.values())
            if late:
                self._call.cancel()
                return

    def close(self) -> None:
        self._outgoing.put(None)
        self._call.cancel()
        self._ended.wait(5)


def _status(failure: Exception) -> tuple[grpc.StatusCode | None, str]:
    if isinstance(failure, grpc.RpcError) and isinstance(failure, grpc.Call):
        return failure.code(), failure.details() or ""
    return None, ""


class TailOracle:
    """A tail in this process: what `answer` makes of a frame. For tests and for what-if runs without a server."""

    def __init__(self, answer: Callable[[Frame], Reply]) -> None:
        self._answer = answer

    def ask(self, frame: Frame, answered: Answered, timeout_s: float | None = None) -> None:
        answered(self._answer(frame))

    def round_trip_s(self) -> float:
        return 0.0

    def close(self) -> None:
        return
