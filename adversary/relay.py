"""The relay: frames in, frames out, between the client and the server, for any gRPC method.

Messages pass as bytes. Only requests of the inference methods are looked at, and only to know their id; an addon may hold one
and send another in its place, while later ones overtake it (`order: keep` makes them wait, and the report shows what that
costs). This file is the only one that knows that the relay is a gRPC proxy: to the rest of the adversary it is `Addon` below.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import grpc

from adversary.ledger import Kind, Ledger
from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import oip
from splitcore.wire.channel import aio_channel, server_options
from splitcore.wire.tls import ClientTls

log = logging.getLogger(__name__)

Order = Literal["overtake", "keep"]
PEEK_S = 0.002
"""an unknown method whose client half-closes within this time after its first message is called as unary"""
MAX_MESSAGE_BYTES = 64 << 20
"""above what either end takes by default, so that the relay is not the one that refuses"""
OWN_HEADERS = ("user-agent", "te", "content-type")


@dataclass(frozen=True, slots=True)
class Forward:
    """What goes on in place of a held message, and why."""

    message: bytes
    why: str
    payload_bytes: int


def foreign(frame: Frame, model: str) -> bool:
    """Whether a frame is for another model than the one that an addon knows: it passes as it is, and is in the books.

    A frame that names no model leaves it to the server, and is taken for ours.
    """
    return bool(frame.model and model) and frame.model != model


class Addon(Protocol):
    """A behaviour on the path."""

    kind: Kind
    """what its frames are in the ledger"""
    order: Order

    def request(self, frame: Frame, message: bytes) -> Forward | Awaitable[Forward]:
        """A frame of the client on its way to the server: at once, or held until the awaitable is done."""
        ...

    async def close(self) -> None:
        """No frame will come any more; those that are held are let go."""
        ...


class Listener(Addon, Protocol):
    """An addon that looks at the answers too. The relay knows it by this method; one without it costs no look."""

    def reply(self, frame: Frame, reply: Reply) -> None:
        """What the server said to a frame, on its way to the client, which gets it whatever becomes of this."""
        ...


class Relay(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A gRPC server in front of `upstream`. `addon` may be changed while it runs."""

    def __init__(
        self, upstream: str, addon: Addon, ledger: Ledger, telemetry: Telemetry, *, tls: ClientTls | None = None
    ) -> None:
        self.addon = addon
        self.upstream = upstream
        self._ledger = ledger
        self._telemetry = telemetry
        self._channel = aio_channel(upstream, MAX_MESSAGE_BYTES, tls=tls)
        self.unaccounted = 0
        """messages of the inference methods that passed without a place in the books: no frame, or one without an id"""
        self._unary = {oip.path(name) for name in oip.UNARY_METHODS} | {"/grpc.health.v1.Health/Check"}

    async def start(self, address: str) -> tuple[grpc.aio.Server, int]:
        """Listens on `address`; (server, port). Raises OSError when the port is taken."""
        server = grpc.aio.server(options=server_options(MAX_MESSAGE_BYTES))
        server.add_generic_rpc_handlers((self,))
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is the port in use? Choose another --listen") from error
        await server.start()
        return server, port

    async def close(self) -> None:
        await self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method

        async def handle(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            passing: Callable[..., AsyncIterator[bytes]]
            if method == oip.path(oip.STREAM):
                passing = self._frames
            elif method == oip.path(oip.INFER):
                passing = self._frame
            elif method in self._unary:
                passing = self._call_unary
            else:
                passing = self._any
            try:
                async for message in passing(method, requests, context):
                    yield message
            except grpc.aio.AioRpcError as error:
                # the server's own status, details and trailers, as they were
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))

        # cardinality is not on the wire: one stream_stream handler serves all four kinds
        return grpc.stream_stream_rpc_method_handler(handle)

    async def _call_unary(
        self, method: str, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """A method known to be unary, called as unary: the status of a refused call is never mistaken."""
        async for message in requests:
            yield await self._unary_reply(method, message, context)
            return

    async def _unary_reply(self, method: str, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        call = self._channel.unary_unary(method)(message, **self._outgoing(context))
        reply: bytes = await call
        await context.send_initial_metadata(tuple(await call.initial_metadata()))
        context.set_trailing_metadata(tuple(await call.trailing_metadata()))
        return reply

    async def _frame(
        self, method: str, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """ModelInfer: one frame, one reply."""
        async for message in requests:
            passage = _Passage(self, message)
            if passage.frame is None:
                yield await self._unary_reply(method, message, context)
                return
            if passage.held is not None:
                await passage.release()
            passage.leaves()
            try:
                reply = await self._unary_reply(method, passage.message, context)
            except grpc.aio.AioRpcError as error:
                passage.lost(f"{error.code().name}: {error.details()}")
                raise
            except asyncio.CancelledError:
                passage.lost("CANCELLED: the client went away")
                raise
            passage.replied(None)
            passage.overheard(reply)
            yield reply
            passage.done()
            return

    async def _frames(
        self, method: str, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """ModelStreamInfer: frames one way, replies the other, in any order, matched by id."""
        call = self._channel.stream_stream(method)(**self._outgoing(context))
        flight: dict[str, _Passage] = {}
        writer = asyncio.create_task(self._write_frames(call, requests, flight), name="relay writer")
        # a writer that fails takes the call with it: half a conversation helps nobody
        writer.add_done_callback(lambda task: None if task.cancelled() or task.exception() is None else call.cancel())
        try:
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
            async for reply in call:
                passage = self._match(reply, flight)
                yield reply
                if passage is not None:
                    passage.done()
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                await context.abort(code, await call.details() or "", tuple(await call.trailing_metadata() or ()))
        except asyncio.CancelledError:
            if not writer.done() or writer.cancelled() or (failure := writer.exception()) is None:
                raise
            log.error("the relay's writer failed", exc_info=failure)
            while isinstance(failure, BaseExceptionGroup):
                failure = failure.exceptions[0]
            await context.abort(grpc.StatusCode.INTERNAL, f"relay: {type(failure).__name__}: {failure}")
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.wait({writer})
            for passage in flight.values():
                passage.lost("the stream ended before an answer")

    async def _write_frames(self, call: Any, requests: AsyncIterator[bytes], flight: dict[str, _Passage]) -> None:
        """One writer: what may pass now passes, held frames join when they are let go. Half-close waits for the held."""
        turns: asyncio.Queue[_Passage | None] = asyncio.Queue(maxsize=64)
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(self._pump(call, turns, flight), name="relay pump")
            held: set[asyncio.Task[None]] = set()

            async def let_go(passage: _Passage) -> None:
                await passage.release()
                await turns.put(passage)

            async for message in requests:
                passage = _Passage(self, message)
                if passage.held is None or self.addon.order == "keep":
                    await turns.put(passage)
                else:
                    task = tasks.create_task(let_go(passage), name="relay hold")
                    held.add(task)
                    task.add_done_callback(held.discard)
            if held:
                await asyncio.wait(held)
            await turns.put(None)
            await pump

    @staticmethod
    async def _pump(call: Any, turns: asyncio.Queue[_Passage | None], flight: dict[str, _Passage]) -> None:
        while (passage := await turns.get()) is not None:
            if passage.held is not None:
                await passage.release()
            if passage.frame is not None:
                before = flight.pop(passage.frame.id, None)
                if before is not None:
                    before.lost("the client sent the frame again on the same stream")
                flight[passage.frame.id] = passage
                passage.leaves()
            try:
                await call.write(passage.message)
            except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
                return  # the server has ended the call: its reader sees how, and tells the client
        await call.done_writing()

    def _match(self, reply: bytes, flight: dict[str, _Passage]) -> _Passage | None:
        try:
            answer = oip.unpack_stream_reply(reply)
        except WireError:
            return None  # not ours to judge: it passes as it is
        passage = flight.pop(answer.id, None)
        if passage is not None:
            passage.replied(answer.error)
            passage.overheard(answer)
        return passage

    async def _any(
        self, method: str, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """A method of which nothing is known: unary when its client half-closes at once, else a stream both ways."""
        messages = aiter(requests)
        first = [message async for message in _at_most(messages, 1)]
        more = asyncio.ensure_future(anext(messages, None))
        await asyncio.wait({more}, timeout=PEEK_S)
        if first and more.done() and more.result() is None:
            call = self._channel.unary_stream(method)(first[0], **self._outgoing(context))
        else:

            async def outgoing() -> AsyncIterator[bytes]:
                for message in first:
                    yield message
                second = await more
                if second is not None:
                    yield second
                    async for message in messages:
                        yield message

            call = self._channel.stream_stream(method)(outgoing(), **self._outgoing(context))
        try:
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
            async for reply in call:
                yield reply
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                await context.abort(code, await call.details() or "", tuple(await call.trailing_metadata() or ()))
        finally:
            call.cancel()
            more.cancel()

    @staticmethod
    def _outgoing(context: grpc.aio.ServicerContext) -> dict[str, Any]:
        """The client's metadata and deadline, less what belongs to the hop."""
        metadata = tuple(
            (key, value) for key, value in context.invocation_metadata() or ()
            if key not in OWN_HEADERS and not key.startswith("grpc-")
        )  # fmt: skip
        return {"metadata": metadata, "timeout": context.time_remaining()}


class _Passage:
    """One message of the client on its way through, with its books."""

    def __init__(self, relay: Relay, message: bytes) -> None:
        self.message = message
        self.frame: Frame | None = None
        """None: no frame that could be accounted for, so it passes and the server shall judge it"""
        self.held: Awaitable[Forward] | None = None
        self._relay = relay
        self._addon = relay.addon
        self._listen: Callable[[Frame, Reply], None] | None = getattr(relay.addon, "reply", None)
        self._times = {"relay_in": now_ns()}
        try:
            frame = oip.unpack_request(message)
        except WireError:
            relay.unaccounted += 1
            return
        if not frame.id:
            relay.unaccounted += 1
            return
        self.frame = frame
        forward = self._addon.request(frame, message)
        if isinstance(forward, Forward):
            self._take(forward)
        else:
            self.held = forward

    def _take(self, forward: Forward) -> None:
        self.message, self._why, self._payload_bytes = forward.message, forward.why, forward.payload_bytes

    async def release(self) -> None:
        """Ends when a held message may go on; `message` is then what goes on."""
        if self.held is not None:
            held, self.held = self.held, None
            self._take(await held)

    def leaves(self) -> None:
        assert self.frame is not None
        self._times["relay_out"] = now_ns()
        self._relay._ledger.sent(
            self.frame.id, self.frame.attempt, self._addon.kind, self.frame.rows,
            payload_bytes=self._payload_bytes, why=self._why,
        )  # fmt: skip

    def replied(self, refusal: str | None) -> None:
        """An answer came, or the server's refusal in-band: then no row of it was computed."""
        assert self.frame is not None
        self._times["reply_in"] = now_ns()
        if refusal is None:
            self._relay._ledger.answered(self.frame.id, self.frame.attempt)
        else:
            self.lost(refusal)

    def overheard(self, reply: Reply | bytes) -> None:
        """To the addon that listens; a failure of its own ends no conversation of others."""
        if self._listen is None:
            return
        assert self.frame is not None
        try:
            self._listen(self.frame, oip.unpack_reply(reply) if isinstance(reply, bytes) else reply)
        except Exception:
            log.exception("%s: the addon failed at the answer, which passes", self.frame.id)

    def lost(self, reason: str) -> None:
        assert self.frame is not None
        self._relay._ledger.lost(self.frame.id, self.frame.attempt, reason)

    def done(self) -> None:
        assert self.frame is not None
        self._times["reply_out"] = now_ns()
        self._relay._telemetry.span(self.frame.id, self.frame.attempt, **self._times)


async def _at_most(messages: AsyncIterator[bytes], n: int) -> AsyncIterator[bytes]:
    for _ in range(n):
        message = await anext(messages, None)
        if message is None:
            return
        yield message
