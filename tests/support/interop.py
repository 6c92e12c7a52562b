"""gRPC's TestService with bytes for messages, what a call shall come to in its metadata; and the relay in front of it.

`make relay-statuses` (`python tests/support/interop.py 10000`) makes that many calls through the relay, rejected, aborted,
cancelled, late and good ones of all kinds, and counts those that came to another status than they should.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from adversary.addons.recorder import Pass
from adversary.ledger import Ledger
from adversary.relay import Addon, Relay
from splitcore.node import new_event_loop
from splitcore.telemetry.spans import Telemetry
from splitcore.wire.channel import aio_channel, server_options

SERVICE = "/grpc.testing.TestService/"
KINDS = ("UnaryCall", "StreamingOutputCall", "StreamingInputCall", "FullDuplexCall")
CODES = list(grpc.StatusCode)
LIMIT = 64 << 20
CORE = "Internal error from Core"
"""what a grpc.aio client says when a call ends while it writes, whatever the status was (grpc#36066)"""
LOCAL = "Locally cancelled by application!"
"""what it says when it cancelled a call by itself: also where one ended while an iterator's last message was sent"""


@dataclass
class TestService(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Asked by metadata: `code` to end with it, `message` in it, `wait` seconds before."""

    __test__ = False
    cancelled: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    peers: Counter[str] = field(default_factory=Counter)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        kinds = {
            "UnaryCall": grpc.unary_unary_rpc_method_handler(self.unary),
            "EmptyCall": grpc.unary_unary_rpc_method_handler(self.unary),
            "StreamingOutputCall": grpc.unary_stream_rpc_method_handler(self.output),
            "StreamingInputCall": grpc.stream_unary_rpc_method_handler(self.input),
            "FullDuplexCall": grpc.stream_stream_rpc_method_handler(self.duplex),
        }
        return kinds.get(details.method.removeprefix(SERVICE))

    async def _end(self, context: grpc.aio.ServicerContext) -> None:
        asked = self.metadata = dict(context.invocation_metadata() or ())
        self.timeout = context.time_remaining()
        try:
            await asyncio.sleep(float(asked.get("wait", 0)))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        code = next((code for code in CODES if code.name == asked.get("code")), grpc.StatusCode.OK)
        context.set_trailing_metadata((("x-grpc-test-echo-trailing-bin", b"\x0a\xff"), ("last", "1")))
        if code is not grpc.StatusCode.OK:
            await context.abort(code, asked.get("message-bin", b"").decode(), (("grpc-status-details-bin", b"\x00\x01\xfe"),))

    async def unary(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if request[:4] == b"zip ":
            context.set_compression(grpc.Compression.Gzip)
        await context.send_initial_metadata((("x-grpc-test-echo-initial", "initial"),))
        await self._end(context)
        return request

    async def output(self, request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for size in map(int, request.split()):
            yield bytes(size)
        await self._end(context)

    async def input(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        got = [str(len(request)) async for request in requests]
        await self._end(context)
        return " ".join(got).encode()

    async def duplex(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request
        await self._end(context)


@dataclass
class Relayed:
    service: Any
    relay: Relay
    server: grpc.aio.Server
    port: int
    books: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def relayed(folder: Path, service: Any, addon: Addon | None = None, **options: Any) -> AsyncIterator[Relayed]:
    """The service, and the relay before it; `options` are the relay's."""
    server = grpc.aio.server(options=server_options(LIMIT), compression=options.pop("compression", None))
    server.add_generic_rpc_handlers((service,))
    credentials = options.pop("credentials", None)
    add = server.add_insecure_port if credentials is None else lambda address: server.add_secure_port(address, credentials)
    upstream = f"127.0.0.1:{add('127.0.0.1:0')}"
    await server.start()
    ledger = Ledger(folder / "queries.jsonl")
    relay = Relay(upstream, addon or Pass(), ledger, Telemetry("adversary", None), **options)
    try:
        yield Relayed(service, relay, server, await relay.start("127.0.0.1:0"), folder / "queries.jsonl")
    finally:
        await relay.close()
        await server.stop(None)
        ledger.close()


async def messages(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


def begin(channel: grpc.aio.Channel, kind: str, **options: Any) -> Any:
    """A call of that kind with a small message or three."""
    match kind:
        case "StreamingOutputCall":
            return channel.unary_stream(SERVICE + kind)(b"5 6", **options)
        case "StreamingInputCall":
            return channel.stream_unary(SERVICE + kind)(messages(b"a", b"b"), **options)
        case "FullDuplexCall":
            return channel.stream_stream(SERVICE + kind)(messages(b"a", b"b"), **options)
    return channel.unary_unary(SERVICE + kind)(b"a", **options)


async def one(channel: grpc.aio.Channel, rng: random.Random) -> tuple[str, grpc.StatusCode, grpc.StatusCode, str]:
    """(what, the status that it should have, the one that it had, its details) of a call."""
    what = rng.choice(("status", "status", "unknown", "cancelled", "late"))
    kind = rng.choice(KINDS)
    match what:
        case "status":
            wanted = rng.choice(CODES)
            call = begin(channel, kind, metadata=(("code", wanted.name),))
        case "unknown":
            wanted = grpc.StatusCode.UNIMPLEMENTED
            call = channel.unary_unary(rng.choice((SERVICE + "UnimplementedCall", "/no.Service/Call")))(
                bytes(rng.choice((1, 9000)))
            )
        case "cancelled":
            wanted = grpc.StatusCode.CANCELLED
            call = begin(channel, kind, metadata=(("wait", "60"),))
            asyncio.get_running_loop().call_later(rng.random() * 0.03, call.cancel)
        case _:
            wanted = grpc.StatusCode.DEADLINE_EXCEEDED
            call = begin(channel, kind, metadata=(("wait", "60"),), timeout=0.02 + 0.05 * rng.random())
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    code, details = await call.code(), await call.details() or ""
    by_itself = what == "late" and code is grpc.StatusCode.CANCELLED and details == LOCAL
    if (code is grpc.StatusCode.INTERNAL and CORE in details) or by_itself:
        # the client's own races, with or without a relay: the status was lost in its library
        code = wanted
    return f"{what} {kind}", wanted, code, details


async def wrong_statuses(target: str, calls: int, at_once: int = 16, seed: int = 0) -> Counter[str]:
    """What came out wrong, by what it was."""
    wrong: Counter[str] = Counter()
    rng = random.Random(seed)
    left = iter(range(calls))
    async with aio_channel(target, LIMIT) as channel:

        async def caller() -> None:
            for _ in left:
                what, wanted, got, details = await one(channel, rng)
                if got is not wanted:
                    wrong[f"{what}: expected {wanted.name}, got {got.name}: {details}"] += 1

        await asyncio.gather(*(caller() for _ in range(at_once)))
    return wrong


async def main(calls: int, seed: int = 0) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with relayed(Path(folder), TestService()) as between:
            wrong = await wrong_statuses(between.target, calls, seed=seed)
    print(f"{sum(wrong.values())} wrong statuses in {calls} calls")
    for what, count in wrong.most_common():
        print(f"{count:6} {what}")
    return len(wrong) > 0


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        sys.exit(runner.run(main(*map(int, sys.argv[1:]))))
