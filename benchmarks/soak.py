"""Does the edge server grow? `make bench-soak`, or with `--minutes`.

Half of what the server can do, by streams that come and go, beside unary calls, calls that are cancelled, frames that no server
could answer and frames that expire: once a second its memory, descriptors and threads are read from /proc. What it has in the
last quarter is held against the second: the first is for caches to fill. Writes docs/results/soak.json and soak.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.overload import Load, heavy_edge  # noqa: E402
from splitcore.node import new_event_loop  # noqa: E402
from splitcore.wire import oip  # noqa: E402
from splitcore.wire.channel import aio_channel  # noqa: E402

STREAM_S = 5.0
"""a stream's life"""
DEADLINE_MS = 1000.0


def sizes(pid: int) -> dict[str, float]:
    """Of a process, from /proc."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "resident_mib": int(status["VmRSS"].split()[0]) / 1024,
        "descriptors": float(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())),
        "threads": float(status["Threads"]),
    }


async def misbehave(load: Load, target: str, until: float) -> int:
    """Unary calls, of which some are wrong, some cannot be in time, and some are cancelled, on channels that come and go."""
    asked = 0
    while time.monotonic() < until:
        async with aio_channel(target) as channel:
            ask = channel.unary_unary(oip.path(oip.INFER))
            for number in range(40):
                asked += 1
                message = (load.message(f"soak/{number}"), b"\xff" * 100, load.message("x" * 600))[number % 3]
                call = ask(message, timeout=0.001 if number % 5 == 1 else 10)
                if number % 7 == 2:
                    call.cancel()
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                    await call
                await asyncio.sleep(0.02)
    return asked


async def measure(load: Load, target: str, pid: int, seconds: float) -> dict[str, Any]:
    await load.capacity(1.0)
    rate = await load.capacity(2.0) / 2
    start = time.monotonic()
    until = start + seconds
    misbehaving = asyncio.create_task(misbehave(load, target, until))
    samples: list[dict[str, float]] = []
    sent = in_time = 0

    async def sample() -> None:
        while True:
            samples.append(sizes(pid))
            await asyncio.sleep(1)

    sampling = asyncio.create_task(sample())
    while (left := until - time.monotonic()) > 0:
        seen = await load.offer(rate, min(STREAM_S, left))
        sent, in_time = sent + seen.sent, in_time + seen.in_time
    sampling.cancel()
    asked = await misbehaving
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[3 * quarter :]
    grew = {name: statistics.median(s[name] for s in last) - statistics.median(s[name] for s in second) for name in samples[0]}
    return {
        "seconds": seconds, "frames_per_s": rate, "sent": sent, "in_time": in_time, "unary_calls": asked,
        "first": samples[0], "last": samples[-1], "grew_from_the_second_quarter_to_the_last": grew,
        "curve": samples[:: max(1, len(samples) // 60)],
    }  # fmt: skip


def written(found: dict[str, Any]) -> str:
    lines = "".join(f"| {name} | {value} |\n" for name, value in found.items() if name != "curve")
    when = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} x86-64 cores shared with the clients"
    return f"# The edge server over time\n\n`make bench-soak`, {when}.\n\n{__doc__ or ''}\n| what | value |\n|---|---|\n{lines}"


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="of load")] = 30.0,
    out: Annotated[Path, typer.Option(help="folder for soak.json and soak.md")] = ROOT / "docs" / "results",
) -> None:
    """Says by how much the server grew."""
    with heavy_edge() as (artefact, ready), asyncio.Runner(loop_factory=new_event_loop) as runner:
        load = Load(artefact, ready["grpc"], DEADLINE_MS, ready["pid"])
        found = runner.run(measure(load, ready["grpc"], ready["pid"], minutes * 60))
    print(json.dumps({name: value for name, value in found.items() if name != "curve"}, indent=1))
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "soak.md").write_text(written(found))


if __name__ == "__main__":
    typer.run(main)
