"""The phone before a server that is none of ours: what it says of its model, and frames as calls where streams are no use.

MLServer gives every answer of a stream the id of the first request, so its answers cannot be told apart there; KServe and
others have no stream at all. Calls are told apart by themselves.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from mobile_client.cuts import Cut
from splitcore.errors import HandshakeError, WireError
from splitcore.frame import Reply
from splitcore.wire import oip
from splitcore.wire.channel import sync_channel
from splitcore.wire.described import EndpointConfig
from splitcore.wire.endpoint import CODECS, Endpoint
from splitcore.wire.form import Form
from splitcore.wire.look import look_once
from splitcore.wire.tls import ClientTls

AT_ONCE = 64
"""calls on their way at most: a connection takes about twice as many"""
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""what says nothing of the frame: it is asked again. Any other status is the server's answer"""


async def found(target: str, config: EndpointConfig, cut: Cut, tls: ClientTls | None) -> Endpoint:
    """The endpoint, which must take what the phone sends. Raises HandshakeError; WireError when nobody answered."""

    def ask() -> Endpoint:
        with sync_channel(target, tls=tls) as channel:
            return look_once(channel, config)

    try:
        endpoint = await asyncio.to_thread(ask)
    except grpc.RpcError as error:
        text = f"{error.code().name}: {error.details()}"
        if error.code() in LOST:
            raise WireError(text) from error
        raise HandshakeError(f"expected a server with model {config.model!r} at {target}, it said {text[:300]}") from error
    check(endpoint, cut)
    return endpoint


def check(endpoint: Endpoint, cut: Cut) -> None:
    """Raises HandshakeError."""
    ours, tensor = tuple(cut.manifest.latent.shape), endpoint.input
    wanted = CODECS.get(tensor.datatype) if tensor is not None else None
    if cut.codec.name not in CODECS.values() or wanted not in (None, cut.codec.name):
        raise HandshakeError(
            f"the phone sends latents by codec {cut.codec.name}, model {endpoint.config.model} takes "
            f"{'numbers' if tensor is None else tensor.datatype} as they are: say `codec: {{kind: {wanted or 'identity'}}}`"
        )
    if tensor is None:
        return
    theirs = tensor.shape[1:] if endpoint.batched else tensor.shape
    if len(theirs) != len(ours) or any(b not in (-1, a) for a, b in zip(ours, theirs, strict=True)):
        raise HandshakeError(
            f"the phone sends latents {list(ours)} of {cut.name}, input {tensor.name} of model {endpoint.config.model} takes "
            f"{list(tensor.shape)}: serve the tail of this artefact"
        )


class Calls:
    """Unary calls that look like a stream of frames and answers, as far as a sender uses one."""

    def __init__(self, channel: grpc.aio.Channel, form: Form, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._infer = channel.unary_unary(oip.path(oip.INFER))
        self._form, self._metadata = form, metadata
        self._room = asyncio.Semaphore(AT_ONCE)
        self._out: set[asyncio.Task[None]] = set()
        self._answers: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self._over = False
        self._code = grpc.StatusCode.OK

    async def code(self) -> grpc.StatusCode:
        """How it ended, as of a stream."""
        return self._code

    async def initial_metadata(self) -> None:
        return None

    async def write(self, message: bytes) -> None:
        await self._room.acquire()
        task = asyncio.create_task(self._call(message), name="call")
        self._out.add(task)
        task.add_done_callback(self._ended)

    async def _call(self, message: bytes) -> None:
        frame_id = self._form.unpack_request(message).id
        try:
            self._answers.put_nowait(_streamed(await self._infer(message, metadata=self._metadata), frame_id))
        except grpc.aio.AioRpcError as error:
            if error.code() in LOST:
                self._code = error.code()
                self._answers.put_nowait(error)
            else:
                refused = Reply(id=frame_id, error=f"{error.code().name}: {error.details()}")
                self._answers.put_nowait(oip.pack_stream_reply(refused))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._out.discard(task)
        self._room.release()
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._answers.put_nowait(failure)
        if self._over and not self._out:
            self._answers.put_nowait(None)

    async def done_writing(self) -> None:
        self._over = True
        if not self._out:
            self._answers.put_nowait(None)

    async def read(self) -> Any:
        """The next answer, in Triton's dialect and with the id of its request; grpc.aio.EOF after the last."""
        answer = await self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return grpc.aio.EOF if answer is None else answer

    def cancel(self) -> None:
        if self._out:
            self._code = grpc.StatusCode.CANCELLED
        for task in [*self._out]:
            task.cancel()


def _streamed(response: bytes, frame_id: str) -> bytes:
    """A ModelInferResponse within a ModelStreamInferResponse. Of a field that comes twice the last one counts: here the id."""
    return oip.pack_field(oip.INFER_RESPONSE, response + oip.pack_field(oip.RESPONSE_ID, frame_id.encode()))
