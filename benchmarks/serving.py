"""The edge server against its ceilings and against MLServer 1.7.1, in one run. `make bench-serving`.

Ceilings: an echo that parses and serialises the same messages, and the bare tail, batch after batch. Everything is a process of
its own with one thread for the tail, in ONNX Runtime wherever there is one; the client shares the two cores with all of them.
Contestants take turns of a second; each ratio is of neighbouring turns, and the median of the rounds counts. MLServer is asked
with and without its adaptive batching, and the better one counts. The tails have random weights. For the rates of streams
against the echo our edge waits up to 2 ms for batches of half of what is in flight; everywhere else it does not wait.
Writes benchmarks/results/serving.json and docs/results/serving.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import _load, _mlserver, _tails  # noqa: E402
from splitcore.artefact import Artefact  # noqa: E402
from splitcore.codec import fit  # noqa: E402
from splitcore.frame import Frame  # noqa: E402
from splitcore.nn.split.whole import tail_graph  # noqa: E402
from splitcore.node import new_event_loop  # noqa: E402
from splitcore.wire import oip  # noqa: E402
from splitcore.wire import open_inference_pb2 as pb  # noqa: E402
from testbed.nodes import Process  # noqa: E402

ROUNDS = int(os.environ.get("ROUNDS", "7"))
TURN_S = 1.0
IN_FLIGHT = 16
MESSAGES = 64
console = Console()


@dataclass
class Book:
    """What is printed, and what is written."""

    results: list[dict[str, Any]] = field(default_factory=list)

    def note(self, name: str, value: float, unit: str, bar: float | None = None, better: str = "higher") -> None:
        self.results.append({"name": name, "value": round(value, 4), "unit": unit, "bar": bar, "better": better})
        missed = bar is not None and (value < bar if better == "higher" else value > bar)
        verdict = "" if bar is None else f" [{'bold red]missed' if missed else 'green]met'}[/], bar {bar}"
        console.print(f"{name}: {value:,.2f} {unit}{verdict}")


@dataclass(frozen=True)
class Scene:
    """One artefact, its tail as an ONNX file, and messages for it."""

    artefact: Artefact
    graph: Path

    def messages(self, codec: str, rows: int) -> list[bytes]:
        """As any client of the protocol would send them: no parameters but the codec's."""
        spec = self.artefact.latent
        lo, hi = spec.per_channel(spec.lo), spec.per_channel(spec.hi)
        rng, coder = np.random.default_rng(0), fit(codec, spec)
        made = []
        for number in range(MESSAGES):
            latents = (lo + rng.random((rows, *spec.shape), np.float32) * (hi - lo)).astype(np.float32)
            frame = Frame(
                id=f"bench/client/{number}", payloads=tuple(coder.encode(latents)), codec=coder.name, shape=spec.shape,
                model=self.artefact.manifest.name,
            )  # fmt: skip
            request = pb.ModelInferRequest.FromString(oip.pack_request(frame))
            del request.parameters[oip.ATTEMPT_KEY]
            made.append(request.SerializeToString())
        return made

    @contextlib.contextmanager
    def edge(self, folder: Path, *options: str) -> Iterator[str]:
        process = Process("edge_server", folder, [
            "--artefact", str(self.artefact.folder), "--device", "cpu", "--threads", "1", "--tail", "onnxruntime",
            "--trust", _tails.TRUST, *options,
        ])  # fmt: skip
        try:
            yield process.wait_ready()["grpc"]
        finally:
            process.stop()

    @contextlib.contextmanager
    def echo(self) -> Iterator[str]:
        command = [sys.executable, str(ROOT / "benchmarks" / "_echo.py"), str(len(self.artefact.manifest.classes))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield process.stdout.readline().strip()
            finally:
                process.kill()

    @contextlib.contextmanager
    def bare(self, rows: int) -> Iterator[Callable[[float], float]]:
        """Asked for seconds, it says rows per second."""
        command = [sys.executable, str(ROOT / "benchmarks" / "_bare.py"), str(self.graph), str(rows)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdout.readline()

            def measure(seconds: float) -> float:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(f"{seconds}\n")
                process.stdin.flush()
                return float(process.stdout.readline())

            try:
                yield measure
            finally:
                process.kill()


def scene(name: str, folder: Path) -> Scene:
    artefact = _tails.make(name, folder)
    graph = folder / f"{name}.onnx"
    onnx.save(tail_graph(artefact, [_tails.TRUST]), graph)
    return Scene(artefact, graph)


def turns(runner: asyncio.Runner, contestants: dict[str, Callable[[], Any]], rounds: int = 0) -> dict[str, list[float]]:
    """By contestant, what each of its turns gave."""
    seen: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds or ROUNDS):
        for name, ask in contestants.items():
            given = ask()
            seen[name].append(runner.run(given) if asyncio.iscoroutine(given) else given)
    return seen


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def saturation(runner: asyncio.Runner, book: Book, name: str, size: int, codec: str, folder: Path, turn_s: float) -> None:
    """One row a message, against the bare tail at the same batch size and threads."""
    one = scene(name, folder)
    messages = one.messages(codec, 1)
    with one.edge(folder / f"{name}-edge", "--max-batch-size", str(size)) as edge, one.bare(size) as bare:
        seen = turns(
            runner,
            {"edge": lambda: _load.stream_rate(edge, messages, 4 * size, turn_s), "bare": lambda: bare(turn_s)},
        )
    book.note(f"{name}: bare tail, batches of {size}", statistics.median(seen["bare"]), "rows/s")
    book.note(f"{name}: edge, one row a message of {len(messages[0])} bytes", statistics.median(seen["edge"]), "rows/s")
    book.note(f"{name}: edge over the bare tail", ratio(seen["edge"], seen["bare"]), "ratio", 0.85)


def echoed(runner: asyncio.Runner, book: Book, one: Scene, rows: int, bar: float, folder: Path) -> None:
    """A stream, against an echo of the same messages."""
    name, messages = one.artefact.manifest.name, one.messages("identity", rows)
    size = IN_FLIGHT // 2 * rows
    batching = (
        "--max-batch-size", str(max(64, size)), "--preferred-batch-size", str(size), "--max-queue-delay-microseconds", "2000",
    )  # fmt: skip
    with one.edge(folder / f"{name}-edge-{rows}", *batching) as edge, one.echo() as echo, one.bare(4 * rows) as bare:
        seen = turns(runner, {
            "edge": lambda: _load.stream_rate(edge, messages, IN_FLIGHT, TURN_S),
            "echo": lambda: _load.stream_rate(echo, messages, IN_FLIGHT, TURN_S),
        })  # fmt: skip
        tail = statistics.median(bare(0.5) for _ in range(3))
    what = f"{name}, stream, {rows} rows a message"
    rate = statistics.median(seen["echo"])
    book.note(f"{what}: echo", rate, "messages/s")
    book.note(f"{what}: edge", statistics.median(seen["edge"]), "messages/s")
    book.note(f"{what}: edge over echo", ratio(seen["edge"], seen["echo"]), "ratio", bar)
    # the echo keeps both cores busy, and the tail needs its time on them too: what nobody could exceed here
    cores = os.cpu_count() or 1
    book.note(
        f"{what}: the ceiling of echo and bare tail on the same {cores} cores", 1 / (1 + rows / tail * rate / cores), "ratio"
    )


def against_mlserver(
    runner: asyncio.Runner, book: Book, one: Scene, bars: tuple[float, float], poisson: float, folder: Path
) -> None:  # fmt: skip
    name, messages = one.artefact.manifest.name, one.messages("identity", 1)
    shape = one.artefact.latent.shape
    with contextlib.ExitStack() as stack:
        edge = stack.enter_context(one.edge(folder / f"{name}-edge-rival"))
        rivals = {
            f"MLServer, {'adaptive batching' if batch else 'no batching'}": stack.enter_context(
                _mlserver.serve(name, one.graph, shape, folder / f"{name}-mlserver-{batch}", batch=batch)
            )
            for batch in (0, 16)
        }
        asks: dict[str, Callable[[], Any]] = {
            "edge, stream": lambda: _load.stream_rate(edge, messages, IN_FLIGHT, TURN_S),
            "edge, unary": lambda: _load.unary_rate(edge, messages, IN_FLIGHT, TURN_S),
        }
        for rival, address in rivals.items():
            asks[rival] = lambda address=address: _load.unary_rate(address, messages, IN_FLIGHT, TURN_S)
        seen = turns(runner, asks)
        for who, rates in seen.items():
            book.note(f"{name}: {who}", statistics.median(rates), "messages/s")
        better = max(rivals, key=lambda rival: statistics.median(seen[rival]))
        book.note(f"{name}: our stream over MLServer's unary", ratio(seen["edge, stream"], seen[better]), "ratio", bars[0])
        book.note(f"{name}: unary over MLServer's unary", ratio(seen["edge, unary"], seen[better]), "ratio", bars[1])
        tails: dict[str, list[float]] = {who: [] for who in ("edge", *rivals)}
        for number in range(ROUNDS):
            for who, address in {"edge": edge, **rivals}.items():
                took = runner.run(_load.unary_latencies_ms(address, messages, poisson, 2 * TURN_S, number))
                tails[who].append(float(np.quantile(took, 0.99)))
        for who, p99 in tails.items():
            book.note(f"{name}: p99 at {poisson:.0f}/s, Poisson, unary: {who}", statistics.median(p99), "ms", better="lower")
        better = min(rivals, key=lambda rival: statistics.median(tails[rival]))
        book.note(f"{name}: p99 over MLServer's", ratio(tails["edge"], tails[better]), "ratio", 0.5, "lower")


def written(book: Book) -> str:
    lines = "".join(
        f"| {r['name']} | {r['value']:,.2f} | {r['unit']} | {'' if r['bar'] is None else r['bar']} |\n" for r in book.results
    )
    return (
        f"# The edge server's speed\n\n`make bench-serving`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} x86-64 cores, "
        f"no GPU, shared with the client.\nLoad average at the end {os.getloadavg()[0]:.1f}: with other work on the machine "
        f"read the ratios, not the rates.\n\n{__doc__ or ''}\n"
        f"| what | value | unit | bar |\n|---|--:|---|--:|\n{lines}"
    )


def main() -> None:
    book = Book()
    with (
        tempfile.TemporaryDirectory() as temporary,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        folder = Path(temporary)
        lenet = scene("lenet", folder)
        echoed(runner, book, lenet, 1, 0.6, folder)
        echoed(runner, book, lenet, 16, 0.85, folder)
        saturation(runner, book, "resnet20", 32, "uniform8/channel", folder, 2 * TURN_S)
        saturation(runner, book, "resnet50", 4, "uniform8/channel", folder, 4 * TURN_S)
        if _mlserver.installed():
            against_mlserver(runner, book, lenet, (3.0, 1.6), 600, folder)
            against_mlserver(runner, book, scene("pooled", folder), (4.0, 2.5), 300, folder)
        else:
            console.print(f"MLServer is not installed in {_mlserver.FOLDER}, not compared: make bench-serving installs it")
    out = ROOT / "benchmarks" / "results" / "serving.json"
    out.write_text(json.dumps(book.results, indent=1) + "\n")
    (ROOT / "docs" / "results" / "serving.md").write_text(written(book))
    console.print(f"written to {out.relative_to(ROOT)} and docs/results/serving.md")


if __name__ == "__main__":
    main()
