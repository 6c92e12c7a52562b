"""Nodes under attack as processes, what they take of the machine, and a good client that must be served all the while."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import torch

from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.control import load_token
from splitcore.frame import Frame
from splitcore.latent import F32
from splitcore.nn.tail import load_tail
from splitcore.wire import oip
from splitcore.wire.channel import sync_channel
from testbed.nodes import Process

MIB = 1 << 20
PATIENCE_S = 60.0


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    resident_bytes: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        resident, threads = int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"])
        return cls(resident, threads, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))


class Besieged:
    """A node's process."""

    def __init__(self, package: str, state: Path, *arguments: str) -> None:
        self.process = Process(package, state, list(arguments))
        self.ready = self.process.wait_ready()
        self.state = state
        self.token = {"Authorization": f"Bearer {load_token(state / 'token')}"}

    @property
    def grpc(self) -> str:
        return str(self.ready["grpc"])

    @property
    def control(self) -> str:
        return str(self.ready["control"])

    def footprint(self) -> Footprint:
        return Footprint.of(self.process.popen.pid)

    def put(self, path: str, body: Any) -> None:
        reply = httpx.put(f"http://{self.control}{path}", json=body, headers=self.token, timeout=PATIENCE_S, trust_env=False)
        assert reply.status_code == 200, reply.text

    def healthy(self) -> None:
        reply = httpx.get(f"http://{self.control}/healthz", timeout=PATIENCE_S, trust_env=False)
        assert reply.status_code == 200

    @contextmanager
    def stands(self, *, grows_mib: float = 48) -> Iterator[Footprint]:
        """After the body it runs as before: no thread more (but a few of gRPC's pool), no descriptor, little memory.

        The process must have been through the like before, so that what is made once is made.
        """
        before = self.footprint()
        yield before
        eventually(lambda: self.process.popen.poll() is not None or self._as(before, grows_mib))
        assert self.process.popen.poll() is None, self.process.tail()
        after = self.footprint()
        assert self._as(before, grows_mib), f"{self.process.package}: {before} before, {after} after\n{self.process.tail()}"

    def _as(self, before: Footprint, grows_mib: float) -> bool:
        now = self.footprint()
        return (
            now.resident_bytes < before.resident_bytes + grows_mib * MIB
            and now.threads <= before.threads + 8
            and now.descriptors <= before.descriptors + 12
        )

    def said(self) -> str:
        """Its log so far."""
        return (self.state / "log.txt").read_text(errors="replace")

    def stop(self) -> None:
        assert self.process.stop() == 0, self.process.tail()


def eventually(holds: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Waits until it holds; False when it did not."""
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


class Good:
    """A client that does everything right, and knows the right answers."""

    def __init__(self, folder: Path) -> None:
        self.artefact = Artefact(folder)
        self.spec = self.artefact.latent
        self._tail = load_tail(self.artefact)
        self._numbers = itertools.count()
        lo, hi = self.spec.per_channel(self.spec.lo), self.spec.per_channel(self.spec.hi)
        self.latents: F32 = lo + np.random.default_rng(0).random((4, *self.spec.shape), np.float32) * (hi - lo)

    def frame(self, codec: str = "identity", rows: int = 1, run: str = "good", **fields: Any) -> Frame:
        encoder = fit(codec, self.spec)
        payloads = tuple(encoder.encode(self.latents[:rows]))
        number = next(self._numbers)
        return Frame(id=f"{run}/phone/{number}", payloads=payloads, codec=encoder.name, shape=self.spec.shape, **fields)

    def seeds(self) -> list[bytes]:
        """Good requests of several codecs, with and without what is optional."""
        frames = [
            self.frame(codec, rows, run="mutated")
            for codec in ("identity", "uniform4/channel", "float16+zstd")
            for rows in (1, 2)
        ]
        frames.append(self.frame("uniform8/tensor/sample", run="mutated", timed=True, attempt=3, timeout_us=10**9))
        frames.append(self.frame("jpeg90" if self.spec.shape[0] <= 4 else "uniform3/tensor", run="mutated", labels_only=True))
        return [oip.pack_request(frame) for frame in frames]

    def is_served(self, address: str, *, patience_s: float = PATIENCE_S, stream: bool = True, exact: bool = True) -> None:
        """Unary and on a stream, on a new connection: the tail's own scores, `exact` unless an attack may have turned them."""
        frames = [self.frame(rows=3), self.frame(rows=2)]
        with torch.inference_mode():
            expected = self._tail(torch.from_numpy(self.latents[:3])).numpy()
        with sync_channel(address) as channel:
            infer = channel.unary_unary(oip.path(oip.INFER))
            answers = [oip.unpack_reply(infer(oip.pack_request(frames[0]), timeout=patience_s, wait_for_ready=True))]
            if stream:
                call = channel.stream_stream(oip.path(oip.STREAM))
                messages = call(iter([oip.pack_request(frames[1])]), timeout=patience_s, wait_for_ready=True)
                answers += map(oip.unpack_stream_reply, messages)
        assert len(answers) == 1 + stream
        for frame, answer in zip(frames, answers, strict=False):
            assert (answer.id, answer.error) == (frame.id, None)
            assert answer.scores is not None
            assert answer.scores.shape == expected[: frame.rows].shape
            if exact:
                np.testing.assert_allclose(answer.scores, expected[: frame.rows], rtol=1e-3, atol=1e-3)


def asked(channel: grpc.Channel, messages: Sequence[bytes], timeout: float = 300) -> list[bytes]:
    """All of them on one stream, half-closed; every answer until the server ends it."""
    return list(channel.stream_stream(oip.path(oip.STREAM))(iter(messages), timeout=timeout))
