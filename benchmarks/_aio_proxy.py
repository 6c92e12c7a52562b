"""A peer of the relay's benchmark: a proxy as one writes it with grpc.aio, a generic handler and a channel.

Methods known to be unary are called as unary, all others as streams both ways; initial metadata, trailers and status pass.
Run as a process: `python benchmarks/_aio_proxy.py UPSTREAM` prints its port.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitcore.node import new_event_loop
from splitcore.wire import oip
from splitcore.wire.channel import aio_channel, server_options

MAX_MESSAGE_BYTES = 64 << 20
OWN = ("user-agent", "te", "content-type")
UNARY = {oip.path(name) for name in oip.UNARY_METHODS}


class Proxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, upstream: str) -> None:
        self._channel = aio_channel(upstream, MAX_MESSAGE_BYTES)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method
        return grpc.stream_stream_rpc_method_handler(self._unary(method) if method in UNARY else self._stream(method))

    def _unary(self, method: str) -> Any:
        async def handle(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            async for message in requests:
                call = self._channel.unary_unary(method)(message, **outgoing(context))
                try:
                    reply = await call
                    await context.send_initial_metadata(tuple(await call.initial_metadata()))
                    context.set_trailing_metadata(tuple(await call.trailing_metadata()))
                    yield reply
                except grpc.aio.AioRpcError as error:
                    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
                return

        return handle

    def _stream(self, method: str) -> Any:
        async def handle(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            call = self._channel.stream_stream(method)(requests, **outgoing(context))
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
            async for reply in call:
                yield reply
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            if (code := await call.code()) is not grpc.StatusCode.OK:
                await context.abort(code, await call.details() or "", tuple(await call.trailing_metadata() or ()))

        return handle


def outgoing(context: grpc.aio.ServicerContext) -> dict[str, Any]:
    metadata = tuple(
        (key, value) for key, value in context.invocation_metadata() or () if key not in OWN and not key.startswith("grpc-")
    )
    return {"metadata": metadata, "timeout": context.time_remaining()}


async def main(upstream: str) -> None:
    server = grpc.aio.server(options=server_options(MAX_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((Proxy(upstream),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
