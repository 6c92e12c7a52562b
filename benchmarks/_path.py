"""What the relay's benchmark runs as processes, the server at the end and the proxies: `python _path.py ROLE UPSTREAM`.

`echo` answers each ModelInfer and ModelStreamInfer with a message of the size that it got; `relay` is ours, with its books on
the disk, `rewriting` the same with an addon that puts a latent of another length into every frame; `floor` hands bytes from
one socket to the other and looks at none: what a proxy on this event loop costs at least. Each prints its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adversary.addons.recorder import Pass
from adversary.ledger import Kind, Ledger
from adversary.relay import Addon, Forward, Order, Relay
from splitcore.frame import Frame
from splitcore.node import keep_memory, new_event_loop
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import oip
from splitcore.wire.channel import server_options

ID = "bench/client/%06d"
LONGER = 1000
"""bytes that the rewriting addon adds to a latent"""
_ID_AT = slice(2, 2 + len(ID % 0))


def request(number: int, payload: bytes) -> bytes:
    return oip.pack_request(Frame(id=ID % number, payloads=(payload,), codec="float16", shape=(len(payload) // 2,)))


def reply(message: bytes) -> bytes:
    """A ModelInferResponse with the frame's id and as many bytes, as UINT8; no parser's time is measured at the server."""
    content = bytes(len(message) - 64)
    field, shape = oip.pack_field, oip._varint(len(content))
    tensor = field(1, b"echo") + field(2, b"UINT8") + field(3, shape)
    return message[_ID_AT.start - 2 : _ID_AT.stop] + field(5, tensor) + field(6, content)


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method == oip.path(oip.INFER):
            return grpc.unary_unary_rpc_method_handler(self.infer)
        return grpc.stream_stream_rpc_method_handler(self.stream)

    async def infer(self, message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return reply(message)

    async def stream(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for message in messages:
            yield oip.pack_field(oip.INFER_RESPONSE, reply(message))


class Rewriting:
    kind: Kind = "forwarded"
    order: Order = "overtake"

    def request(self, frame: Frame, message: bytes) -> Forward:
        payload = bytes(frame.payloads[0]) + bytes(LONGER)
        return Forward(oip.replace_payloads(message, [payload]), "rewritten", len(payload))

    async def close(self) -> None:
        return


class Splice(asyncio.Protocol):
    """One of two sockets; what it receives goes out at the other."""

    def __init__(self, port: int, other: Splice | None = None) -> None:
        self._port, self._other, self._early = port, other, list[bytes]()
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = cast(asyncio.Transport, transport).write
        if self._other is None:
            self._other = other = Splice(self._port, self)
            self._connecting = asyncio.ensure_future(self._connect(other))

    async def _connect(self, other: Splice) -> None:
        await asyncio.get_running_loop().create_connection(lambda: other, "127.0.0.1", self._port)
        self._connecting = None
        other.write(b"".join(self._early))

    def data_received(self, data: bytes) -> None:
        if self._connecting is None and self._other is not None:
            self._other.write(data)
        else:
            self._early.append(data)


async def main(role: str, upstream: str) -> None:
    keep_memory()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Ledger(Path(folder) / "queries.jsonl")) as ledger:
        if role == "echo":
            server = grpc.aio.server(options=server_options(64 << 20))
            server.add_generic_rpc_handlers((Echo(),))
            print(server.add_insecure_port("127.0.0.1:0"), flush=True)
            await server.start()
        elif role == "floor":
            port = int(upstream.rpartition(":")[2])
            floor = await asyncio.get_running_loop().create_server(lambda: Splice(port), "127.0.0.1", 0)
            print(floor.sockets[0].getsockname()[1], flush=True)
        else:
            addon: Addon = Rewriting() if role == "rewriting" else Pass()
            relay = Relay(upstream, addon, ledger, Telemetry("adversary", None))
            print(await relay.start("127.0.0.1:0"), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
