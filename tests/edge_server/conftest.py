"""A real edge server, in this process or in its own, and a client that speaks to it over loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from edge_server.node import EdgeConfig, EdgeServer
from splitcore.artefact import Artefact
from splitcore.codec import CodecConfig, fit
from splitcore.frame import Frame, Reply
from splitcore.journal import read
from splitcore.latent import F32
from splitcore.nn.tail import load_tail
from splitcore.wire import oip
from splitcore.wire.channel import aio_channel
from splitcore.wire.tls import ClientTls


class Served:
    """What the server should say: the artefact, and its tail in plain torch."""

    def __init__(self, folder: Path) -> None:
        self.artefact = Artefact(folder)
        self.name = self.artefact.manifest.name
        self.spec = self.artefact.latent
        self._tail = load_tail(self.artefact)

    def latents(self, rows: int, seed: int = 0) -> F32:
        """[rows, *shape] inside the calibrated range."""
        lo, hi = self.spec.per_channel(self.spec.lo), self.spec.per_channel(self.spec.hi)
        unit = np.random.default_rng(seed).random((rows, *self.spec.shape), np.float32)
        return lo + unit * (hi - lo)

    def scores(self, latents: F32) -> F32:
        with torch.inference_mode():
            return self._tail(torch.from_numpy(latents)).numpy()

    def frame(self, frame_id: str, latents: F32 | None = None, codec: CodecConfig | str = "identity", **fields: Any) -> Frame:
        encoder = fit(codec, self.spec)
        stack = self.latents(1) if latents is None else latents
        payloads = tuple(encoder.encode(stack))
        return Frame(**{"id": frame_id, "payloads": payloads, "codec": encoder.name, "shape": self.spec.shape, **fields})


class Peer:
    """A client: raw bytes over a real channel."""

    def __init__(self, address: str, tls: ClientTls | None = None) -> None:
        self.channel = aio_channel(address, tls=tls)

    async def call(self, method: str, message: bytes = b"", **options: Any) -> bytes:
        return await self.channel.unary_unary(oip.path(method))(message, **options)

    async def infer(self, frame: Frame, **options: Any) -> Reply:
        return oip.unpack_reply(await self.call(oip.INFER, oip.pack_request(frame), **options))

    def stream(self, **options: Any) -> grpc.aio.StreamStreamCall:
        return self.channel.stream_stream(oip.path(oip.STREAM))(**options)

    async def ask(self, messages: Sequence[Frame | bytes], **options: Any) -> list[Reply]:
        """Writes everything, half-closes, reads to the end. The stream must end with OK."""
        call = self.stream(**options)
        for message in messages:
            await call.write(message if isinstance(message, bytes) else oip.pack_request(message))
        await call.done_writing()
        replies = [oip.unpack_stream_reply(message) async for message in call]
        assert await call.code() == grpc.StatusCode.OK
        return replies


@dataclass
class Edge:
    """A server in this process, on this test's event loop, and its client."""

    server: EdgeServer
    peer: Peer
    log: Path

    def logged(self) -> list[str]:
        return [row["id"] for row in read(self.log)]


StartEdge = Callable[..., Awaitable[Edge]]


@pytest.fixture(scope="session")
def served(digits_artefact: Path) -> Served:
    return Served(digits_artefact)


@pytest.fixture
async def start_edge(digits_artefact: Path, tmp_path: Path) -> AsyncIterator[StartEdge]:
    """Starts servers with given settings, and drains them at the end."""
    started: list[Edge] = []

    async def start(**settings: Any) -> Edge:
        fixed = {"artefact": digits_artefact, "state": tmp_path / "edge", "device": "cpu", "threads": 1, "grace_s": 0.2}
        config = EdgeConfig(**{"tail": "eager", **fixed, **settings})
        server = EdgeServer(config)
        await server.start()
        edge = Edge(server, Peer(server.address), config.state / "server.jsonl")
        started.append(edge)
        return edge

    yield start
    for edge in started:
        await edge.peer.channel.close()
        await edge.server.drain()


@pytest.fixture
async def edge(start_edge: StartEdge) -> Edge:
    return await start_edge()


class Process:
    """`python -m edge_server` as its own process."""

    def __init__(self, artefact: Path, state: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "edge_server", "--artefact", str(artefact), "--state", str(state)]
        command += ["--threads", "1", "--device", "cpu", "--tail", "eager", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.state = state
        self._process = subprocess.Popen(command, env=environment, text=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        # the path is the child's alone: an older file of another process was removed when this one started
        while not self._is_ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"the edge server ended with {self._process.returncode}: {self._process.communicate()[0]}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            ready = json.loads((self.state / "ready.json").read_text())
        except FileNotFoundError:
            return False
        self.grpc, self.control = ready["grpc"], ready["control"]
        return bool(ready["pid"] == self._process.pid)

    def pid(self) -> int:
        return self._process.pid

    def signal(self, signum: int) -> None:
        self._process.send_signal(signum)

    def wait(self) -> int:
        self.output = self._process.communicate(timeout=60)[0]
        return self._process.returncode

    @property
    def running(self) -> bool:
        return self._process.poll() is None


@pytest.fixture
def start_process(digits_artefact: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*flags: str) -> Process:
        started.append(Process(digits_artefact, tmp_path / "edge", *flags))
        return started[-1]

    yield start
    for process in started:
        if process.running:
            process.signal(signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="session")
def process(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One server process for all tests that leave it as it was."""
    running = Process(digits_artefact, tmp_path_factory.mktemp("edge"), "--grace-s", "0.2")
    yield running
    running.signal(signal.SIGTERM)
    assert running.wait() == 0, running.output
