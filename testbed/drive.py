"""Drives a scenario through the nodes' control APIs, pass by pass, and keeps what they wrote.

Every pass is a folder that appears with its `pass.json` last, so that a run that was cut off goes on where it was: passes that
are whole stay, the one in the middle is resumed by the client under the same frame ids.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from adversary.pool import Recording
from splitcore import journal
from splitcore.artefact import MANIFEST, Artefact, Manifest
from splitcore.codec import fit
from splitcore.codec.identity import Identity
from splitcore.errors import ArtefactError, ScenarioError
from splitcore.telemetry.collector import Collector
from splitcore.threat import Scale, ThreatModel, absolute_eps
from splitcore.wire.channel import split_address
from testbed.foreign.counts import Counts
from testbed.foreign.server import Foreign
from testbed.nodes import Node, Trio, following, local_nodes, remote_nodes
from testbed.price import PRICE, measure
from testbed.scenario import (
    AttackPass,
    OtherCut,
    Pass,
    ProbePass,
    RecordPass,
    Scenario,
    StreamPass,
    dump_scenario,
    load_scenario,
)
from testbed.security import Arming, arm
from testbed.versions import versions

LESSON_S = 900.0
"""how long an adversary may take to learn before a pass"""


@dataclass(frozen=True)
class Plan:
    """One pass to be made."""

    number: int
    name: str
    kind: str
    configured: Pass | StreamPass | None = None

    @property
    def attack(self) -> Pass | None:
        return None if isinstance(self.configured, StreamPass) else self.configured

    @property
    def stream(self) -> StreamPass | None:
        return self.configured if isinstance(self.configured, StreamPass) else None

    @property
    def folder(self) -> str:
        return f"{self.number:02d}-{self.name}"


def plans(scenario: Scenario) -> list[Plan]:
    """Clean first, then the identity codec, then the streams and the attacks in their order.

    One that goes past the adversary comes before all: the phone compares its timing with that.
    """
    whole: list[tuple[str, str, Pass | StreamPass | None]] = [
        ("clean", "clean", None),
        ("identity", "identity", None),
        *((stream.name, "stream", stream) for stream in scenario.streams),
        *((attack.name, "attack", attack) for attack in scenario.attacks),
    ]
    whole.sort(key=lambda plan: not (isinstance(plan[2], StreamPass) and plan[2].direct))
    return [Plan(number, name, kind, configured) for number, (name, kind, configured) in enumerate(whole)]


def new_run(scenario: Scenario, runs: Path) -> Path:
    """A fresh run directory with the resolved scenario in it."""
    folder = runs / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{scenario.name}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    (folder / "scenario.yaml").write_text(dump_scenario(scenario))
    return folder


def drive(folder: Path, artefact_dir: Path, data_dir: Path | None, console: Console, cut_dirs: Sequence[Path] = ()) -> None:
    """Makes the passes of the scenario in `folder` that are not there yet. Raises LatentbedError."""
    scenario = load_scenario(folder / "scenario.yaml")
    artefact, *others = (Artefact(path) for path in (artefact_dir, *cut_dirs))
    _hold_to(folder / "artefact.json", artefact)
    for number, other in enumerate(others, 1):
        _hold_to(folder / f"cut-{number}.json", other)
    (folder / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n")
    host, port = ("127.0.0.1", None) if scenario.nodes is None else split_address(scenario.nodes.telemetry)
    security = scenario.security
    # nodes that run already have theirs
    arming = Arming() if security is None or scenario.nodes is not None else arm(security, folder / "security")
    collector = Collector(folder / "spans.jsonl", host, port)
    try:
        if scenario.nodes is None:
            states = folder / "nodes"
            with local_nodes(scenario, artefact_dir, states, collector.endpoint, data_dir, cut_dirs, arming) as trio:
                _passes(folder, scenario, artefact, others, trio, console)
        else:
            _passes(folder, scenario, artefact, others, remote_nodes(scenario), console)
    finally:
        collector.close()
    if security is not None and security.level != "clear" and security.price_frames and not (folder / PRICE).exists():
        console.print("what protection costs")
        measure(scenario, artefact_dir, arming, folder, data_dir)
    clocks: dict[str, Any] = {
        node: {"offset_ns": offset.offset_ns, "uncertainty_ns": offset.uncertainty_ns}
        for node, offset in collector.offsets.items()
    }
    (folder / "clocks.json").write_text(json.dumps({**clocks, "dropped": collector.dropped}, indent=1) + "\n")


def _hold_to(path: Path, artefact: Artefact) -> None:
    """The run's artefact is that of its first pass; a run that goes on with another would compare two models."""
    ours = artefact.manifest
    if path.exists():
        began = Manifest.model_validate_json(path.read_bytes())
        if began.handshake != ours.handshake:
            raise ArtefactError(f"this run began with artefact {began.handshake}, {artefact.folder} holds {ours.handshake}")
    else:
        path.write_text((artefact.folder / MANIFEST).read_text())


def _passes(
    folder: Path, scenario: Scenario, artefact: Artefact, others: Sequence[Artefact], trio: Trio, console: Console
) -> None:
    watched = (
        {"phone": trio.client}
        | ({"edge": trio.edge} if isinstance(trio.edge, Node) else {})
        | ({} if trio.adversary is None else {"adversary": trio.adversary})
    )
    pages = ", ".join(f"{name} {node.base}/" for name, node in watched.items())
    console.print(f"watch it: {pages}", style="dim", highlight=False, soft_wrap=True)
    with _progress(console) as progress:
        for plan in plans(scenario):
            into = folder / "passes" / plan.folder
            if (into / "pass.json").exists():
                continue
            _Pass(folder.name, scenario, artefact, others, trio, plan).make(into, progress)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<18}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip


SHARED = {"attack", "threat", "order", "share", "max_held", "sections", "workers", "steal_token"}
"""what of an attack's pass is the adversary's business, as it stands there"""


class _Pass:
    def __init__(
        self, run: str, scenario: Scenario, artefact: Artefact, others: Sequence[Artefact], trio: Trio, plan: Plan
    ) -> None:
        self.whole_run = run
        self.run = f"{run}.{plan.name}"
        self.scenario = scenario
        self.artefact = artefact
        self.trio = trio
        self.plan = plan
        # a foreign server takes latents as they are
        plain = plan.kind == "identity" or scenario.server is not None
        codec = Identity() if plain else scenario.codec or artefact.manifest.codec
        self.codec = fit(codec, artefact.latent)
        self.codec_config = scenario.codec if plan.stream else codec
        self.prepared = [artefact, *others]
        self.attack = plan.attack if isinstance(plan.attack, AttackPass) else None
        self.frames = (plan.configured.frames if plan.configured else None) or scenario.frames
        self.source = scenario.source
        if isinstance(plan.attack, RecordPass) and plan.attack.source is not None:
            self.source = plan.attack.source
        self.direct = plan.stream is not None and plan.stream.direct
        self.timing = self._timing()
        self.policy = None if plan.stream is None else _json(plan.stream.policy)
        self.feedback = "none"
        """what the attack learns from an answer, as the adversary says it: it has the attack's code, this process need not"""
        self.detectors: list[dict[str, Any]] = []
        """what watches at the edge in this pass, each with the action that it takes"""
        self.learned: dict[str, Any] = {}
        """what became of its lesson, likewise"""
        self.scale: dict[str, Any] | None = None
        """what it knows of a foreign server's latents"""
        self.before = Counts()

    def make(self, into: Path, progress: Progress) -> None:
        into.mkdir(parents=True, exist_ok=True)
        self._watch()
        if self.trio.adversary is not None:
            asked = time.monotonic()
            said = self.trio.adversary.put("/behaviour", self._behaviour(), patience_s=LESSON_S)
            self.feedback, self.learned = said.get("feedback", "none"), said.get("learned", {})
            self.scale = said.get("scale")
            if self.learned:
                self.learned["wall_s"] = round(time.monotonic() - asked, 2)
        if isinstance(self.trio.edge, Foreign):
            self.before = self.trio.edge.counts()
        started = time.monotonic()
        self.trio.client.post("/passes", self._request())
        task = progress.add_task(self.plan.name, total=self.frames, note="")
        for done in following(self.trio.client, self.run):
            progress.update(task, completed=done, note=self._note())
        wall_s = time.monotonic() - started
        if self.trio.adversary is not None:
            # ends what is still held, so that the books are closed before they are read
            self.trio.adversary.put("/behaviour", {"kind": "pass"})
        self._collect(into)
        temporary = into / "pass.json.new"
        temporary.write_text(json.dumps(self._description(wall_s), indent=1) + "\n")
        temporary.replace(into / "pass.json")

    def _watch(self) -> None:
        """Every pass is a day of its own to the detectors: what they saw of the one before is forgotten."""
        if not isinstance(self.trio.edge, Node) or not self.trio.edge.get("/detectors")["detectors"]:
            return  # nothing of ours watches
        order = None if self.attack is None else self.attack.detectors
        for edge in self.trio.edges:
            found = edge.put("/detectors", {"order": order})["detectors"]
        settings = [detector["settings"] for detector in found]
        self.detectors = [{**one, "action": order or one["action"]} for one in settings if order != "off"]

    def _note(self) -> str:
        if self.attack is None or self.trio.adversary is None:
            return ""
        sessions = self.trio.adversary.get("/status")["sessions"]
        return f"{sessions.get('success', 0)} fell, {sessions.get('queries', 0):,} queries"

    def _collect(self, into: Path) -> None:
        trio, run = self.trio, self.run
        trio.client.save(f"/passes/{run}/frames", into / "frames.jsonl")
        trio.client.save(f"/passes/{run}/attempts", into / "attempts.jsonl")
        if self.policy is not None:
            trio.client.save(f"/passes/{run}/plan", into / "plan.jsonl")
        if trio.edges:
            _save_logs(trio.edges, into / "server.jsonl", run)
        if trio.adversary is not None and not self.direct:
            trio.adversary.save("/ledger", into / "queries.jsonl", run=run)
            trio.adversary.save("/sessions", into / "sessions.jsonl", run=run)
            if isinstance(self.plan.attack, ProbePass):
                trio.adversary.save("/probes", into / "probes.jsonl", run=run)

    def _behaviour(self) -> dict[str, Any]:
        match self.plan.attack:
            case AttackPass() as attack:
                return {
                    "kind": "attack", "run": self.run, "seed": self.scenario.seed,
                    **attack.model_dump(mode="json", include=SHARED),
                    "source": None if self.scenario.server is not None else self._dump("source"), "pool": self._pool(attack),
                    "calibration": None if attack.calibration is None else f"{self.whole_run}.{attack.calibration}",
                }  # fmt: skip
            case RecordPass():
                return {"kind": "record", "run": self.run}
            case ProbePass() as probe:
                return {"kind": "probe", "run": self.run, "tries": probe.probe}
            case _:
                return {"kind": "pass", "run": self.run}

    def _pool(self, attack: AttackPass) -> Any:
        """A recording goes by the name of its pass in a scenario, and by that of its run at the adversary."""
        if isinstance(attack.pool, Recording):
            return _json(replace(attack.pool, run=f"{self.whole_run}.{attack.pool.run}"))
        return None if attack.pool is None else _json(attack.pool)

    def _request(self) -> dict[str, Any]:
        return {
            "run": self.run, "count": self.frames, "seed": self.scenario.seed,
            "codec": None if self.codec_config is None else _json(self.codec_config), "source": _json(self.source),
            **{key: self._dump(key) for key in ("load", "window", "deadline_ms", "link")},
            **({} if self.policy is None else {"policy": self.policy}),
            **({"direct": True} if self.direct else {}), **({} if self.timing is None else {"timing": self.timing}),
        }  # fmt: skip

    def _dump(self, key: str) -> Any:
        return self.scenario.model_dump(mode="json", include={key})[key]

    def _description(self, wall_s: float) -> dict[str, Any]:
        attack = self.attack
        threat = attack.threat if attack else None
        link = self._dump("link")
        return {
            "name": self.plan.name, "run": self.run, "kind": self.plan.kind,
            "adversary": self.trio.adversary is not None and not self.direct, "codec": self.codec.name, "count": self.frames,
            "load": self._dump("load"), "window": self.scenario.window,
            "link": link if link is None or isinstance(link, str) else json.dumps(link),
            "deadline_ms": self.scenario.deadline_ms,
            "attack": self._of_the_adversary(),
            "opaque": self.scenario.security is not None and self.scenario.security.level == "mtls",
            "policy": self.policy, "timing": self.timing, "cuts": self._cuts(),
            "source": _json(self.source), "detectors": self.detectors,
            "point": threat.point if threat else None, "norm": threat.norm if threat else None,
            "eps": threat.eps if threat else None, "eps_unit": threat.eps_unit if threat else None,
            "eps_absolute": self._eps_absolute(threat) if threat else None,
            "feedback": self.feedback,
            "budget": threat.budget if threat and self.feedback != "none" else None,
            "hold_deadline_ms": threat.deadline_ms if threat else None,
            "share": attack.share if attack else None,
            "order": attack.order if attack else "overtake", "wall_s": wall_s,
            "artefact_handshake": self.artefact.manifest.handshake,
            **self._server(),
        }  # fmt: skip

    def _of_the_adversary(self) -> dict[str, Any] | None:
        match self.plan.attack:
            case AttackPass() as attack:
                return self._parameters(attack)
            case RecordPass():
                return {"kind": "record"}
            case ProbePass() as probe:
                return {"kind": "probe", "tries": probe.probe}
            case None:
                return None

    def _server(self) -> dict[str, Any]:
        """Where the tail ran. A foreign server keeps no log: what it counted in this pass stands for that."""
        edge = self.trio.edge
        if isinstance(edge, Node):
            return {"device": edge.get("/models")["models"][0]["device"]}
        counted = edge.counts().since(self.before)
        return {"device": edge.says, "server": {"says": edge.says, "requests": counted.requests, "rows": counted.rows}}

    def _timing(self) -> dict[str, Any] | None:
        """What the phone is told of it: the pass that it compares with is the first of this codec with nobody on the way, or
        none who holds anything."""
        watch = self.scenario.phone.timing
        if watch is None:
            return None
        baseline = next(one for one in plans(self.scenario) if one.kind == "clean" or (one.stream and one.stream.direct))
        compared = self.plan.number > baseline.number and self.plan.kind != "identity"
        return {**watch.model_dump(), "baseline": f"{self.whole_run}.{baseline.name}" if compared else None}

    def _cuts(self) -> dict[str, str]:
        """What each prepared artefact's frames go through, by its name; empty where there is one alone."""
        if len(self.prepared) == 1:
            return {}
        return {one.manifest.name: fit(self.codec_config or one.manifest.codec, one.latent).name for one in self.prepared}

    def _parameters(self, attack: AttackPass) -> dict[str, Any]:
        """The attack's settings, and where it has them its pool and what it learned from that."""
        found = {"pool": None if attack.pool is None else _json(attack.pool), "learned": self.learned}
        return {**_json(attack.attack), **{key: value for key, value in found.items() if value}}

    def _eps_absolute(self, threat: ThreatModel) -> float | None:
        """None at point `input` for units of the image's own scale, which differ from frame to frame."""
        if threat.point == "input" and threat.eps_unit == "std":
            return None
        spec, step = self.artefact.latent, float(self.codec.step.max())
        if self.scale is not None:
            # what the adversary could know, not what the artefact says
            known = Scale(self.scale["range"] or 0.0, self.scale["std"] or 0.0, step, spec.elements)
            return absolute_eps(threat, known)
        elements = spec.elements
        if threat.point == "input":
            elements = 1
            for n in self.artefact.manifest.input_shape:
                elements *= n
            return absolute_eps(threat, Scale(1.0, 1.0, 0.0, elements))
        return absolute_eps(threat, Scale(spec.range, spec.std, step, elements))


def _save_logs(edges: Sequence[Node], into: Path, run: str) -> None:
    """The log of the one edge as it is; of several one after the other, each row with its edge."""
    if len(edges) == 1:
        edges[0].save("/log", into, run=run)
        return
    temporary = into.with_name(into.name + ".all")
    with temporary.open("wb") as whole:
        for edge in edges:
            edge.save("/log", into, run=run)
            for row in journal.read(into):
                whole.write(orjson.dumps({**row, "edge": edge.control}) + b"\n")
    temporary.replace(into)


def _json(config: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(type(config)).dump_python(config, mode="json")


def check_artefact(scenario: Scenario | OtherCut, runs: Path) -> Path:
    """Where the scenario's artefact is or shall be, or that of one of its further cuts."""
    if scenario.artefact is not None:
        return scenario.artefact
    if scenario.recipe is None:
        raise ScenarioError("expected a recipe or an artefact")
    return runs / "artefacts" / scenario.recipe.stem
