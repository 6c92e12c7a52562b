"""Asks the tail: over the wire, or in this process. It counts nothing and judges nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import grpc

from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.wire import oip
from splitcore.wire.channel import sync_channel

Answered = Callable[[Reply | Exception], None]


class Oracle(Protocol):
    """Whatever answers queries. `answered` is called once for each frame, from any thread."""

    def ask(self, frame: Frame, answered: Answered, timeout_s: float | None = None) -> None: ...

    def close(self) -> None: ...


class LiveOracle:
    """A live server of the Open Inference Protocol, over a channel of its own, apart from the frames that are relayed."""

    def __init__(self, target: str) -> None:
        self._channel = sync_channel(target)
        self._infer = self._channel.unary_unary(oip.path(oip.INFER))

    def ask(self, frame: Frame, answered: Answered, timeout_s: float | None = None) -> None:
        """A refusal of the server comes as a Reply with an error, a failure of the link as grpc.RpcError."""
        call = self._infer.future(oip.pack_request(frame), timeout=timeout_s)

        def done(call: grpc.Future) -> None:
            try:
                answered(oip.unpack_reply(call.result()))
            except grpc.RpcError as error:
                refused = error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED,
                                               grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL,
                                               grpc.StatusCode.UNKNOWN)  # fmt: skip
                answered(Reply(id=frame.id, error=f"{error.code().name}: {error.details()}") if refused else error)
            except (WireError, grpc.FutureCancelledError) as error:
                answered(error)

        call.add_done_callback(done)

    def close(self) -> None:
        self._channel.close()


class TailOracle:
    """A tail in this process: what `answer` makes of a frame. For tests and for what-if runs without a server."""

    def __init__(self, answer: Callable[[Frame], Reply]) -> None:
        self._answer = answer

    def ask(self, frame: Frame, answered: Answered, timeout_s: float | None = None) -> None:
        answered(self._answer(frame))

    def close(self) -> None:
        return
