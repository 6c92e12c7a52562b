"""A real phone and a real edge with one artefact: what a frame takes in them, by their own spans."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from splitcore.artefact import FLOAT32, Artefact
from splitcore.codec import CodecConfig
from splitcore.control import load_token
from splitcore.journal import read
from splitcore.link import LinkProfile
from splitcore.telemetry.collector import Collector
from testbed.nodes import Node, NodeError, Process, following
from testbed.plan.probe import floor_ms
from testbed.report.stages import SpanIndex

POLL_S = 0.25
"""seldom: the phone answers on the loop that its frames run on"""
WAITING = LinkProfile(rate_up_kbps=1e8, rate_down_kbps=1e8, delay_ms=10)
"""what frames are timed over: delay alone, which is taken off again. A phone and an edge that wait for one another between
frames, as over any link, are slower than those that never rest: caches are cold, cores asleep, threads must be woken"""
FIRST = 5
"""frames of a timed pass that do not count: a connection is new, buffers grow"""
_CODEC: TypeAdapter[CodecConfig] = TypeAdapter(CodecConfig)
STAGES = ("head", "encode", "decode", "tail")


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """How phone and edge are started."""

    phone_threads: int = 1
    head: str = FLOAT32
    """of the cuts' artefacts"""
    edge_threads: int = 0
    """0: half the cores"""
    edge_device: str = "auto"
    trust: tuple[str, ...] = ()
    """whose code may build a tail"""


@dataclass(frozen=True)
class Pair:
    """A phone that sends to an edge."""

    phone: Node
    edge: Node
    target: str
    runs: list[str] = field(default_factory=list)

    def frames(self, count: int, into: Path, codec: CodecConfig, **request: Any) -> list[dict[str, Any]]:
        """The rows of one pass, in the order of their sequence. Raises NodeError, also where a frame was not answered."""
        run = f"plan.{len(self.runs)}"
        self.runs.append(run)
        self.phone.post("/passes", {"run": run, "count": count, "codec": _CODEC.dump_python(codec, mode="json"), **request})
        for _ in following(self.phone, run, every_s=POLL_S):
            continue
        path = into / f"{run}.jsonl"
        self.phone.save(f"/passes/{run}/frames", path)
        rows = sorted(read(path), key=lambda row: int(row["sequence"]))
        wrong = [row for row in rows if row["error"] is not None or row["attempts"] != 1]
        if wrong or len(rows) != count:
            raise NodeError(f"expected {count} frames answered at once, got {len(rows)}, of them not so: {wrong[:2]}")
        return rows


@contextlib.contextmanager
def pair(artefact: Path, state: Path, options: NodeOptions, telemetry: str | None = None) -> Iterator[Pair]:
    """An edge that serves the artefact, and a phone that sends to it, on loopback; stopped at the end."""
    token_file = state / "token"
    token = load_token(token_file)
    common = ["--artefact", str(artefact), "--token-file", str(token_file)]
    if telemetry is not None:
        common += ["--telemetry", telemetry]
    trust = [text for entry in options.trust for text in ("--trust", entry)]
    with contextlib.ExitStack() as stopping:

        def start(package: str, name: str, *more: str) -> dict[str, Any]:
            process = Process(package, state / name, [*common, *more])
            stopping.callback(process.stop)
            return process.wait_ready()

        edge = start(
            "edge_server", "edge", "--threads", str(options.edge_threads), "--device", options.edge_device, "--tail", "plain",
            *trust,
        )  # fmt: skip
        phone = start(
            "mobile_client", "phone", "--target", edge["grpc"], "--threads", str(options.phone_threads), "--head", options.head
        )
        yield Pair(Node("phone", phone["control"], token), Node("edge", edge["control"], token), edge["grpc"])


def fresh(state: Path) -> Path:
    """An empty folder: a phone goes on with a pass that it finds there."""
    if state.exists():
        shutil.rmtree(state)
    state.mkdir(parents=True)
    return state


@dataclass(frozen=True)
class Timed:
    """A pass with one frame in flight, and one of every sample."""

    frames: list[dict[str, Any]]
    """of the timed pass"""
    stages_ms: dict[str, list[float]]
    """by stage, and `total` without the delay, of each of its frames"""
    shown: list[dict[str, Any]]
    """of the pass of every sample"""
    device: str
    """the edge's, as it says"""
    floor_ms: float
    """shortest empty call to it"""


def timed(artefact: Artefact, state: Path, options: NodeOptions, codec: CodecConfig, *, frames: int, samples: int) -> Timed:
    """Through a phone and an edge of their own. Raises NodeError."""
    spans = fresh(state) / "spans.jsonl"
    with contextlib.closing(Collector(spans)) as collector, pair(artefact.folder, state, options, collector.endpoint) as nodes:
        # all samples first: what they warm up is warm when the time is taken
        shown = nodes.frames(samples, state, codec, load={"kind": "offline"}, window=16)
        rows = nodes.frames(frames + FIRST, state, codec, link=asdict(WAITING))[FIRST:]
        device = str(nodes.edge.get("/models")["models"][0]["device"])
        floor = floor_ms(nodes.target)
    index = SpanIndex(read(spans), {})
    stages: dict[str, list[float]] = {name: [] for name in (*STAGES, "total")}
    for row in rows:
        one = index.stages_ns(row["id"], row["attempts"], relayed=False)
        if one is None:
            raise NodeError(f"{artefact.manifest.name}: expected the spans of {row['id']} from phone and edge, got not all")
        for name in stages:
            stages[name].append(one[name] / 1e6 - (2 * WAITING.delay_ms if name == "total" else 0))
    return Timed(rows, stages, shown, device, floor)
