"""A phone in this process or in its own, real edge servers to kill, and a tiny peer that answers as a test wants it to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from mobile_client.passes import PassRequest
from mobile_client.phone import Phone, PhoneConfig
from mobile_client.record import ATTEMPTS, FRAMES, PassRecord
from splitcore.artefact import Artefact
from splitcore.errors import WireError
from splitcore.frame import Frame
from splitcore.journal import Row, read
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import oip
from splitcore.wire.channel import server_options

Write = Callable[[bytes], Awaitable[None]]
Conversation = Callable[["TinyPeer", AsyncIterator[Frame], Write], Awaitable[None]]


@dataclass
class TinyPeer:
    """A server of the protocol whose side of each stream is a conversation that the test wrote."""

    artefact: Artefact
    conversation: Conversation
    handshake: str | None = None
    latent_shape: tuple[int, ...] = ()
    address: str = ""
    received: list[Frame] = field(default_factory=list)
    streams: int = 0
    most_in_flight: int = 0
    raw: Write | None = None
    """writes bytes as they are on the newest stream"""
    context: Any = None
    """of the newest stream"""
    _server: Any = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=server_options())
        methods = {
            oip.MODEL_METADATA: grpc.unary_unary_rpc_method_handler(self._metadata),
            oip.STREAM: grpc.stream_stream_rpc_method_handler(self._stream),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(oip.SERVICE, methods),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _metadata(self, message: bytes, context: Any) -> bytes:
        if self.handshake is not None:
            await context.send_initial_metadata(((oip.ARTEFACT_METADATA, self.handshake),))
        shape = self.latent_shape or self.artefact.latent.shape
        latent = oip.TensorMetadata(oip.INPUT, "FP32", (-1, *shape))
        return oip.pack_model_metadata(oip.ModelMetadata(self.artefact.manifest.name, inputs=(latent,)))

    async def _stream(self, messages: AsyncIterator[bytes], context: Any) -> None:
        self.streams += 1
        self.context, self.raw = context, context.write
        in_flight = Counter[str]()

        async def frames() -> AsyncIterator[Frame]:
            async for message in messages:
                frame = oip.unpack_request(message)
                self.received.append(frame)
                in_flight[frame.id] += 1
                self.most_in_flight = max(self.most_in_flight, len(in_flight))
                yield frame

        async def write(message: bytes) -> None:
            with contextlib.suppress(WireError):
                in_flight.pop(oip.unpack_stream_reply(message).id, None)
            await context.write(message)

        await self.conversation(self, frames(), write)


StartPeer = Callable[..., Awaitable[TinyPeer]]


@pytest.fixture
async def start_peer(digits_artefact: Path) -> AsyncIterator[StartPeer]:
    peers: list[TinyPeer] = []

    async def start(conversation: Conversation, **fields: Any) -> TinyPeer:
        peer = TinyPeer(Artefact(digits_artefact), conversation, **fields)
        await peer.start()
        peers.append(peer)
        return peer

    yield start
    for peer in peers:
        await peer.stop()


@dataclass
class Done:
    """The journals of a pass that ended."""

    folder: Path

    @property
    def frames(self) -> list[Row]:
        return list(read(self.folder / FRAMES))

    @property
    def attempts(self) -> list[Row]:
        return list(read(self.folder / ATTEMPTS))

    def by_event(self) -> dict[str, set[tuple[str, int]]]:
        """(id, attempt) of each event; an event that is there twice fails the test."""
        found: dict[str, set[tuple[str, int]]] = {"sent": set(), "answered": set(), "lost": set()}
        for row in self.attempts:
            key = (row["id"], row["attempt"])
            assert key not in found[row["event"]]
            found[row["event"]].add(key)
        return found


RunPass = Callable[..., Awaitable[Done]]


@pytest.fixture
async def run_pass(digits_artefact: Path, tmp_path: Path) -> RunPass:
    """A pass of a phone in this process. Checks what must hold after every pass that ends well."""

    async def run(target: str, *, patience_s: float = 5.0, collector: str | None = None, **fields: Any) -> Done:
        request = PassRequest.model_validate({"run": "r", "count": 20, "load": {"kind": "offline"}} | fields)
        folder = tmp_path / "passes" / request.run
        telemetry = Telemetry("client", collector)
        phone = Phone(PhoneConfig(artefact=digits_artefact, target=target, patience_s=patience_s), telemetry)
        record = PassRecord(folder, request)
        done = Done(folder)
        try:
            await phone.run(record)
            assert sorted(row["sequence"] for row in done.frames) == list(range(request.count))
        finally:
            record.close()
            phone.close()
            telemetry.close()
            events = done.by_event()
            assert events["answered"].isdisjoint(events["lost"])
            assert events["answered"] | events["lost"] == events["sent"]
        return done

    return run


class Process:
    """A node in a process of its own."""

    def __init__(self, module: str, state: Path, *arguments: str) -> None:
        self.state = state
        state.mkdir(parents=True, exist_ok=True)
        ready = state / "ready.json"
        ready.unlink(missing_ok=True)
        self.output = state / "output"
        with self.output.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, "--state", str(state), *arguments],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
            )
        for _ in range(600):
            if ready.exists():
                break
            if self.popen.poll() is not None:
                raise AssertionError(f"{module} ended with {self.popen.returncode}: {self.output.read_text()}")
            time.sleep(0.05)
        else:
            self.popen.kill()
            raise AssertionError(f"{module} did not get ready: {self.output.read_text()}")
        self.ready = json.loads(ready.read_text())

    @property
    def url(self) -> str:
        return f"http://{self.ready['control']}"

    def http(self) -> httpx.Client:
        token = (self.state / "token").read_text().strip()
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=20.0)

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def end(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout=20)


StartProcess = Callable[..., Process]


@pytest.fixture
def start_process() -> Iterator[StartProcess]:
    started: list[Process] = []

    def start(module: str, state: Path, *arguments: str) -> Process:
        process = Process(module, state, *arguments)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.popen.poll() is None:
            process.kill()
