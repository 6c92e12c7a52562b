"""The edge server at five times what it can do. `make bench-overload`, or with `--seconds` of overload.

Four clients, each a stream on a connection of its own, send frames of eight rows as a Poisson process would, whatever comes
back. Every frame has a deadline, and the client's own clock judges: from the moment a frame was given to the channel to its
answer. The tail is heavy and the frames are small, so that it is the tail that is overloaded, not this machine's loopback.
Wanted: memory bounded; of the accepted frames 99 % answered within their deadline; four fifths of the capacity used for them;
the others told why, at once; and after it, everything answered again. Writes docs/results/overload.json and overload.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import _load, _tails  # noqa: E402
from splitcore.artefact import Artefact  # noqa: E402
from splitcore.codec import fit  # noqa: E402
from splitcore.frame import Frame  # noqa: E402
from splitcore.node import new_event_loop  # noqa: E402
from splitcore.wire import oip  # noqa: E402
from splitcore.wire.channel import aio_channel  # noqa: E402
from testbed.nodes import Process  # noqa: E402

ROWS = 8
CLIENTS = 4
IN_FLIGHT = 32
AT_ONCE = ("rows wait before it", "Exceeds maximum queue size: ")
"""words of a refusal before a frame was accepted"""
PUSHED_OUT = "made room"


@dataclass
class Seen:
    """What became of the frames."""

    sent: int = 0
    in_time: int = 0
    late: int = 0
    refused_at_once: Counter[str] = field(default_factory=Counter)
    refused_later: Counter[str] = field(default_factory=Counter)
    told_after_ms: list[float] = field(default_factory=list)
    """from a frame's sending to its refusal at once"""
    resident_mib: list[float] = field(default_factory=list)
    """of the server, sampled"""

    @property
    def accepted(self) -> int:
        return self.in_time + self.late + sum(self.refused_later.values())

    @property
    def unanswered(self) -> int:
        return self.sent - self.accepted - sum(self.refused_at_once.values())


class Load:
    """Frames of one artefact towards one server."""

    def __init__(self, artefact: Artefact, target: str, deadline_ms: float, pid: int) -> None:
        self._target, self._deadline_s, self._pid = target, deadline_ms / 1e3, pid
        spec = artefact.latent
        codec = fit("uniform8/channel", spec)
        latents = np.random.default_rng(0).random((ROWS, *spec.shape), np.float32)
        self._payloads = tuple(codec.encode(latents * np.float32(min(spec.hi))))
        self._frame: dict[str, Any] = {"payloads": self._payloads, "codec": codec.name, "shape": spec.shape}
        self._seed = 0

    def message(self, frame_id: str, *, deadline: bool = True) -> bytes:
        timeout_us = int(self._deadline_s * 1e6) if deadline else None
        return oip.pack_request(Frame(id=frame_id, timeout_us=timeout_us, **self._frame))

    async def capacity(self, seconds: float) -> float:
        """Frames per second when there are always enough of them."""
        messages = [self.message(f"bench/capacity/{n}", deadline=False) for n in range(64)]
        return await _load.stream_rate(self._target, messages, IN_FLIGHT, seconds)

    async def offer(self, per_second: float, seconds: float) -> Seen:
        """So many frames, by all clients together."""
        seen = Seen()
        self._seed += 1
        sampling = asyncio.create_task(self._sample(seen))
        await asyncio.gather(*(self._client(f"{self._seed}-{n}", per_second / CLIENTS, seconds, seen) for n in range(CLIENTS)))
        sampling.cancel()
        return seen

    async def _client(self, name: str, per_second: float, seconds: float, seen: Seen) -> None:
        rng = np.random.default_rng(hash(name) % 2**32)
        arrivals = np.cumsum(rng.exponential(1 / per_second, int(per_second * seconds)))
        sent: dict[str, float] = {}
        async with aio_channel(self._target) as channel:
            call = channel.stream_stream(oip.path(oip.STREAM))()
            start = time.perf_counter()

            async def write() -> None:
                for number, at in enumerate(arrivals):
                    if (wait := start + at - time.perf_counter()) > 0:
                        await asyncio.sleep(wait)
                    frame_id = f"bench/{name}/{number}"
                    sent[frame_id] = time.perf_counter()
                    seen.sent += 1
                    await call.write(self.message(frame_id))
                await call.done_writing()

            writing = asyncio.create_task(write())
            while (message := await call.read()) is not grpc.aio.EOF:
                reply = oip.unpack_stream_reply(message)
                self._judge(reply.error, time.perf_counter() - sent.pop(reply.id), seen)
            await writing

    def _judge(self, error: str | None, took_s: float, seen: Seen) -> None:
        if error is None:
            if took_s <= self._deadline_s:
                seen.in_time += 1
            else:
                seen.late += 1
        elif any(words in error for words in AT_ONCE) and PUSHED_OUT not in error:
            seen.refused_at_once[" ".join(error.split()[:4])] += 1
            seen.told_after_ms.append(took_s * 1e3)
        else:
            seen.refused_later["made room" if PUSHED_OUT in error else " ".join(error.split()[:4])] += 1

    async def _sample(self, seen: Seen) -> None:
        while True:
            resident = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            seen.resident_mib.append(resident / 2**20)
            await asyncio.sleep(0.2)


async def measure(
    artefact: Artefact, target: str, pid: int, seconds: float, factor: float, deadline_ms: float
) -> dict[str, Any]:
    load = Load(artefact, target, deadline_ms, pid)
    await load.capacity(1.0)
    slices = [await load.capacity(max(1.0, seconds / 20)) for _ in range(3)]
    during = await load.offer(factor * max(slices), seconds)
    after = await load.offer(max(slices) / 2, max(2.0, seconds / 10))
    # before and after: whoever else is on the machine should not make the capacity look small
    capacity = max(*slices, await load.capacity(max(1.0, seconds / 20)))
    told = during.told_after_ms or [0.0]
    return {
        "capacity_per_s": capacity, "offered_per_s": during.sent / seconds, "seconds": seconds, "deadline_ms": deadline_ms,
        "rows_a_frame": ROWS, "clients": CLIENTS, "sent": during.sent, "accepted": during.accepted, "in_time": during.in_time,
        "late": during.late, "refused_at_once": dict(during.refused_at_once), "refused_later": dict(during.refused_later),
        "unanswered": during.unanswered, "accepted_in_time": during.in_time / max(during.accepted, 1),
        "goodput_over_capacity": during.in_time / seconds / capacity,
        "told_after_ms": {"p50": float(np.quantile(told, 0.5)), "p99": float(np.quantile(told, 0.99))},
        "resident_mib": {"first": during.resident_mib[0], "most": max(during.resident_mib)},
        "afterwards": {
            "sent": after.sent, "in_time": after.in_time, "refused": dict(after.refused_at_once + after.refused_later),
        },
    }  # fmt: skip


def written(found: dict[str, Any]) -> str:
    lines = "".join(f"| {name} | {value if isinstance(value, dict) else round(value, 3)} |\n" for name, value in found.items())
    when = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} x86-64 cores shared with the clients"
    return (
        f"# The edge server at five times its capacity\n\n`make bench-overload`, {when}.\n"
        f"Load average at the end {os.getloadavg()[0]:.1f}.\n\n{__doc__ or ''}\n| what | value |\n|---|---|\n{lines}"
    )


@contextlib.contextmanager
def heavy_edge() -> Iterator[tuple[Artefact, dict[str, Any]]]:
    """An edge server of one thread for the tail `heavy`: the artefact, and what the server says when it is ready."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        artefact = _tails.make("heavy", folder)
        process = Process("edge_server", folder / "edge", [
            "--artefact", str(artefact.folder), "--device", "cpu", "--threads", "1", "--tail", "eager", "--trust", _tails.TRUST,
        ])  # fmt: skip
        try:
            yield artefact, process.wait_ready()
        finally:
            process.stop()


def main(
    seconds: Annotated[float, typer.Option(min=1, help="of overload")] = 60.0,
    factor: Annotated[float, typer.Option(min=1, help="offered, as a multiple of what the server can do")] = 5.0,
    deadline_ms: Annotated[float, typer.Option(min=1, help="of every frame")] = 250.0,
    out: Annotated[Path, typer.Option(help="folder for overload.json and overload.md")] = ROOT / "docs" / "results",
) -> None:
    """Says what became of every frame."""
    with heavy_edge() as (artefact, ready), asyncio.Runner(loop_factory=new_event_loop) as runner:
        found = runner.run(measure(artefact, ready["grpc"], ready["pid"], seconds, factor, deadline_ms))
    print(json.dumps(found, indent=1))
    out.mkdir(parents=True, exist_ok=True)
    (out / "overload.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "overload.md").write_text(written(found))


if __name__ == "__main__":
    typer.run(main)
