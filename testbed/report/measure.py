"""From a run to its report: every number is computed here, and nothing is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from statistics import fmean
from typing import Any, Literal

from splitcore.artefact import Artefact
from testbed.report import by_cut, detected, live, security, stages, timing
from testbed.report.agreement import Unsplit, clean_of
from testbed.report.model import (
    ArtefactSummary,
    Attack,
    AttackBytes,
    BytesOnWire,
    Clocks,
    FrameCounts,
    GpuPath,
    Latency,
    Ledger,
    LedgerCounts,
    PassSummary,
    Queries,
    Report,
    Stages,
    Telemetry,
)
from testbed.report.read import Pass, Run
from testbed.report.reconcile import SHOWN, Counted, queries_of, reconcile, reconcile_at_one_end
from testbed.report.statistics import median, percentiles, rate_of, success_over
from testbed.report.success import accuracy, reference_of, success_of

BASELINES = ("noise", "record", "probe")


@dataclass(frozen=True)
class Measured:
    """A pass with the stages of its frames."""

    of: Pass
    stages_ns: dict[str, dict[str, int]]
    """by id of an answered frame with all of its spans"""

    @cached_property
    def holds(self) -> bool:
        return self.of.info.kind == "attack" and bool(self.of.sessions)


def measured(run: Run) -> list[Measured]:
    return [Measured(p, _stages(p, run)) for p in run.passes]


def report_of(run: Run, passes: Sequence[Measured], artefact: Artefact | None, missing_artefact: str = "") -> Report:
    clocks = stages.clocks_of(run.spans, run.clocks)
    notes = [missing_artefact] if missing_artefact else []
    attacks = [_attack(m, run, clocks) for m in passes if m.of.info.kind == "attack"]
    notes += [
        f"{attack.name}: no clean pass of its samples went through {attack.codec}, so nothing says which of its frames count"
        for attack in attacks
        if attack.reference is None
    ]
    clean = [m for m in passes if m.of.info.kind == "clean"]
    holding = [m for m in passes if m.holds]
    unsplit = Unsplit.of(artefact)
    return Report(
        run=run.folder.resolve().name,
        scenario=run.scenario,
        versions=run.versions,
        artefact=ArtefactSummary(
            handshake=run.handshake or (artefact.manifest.handshake if artefact else ""),
            manifest=artefact.manifest.model_dump(mode="json") if artefact else run.manifest,
        ),
        clean=clean_of(run.passes, unsplit, notes),
        attacks=attacks,
        hold=live.families(attacks),
        client=[live.client_side(m.of) for m in (*clean[:1], *(m for m in passes if m.of.info.kind == "attack"))],
        latency_ms=Latency(
            clean=stages.summary((t for m in clean[:1] for t in m.stages_ns.values()), clocks),
            attacked=stages.summary((t for m in holding for t in m.stages_ns.values()), clocks),
        ),
        bytes_on_wire=BytesOnWire(
            clean=_payload_up(clean[:1]),
            attacked=_payload_up(holding),
            client_messages_clean=_mean(f.bytes_up for m in clean[:1] for f in m.of.frames if f.answered),
            client_messages_attacked=_mean(f.bytes_up for m in holding for f in m.of.frames if f.answered),
        ),
        ledger=_ledger(run),
        clocks=clocks,
        telemetry=Telemetry(
            frames=sum(f.answered for p in run.passes for f in p.frames),
            full=sum(len(m.stages_ns) for m in passes),
            dropped={node: run.dropped.get(node) for node in clocks.nodes},
            passes={m.of.info.name: rate_of(len(m.stages_ns), sum(f.answered for f in m.of.frames)) for m in passes},
        ),
        passes=[_summary(p) for p in run.passes],
        by_cut=[by_cut.of(p) for p in run.passes if p.info.cuts and p.info.kind != "attack"],
        security=security.of(run),
        detectors=detected.detections(run.passes, attacks),
        timing=timing.of(run.passes, notes),
        gpu_path=gpu_path(),
        notes=notes,
    )


def gpu_path() -> GpuPath | Literal["never"]:
    """What the last run on a GPU left beside the edge server."""
    record = resources.files("edge_server") / "gpu_path.json"
    return GpuPath.model_validate_json(record.read_bytes()) if record.is_file() else "never"


def _stages(of: Pass, run: Run) -> dict[str, dict[str, int]]:
    found = {}
    for frame in of.frames:
        if frame.answered:
            attempt = of.answered_attempt.get(frame.id, frame.attempts)
            split = run.spans.stages_ns(frame.id, attempt, relayed=of.info.adversary and not of.info.opaque)
            if split is not None:
                found[frame.id] = split
    return found


def _attack(m: Measured, run: Run, clocks: Clocks) -> Attack:
    p, info = m.of, m.of.info
    reference = reference_of(p, run.passes)
    success = success_of(p, reference)
    held = live.held_of(p, success)
    queries = queries_of(p.ledger)
    phases: Counter[str] = Counter()
    for entry in queries:
        for _, phase, count in entry.asks:
            phases[phase] += count
    parameters: dict[str, Any] = dict(info.attack or {})
    kind = str(parameters.pop("kind", info.name))
    difference = None
    if success.claimed.value is not None and success.asr.value is not None:
        difference = success.claimed.value - success.asr.value
    return Attack(
        name=info.name,
        kind=kind,
        baseline=kind in BASELINES,
        parameters=parameters,
        **info.model_dump(include={"point", "norm", "eps", "eps_unit", "eps_absolute", "feedback", "budget", "codec", "order"}),
        **info.model_dump(include={"hold_deadline_ms", "share"}),
        reference=reference.name if reference else None,
        asr=success.asr,
        asr_raw=success.raw,
        asr_claimed=success.claimed,
        claimed_minus_measured=difference,
        accuracy=accuracy(p.frames),
        curve=success_over(success.needed, success.asr.n, info.budget if queries else None),
        asr_held=held.asr,
        asr_in_time=live.in_time(p, success),
        hold_curve=live.hold_curve(held, info.hold_deadline_ms),
        hold_ms=percentiles(live.holds_ms(p)),
        held_at_once=live.held_at_once(p, run.spans),
        hold_to_success_ms=percentiles(held.to_success_ms),
        within=live.within(held, info.budget if queries else None, info.hold_deadline_ms),
        queries=Queries(
            total=sum(entry.rows for entry in queries),
            median_of_successes=median(
                s.first_success for s in p.sessions if s.frame in success.fooled and s.first_success is not None
            ),
            by_phase=dict(phases.most_common()),
        ),
        requests=len(queries),
        wall_s=info.wall_s,
        frames=_frames(p),
        distance=median(s.distance for s in p.sessions if s.frame in success.fooled and s.distance is not None),
        distance_sent=median(s.distance for s in p.sessions if s.distance is not None),
        latency_ms=stages.summary(m.stages_ns.values(), clocks),
        latency_held_ms=_held_alone(m, clocks),
        bytes=_bytes(p),
    )


def _held_alone(m: Measured, clocks: Clocks) -> Stages | None:
    held = [t for frame, t in m.stages_ns.items() if live.is_held(m.of, frame)]
    return stages.summary(held, clocks) if 0 < len(held) < len(m.stages_ns) else None


def _frames(p: Pass) -> FrameCounts:
    reasons = Counter(session.reason for session in p.sessions)
    reasons.update({e.id: e.why for e in p.ledger.values() if e.why and e.id not in p.session_of}.values())
    return FrameCounts(
        count=p.info.count,
        answered=sum(f.answered for f in p.frames),
        errors=sum(not f.answered for f in p.frames),
        missing=p.missing,
        late=sum(f.late for f in p.frames),
        held=sum(session.reason != "full" for session in p.session_of.values()),
        forwarded=len({e.id for e in p.ledger.values() if e.kind == "forwarded"}),
        success=sum(session.success for session in p.session_of.values()),
        reasons=dict(reasons.most_common()),
    )


def _bytes(p: Pass) -> AttackBytes:
    n = max(1, p.info.count, len(p.frames))
    asked = sum(e.bytes for e in p.ledger.values() if e.kind == "query")
    return AttackBytes(
        client_messages_per_frame=_mean(f.bytes_up for f in p.frames if f.answered),
        forwarded_per_frame=sum(e.bytes for e in p.ledger.values() if e.kind != "query") / n,
        queries_per_frame=asked / n,
        queries_total=asked,
    )


def _ledger(run: Run) -> Ledger:
    passes: dict[str, LedgerCounts] = {}
    wrong: list[str] = []
    for p in run.passes:
        if p.info.server is None:
            passes[p.info.name], found = reconcile(p.ledger, p.server, p.sessions, p.info.budget)
        else:
            counted = Counted(p.info.server.get("requests"), p.info.server.get("rows"))
            passes[p.info.name], found = reconcile_at_one_end(p.ledger, p.attempts, counted, p.sessions, p.info.budget)
        wrong += [f"{p.info.name}: {line}" for line in found]
    totals = {
        field: sum(getattr(counts, field) for counts in passes.values())
        for field in LedgerCounts.model_fields
        if field not in ("agrees", "against")
    }
    against = next((counts.against for counts in passes.values() if counts.against != "log"), "log")
    return Ledger(
        **totals, against=against, agrees=not wrong, disagreements=wrong[:SHOWN], disagreement_count=len(wrong), passes=passes
    )


def _summary(p: Pass) -> PassSummary:
    counts = _frames(p)
    return PassSummary(
        **p.info.model_dump(
            include={
                "name", "run", "kind", "adversary", "codec", "load", "window", "link",
                "deadline_ms", "wall_s", "device", "artefact_handshake", "count",
            }
        ),
        answered=counts.answered,
        errors=counts.errors,
        missing=counts.missing,
        late=counts.late,
        accuracy=accuracy(p.frames),
    )  # fmt: skip


def _mean(values: Any) -> float | None:
    listed = list(values)
    return fmean(listed) if listed else None


def _payload_up(passes: Sequence[Measured]) -> float | None:
    """Payload bytes up to the server for one frame; None where the ledger does not count them."""
    sent = sum(entry.bytes for m in passes for entry in m.of.ledger.values())
    return sent / sum(max(m.of.info.count, len(m.of.frames)) for m in passes) if sent else None
