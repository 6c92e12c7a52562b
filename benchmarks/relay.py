"""What the relay costs a frame, beside nginx and a proxy written with grpc.aio. `make bench-relay`.

A grpc.aio client on uvloop asks an echo of inference messages: directly, through nginx's `grpc_pass`, through a grpc.aio proxy,
through a splice in Python that looks at nothing, through the relay as it passes frames (each of them in its ledger on the
disk), and while an addon puts a latent of another length into each. Frames of 8 and 64 KiB, as messages of one stream and as
unary calls, one and sixteen in flight. Every path gets a slice of each cell in turn, in another order each round; ratios are of
slices of one round, and the figure is their median. Writes benchmarks/results/relay.json and docs/results/relay.md.
`--rounds N` for fewer or more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from _path import request  # noqa: E402

from splitcore.node import new_event_loop  # noqa: E402
from splitcore.wire import oip  # noqa: E402
from splitcore.wire.channel import aio_channel  # noqa: E402

PATHS = ("direct", "nginx", "grpc.aio", "floor", "relay", "rewriting")
PASSING_BAR, REWRITING_BAR, ADDED_BAR = 1.15, 1.2, 0.5
ROUNDS = 24
MESSAGES = {1: 60, 16: 320}
"""of a slice, by messages in flight"""
console = Console(width=120)


@dataclass(frozen=True)
class Cell:
    kind: str
    size: int
    in_flight: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.size >> 10} KiB, {self.in_flight} in flight"


CELLS = [Cell(kind, size, n) for kind in ("stream", "unary") for size in (8 << 10, 64 << 10) for n in (1, 16)]
Times = list[float]


class Conversation:
    """One path: its channel and its stream, open from the first slice to the last."""

    def __init__(self, port: int) -> None:
        self._channel = aio_channel(f"127.0.0.1:{port}", 64 << 20)
        self._infer = self._channel.unary_unary(oip.path(oip.INFER))
        self._stream = self._channel.stream_stream(oip.path(oip.STREAM))()
        self._number = 0

    async def slice(self, cell: Cell, messages: int) -> Times:
        """Microseconds of each message, from its sending to its answer."""
        frames = [request(self._number + i, bytes(cell.size)) for i in range(messages)]
        self._number += messages
        if cell.kind == "unary":
            return await self._calls(frames, cell.in_flight)
        return await self._messages(frames, cell.in_flight)

    async def _calls(self, frames: list[bytes], in_flight: int) -> Times:
        times: Times = []
        waiting = iter(frames)

        async def caller() -> None:
            for frame in waiting:
                start = time.perf_counter()
                await self._infer(frame)
                times.append((time.perf_counter() - start) * 1e6)

        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return times

    async def _messages(self, frames: list[bytes], in_flight: int) -> Times:
        times: Times = []
        sent: list[float] = []
        waiting = iter(frames)

        async def send() -> None:
            frame = next(waiting, None)
            if frame is not None:
                sent.append(time.perf_counter())
                await self._stream.write(frame)

        for _ in range(in_flight):
            await send()
        for number in range(len(frames)):
            if await self._stream.read() is grpc.aio.EOF:
                raise RuntimeError(f"expected {len(frames)} answers, got {number}: {await self._stream.details()}")
            times.append((time.perf_counter() - sent[number]) * 1e6)
            await send()
        return times

    async def close(self) -> None:
        await self._channel.close()


@contextlib.contextmanager
def process(*command: str) -> Iterator[int]:
    """A process that prints its port."""
    running = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert running.stdout is not None
        yield int(running.stdout.readline())
    finally:
        running.kill()
        running.wait()


@contextlib.contextmanager
def nginx(upstream: int) -> Iterator[int]:
    """nginx with one worker, connections to the server kept."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(f"""
            worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 1024; }}
            http {{
              access_log off; client_max_body_size 0; keepalive_requests 1000000000;
              client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
              uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
              upstream echo {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000000; }}
              server {{ listen 127.0.0.1:{port} http2; location / {{ grpc_pass grpc://echo; grpc_read_timeout 1h; }} }}
            }}""")
        running = subprocess.Popen(["nginx", "-c", str(config), "-e", f"{folder}/error.log"])
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.02)
            yield port
        finally:
            running.terminate()
            running.wait()


@contextlib.asynccontextmanager
async def conversations(echo: int, paths: tuple[str, ...]) -> AsyncIterator[dict[str, Conversation]]:
    here = Path(__file__).parent
    with contextlib.ExitStack() as started:
        ports = {"direct": echo}
        for name in paths[1:]:
            if name == "nginx":
                ports[name] = started.enter_context(nginx(echo))
            elif name == "grpc.aio":
                ports[name] = started.enter_context(process(str(here / "_aio_proxy.py"), f"127.0.0.1:{echo}"))
            else:
                ports[name] = started.enter_context(process(str(here / "_path.py"), name, f"127.0.0.1:{echo}"))
        open_ones = {name: Conversation(port) for name, port in ports.items()}
        yield open_ones
        for conversation in open_ones.values():
            await conversation.close()


Medians = dict[tuple[str, Cell], list[float]]


async def measure(rounds: int, paths: tuple[str, ...]) -> Medians:
    """The median of each slice [rounds], by path and cell."""
    medians: Medians = defaultdict(list)
    with process(str(Path(__file__).parent / "_path.py"), "echo", "") as echo:
        async with conversations(echo, paths) as open_ones:
            for conversation in open_ones.values():
                for cell in CELLS:
                    await conversation.slice(cell, 4 * cell.in_flight)
            for number in track(range(rounds), "rounds", console=console):
                for cell in CELLS:
                    for turn in range(len(paths)):
                        name = paths[(number + turn) % len(paths)]
                        times = await open_ones[name].slice(cell, MESSAGES[cell.in_flight])
                        medians[name, cell].append(statistics.median(times))
    return medians


def ratio(medians: Medians, cell: Cell, name: str, to: str, less: str | None = None) -> float:
    """Of the slices of one round, the median over the rounds; `less`: both after taking off that path's."""
    base = medians[less, cell] if less else [0.0] * len(medians[name, cell])
    pairs = list(zip(medians[name, cell], medians[to, cell], base, strict=True))
    if less:  # differences may be next to nothing in one round: medians first
        return statistics.median(a - b for a, _, b in pairs) / statistics.median(t - b for _, t, b in pairs)
    return statistics.median(a / t for a, t, _ in pairs)


def results(medians: Medians, paths: tuple[str, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def add(name: str, value: float, bar: float | None, unit: str) -> None:
        found.append({"name": name, "value": round(value, 3), "unit": unit, "bar": bar, "better": "lower"})

    for cell in CELLS:
        for name in paths:
            add(f"{cell}: {name}, median", statistics.median(medians[name, cell]), None, "us")
        if "nginx" in paths:
            add(f"{cell}: floor to nginx", ratio(medians, cell, "floor", "nginx"), None, "ratio")
            add(f"{cell}: relay to nginx", ratio(medians, cell, "relay", "nginx"), PASSING_BAR, "ratio")
            add(f"{cell}: rewriting to nginx", ratio(medians, cell, "rewriting", "nginx"), REWRITING_BAR, "ratio")
        add(f"{cell}: added, relay to grpc.aio", ratio(medians, cell, "relay", "grpc.aio", "direct"), ADDED_BAR, "ratio")
    return found


def rows(medians: Medians, paths: tuple[str, ...]) -> list[list[str]]:
    lines = []
    for cell in CELLS:
        line = [str(cell), *(f"{statistics.median(medians[name, cell]):,.0f}" for name in paths)]
        if "nginx" in paths:
            line += [f"{ratio(medians, cell, name, 'nginx'):.2f}" for name in ("floor", "relay", "rewriting")]
        lines.append([*line, f"{ratio(medians, cell, 'relay', 'grpc.aio', 'direct'):.2f}"])
    return lines


def columns(paths: tuple[str, ...]) -> list[str]:
    to_nginx = ["floor / nginx", "relay / nginx", "rewriting / nginx"] if "nginx" in paths else []
    return ["", *paths, *to_nginx, "added: relay / grpc.aio"]


def written(medians: Medians, paths: tuple[str, ...], rounds: int, missed: list[dict[str, Any]]) -> str:
    head = columns(paths)
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows(medians, paths)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    absent = "" if "nginx" in paths else "\nnginx was not there: its columns are left out.\n"
    over = (
        "\n".join(f"* over its bar of {entry['bar']}: {entry['name']}, {entry['value']}" for entry in missed) or "All within."
    )
    here = f"{os.cpu_count()} cores ({platform.machine()})"
    versions = f"grpcio {grpc.__version__}, Python {platform.python_version()}"
    to_nginx = f"relay {PASSING_BAR} and rewriting {REWRITING_BAR} of nginx (one worker, connections kept)"
    bars = f"{to_nginx}, added {ADDED_BAR} of grpc.aio's"
    return f"""# What the relay costs a frame

`make bench-relay` writes this file and [relay.json](../../benchmarks/results/relay.json). {date.today()}, {here}, shared by
client, proxy and echo, all on loopback, with a load of {os.getloadavg()[0]:.0f} in all; {versions}.

Medians in microseconds from a message's sending to its answer, which has its size; {rounds} rounds of slices in turn, ratios of
slices of one round. `floor`: bytes from one socket to the other on the same event loop, and nothing else, so what any proxy in
Python costs at least. `relay`: every frame read and in the ledger on the disk. `rewriting`: an addon puts a latent that is
1,000 bytes longer into every frame. The last column is what the relay adds to `direct` over what a proxy written with grpc.aio
adds.

Bars, for each cell: {bars}.
{absent}
{table}

{over}
"""


async def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    rounds = options.rounds
    paths = PATHS
    if shutil.which("nginx") is None:
        console.print("nginx is not installed (Debian: apt install nginx): its column and its bars are left out")
        paths = tuple(name for name in PATHS if name != "nginx")
    medians = await measure(rounds, paths)
    table = Table(*columns(paths), box=None, header_style="bold")
    for line in rows(medians, paths):
        table.add_row(*line)
    console.print(table)
    found = results(medians, paths)
    missed = [entry for entry in found if entry["bar"] is not None and entry["value"] > entry["bar"]]
    for entry in missed:
        console.print(f"over its bar: {entry['name']}: {entry['value']} > {entry['bar']}")
    if not options.dry:
        (ROOT / "benchmarks" / "results" / "relay.json").write_text(json.dumps(found, indent=1) + "\n")
        (ROOT / "docs" / "results" / "relay.md").write_text(written(medians, paths, rounds, missed))
    return len(missed) > 0


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        sys.exit(runner.run(main()))
