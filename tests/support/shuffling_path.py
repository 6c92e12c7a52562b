"""A gRPC proxy that sends messages of a stream twice and in another order, both ways: what a broken middlebox might do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc

from splitcore.wire.channel import aio_channel, server_options

BUFFER = 6
"""messages among which the next one is drawn"""


class ShufflingPath:
    """In front of `target`, on an event loop in a thread of its own. `twice` and `moved` count what it did."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._random = random.Random(7)
        self.twice = self.moved = 0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="shuffling path", daemon=True)
        self._thread.start()
        assert started.wait(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._end = asyncio.Event()
        server = grpc.aio.server(options=server_options())
        server.add_generic_rpc_handlers((_Any(self),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        async with aio_channel(self._target) as self.channel:
            await server.start()
            started.set()
            await self._end.wait()
            await server.stop(None)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def shuffled(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Each at least once; what waits goes when nothing comes for a moment, so that no window runs dry."""
        waiting: list[bytes] = []
        source = aiter(messages)
        coming: asyncio.Future[Any] | None = asyncio.ensure_future(anext(source, None))
        try:
            while coming is not None or waiting:
                if coming is not None:
                    await asyncio.wait({coming}, timeout=0.005 if waiting else None)
                if coming is not None and coming.done():
                    message = coming.result()
                    coming = None if message is None else asyncio.ensure_future(anext(source, None))
                    if message is not None:
                        waiting.append(message)
                        if self._random.random() < 0.3:
                            self.twice += 1
                            waiting.append(message)
                    if len(waiting) < BUFFER and coming is not None:
                        continue
                if waiting:
                    at = self._random.randrange(len(waiting))
                    self.moved += at != 0
                    yield waiting.pop(at)
        finally:
            if coming is not None:
                coming.cancel()


class _Any(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, way: ShufflingPath) -> None:
        self._way = way

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        way, stream = self._way, details.method.endswith("/ModelStreamInfer")

        async def handle(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            metadata = tuple((key, value) for key, value in context.invocation_metadata() or () if key not in ("user-agent",))
            if not stream:
                async for request in requests:
                    call = way.channel.unary_unary(details.method)(request, metadata=metadata, timeout=context.time_remaining())
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await context.send_initial_metadata(tuple(await call.initial_metadata()))
                    try:
                        yield await call
                    except grpc.aio.AioRpcError as error:
                        await context.abort(error.code(), error.details() or "")
                return
            call = way.channel.stream_stream(details.method)(way.shuffled(requests), metadata=metadata)
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
            async for reply in way.shuffled(call):
                yield reply

        return grpc.stream_stream_rpc_method_handler(handle)
