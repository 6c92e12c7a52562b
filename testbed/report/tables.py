"""The report as tables: CSV for other programs, Markdown for other people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from testbed.report.format import auc, eps, number, percent, share
from testbed.report.measure import Measured
from testbed.report.model import Percentiles, Rate, Report, Stages
from testbed.report.stages import ON_THE_WAY, STAGES


def attacks_csv(report: Report) -> str:
    rows = []
    for a in report.attacks:
        rows.append(
            {
                **a.model_dump(include={"name", "kind", "baseline", "point", "norm", "eps", "eps_unit", "eps_absolute"}),
                **a.model_dump(include={"feedback", "budget", "codec", "reference"}),
                **_columns("asr", a.asr),
                **_columns("asr_raw", a.asr_raw),
                **_columns("asr_claimed", a.asr_claimed),
                **_columns("accuracy", a.accuracy),
                **_columns("asr_held", a.asr_held),
                "asr_in_time": a.asr_in_time.value if a.asr_in_time else None,
                **a.model_dump(include={"order", "hold_deadline_ms", "share"}),
                **{f"hold_to_success_ms_{k}": v for k, v in a.hold_to_success_ms.model_dump(exclude={"hidden"}).items()},
                "queries_total": a.queries.total,
                "queries_median_of_successes": a.queries.median_of_successes,
                "requests": a.requests,
                "wall_s": a.wall_s,
                **{f"frames_{k}": v for k, v in a.frames.model_dump(exclude={"reasons"}).items()},
                "distance_median": a.distance,
                "distance_sent_median": a.distance_sent,
                **{f"bytes_{k}": v for k, v in a.bytes.model_dump().items()},
            }
        )
    return _csv(rows)


def frames_csv(passes: Sequence[Measured]) -> str:
    rows = []
    for m in passes:
        for f in m.of.frames:
            session, split = m.of.session_of.get(f.id), m.stages_ns.get(f.id)
            rows.append(
                {
                    "pass": m.of.info.name,
                    **f.model_dump(exclude={"scheduled_ns", "answered_ns"}),
                    **{f"{stage}_ms": split[stage] / 1e6 if split else None for stage in STAGES if stage != "total"},
                    "session_success": session.success if session else None,
                    "session_queries": session.queries if session else None,
                    "session_first_success": session.first_success if session else None,
                    "session_reason": session.reason if session else None,
                    "session_distance": session.distance if session else None,
                    "session_held_ms": session.held_ms if session else None,
                }
            )
    return _csv(rows)


def queries_csv(passes: Sequence[Measured]) -> str:
    """One line a request of the ledger, and what the server's log says of it."""
    rows = []
    for m in passes:
        entries = [entry for entry in m.of.ledger.values() if entry.sent_ns is not None]
        start = min((entry.sent_ns for entry in entries if entry.sent_ns is not None), default=0)
        for entry in entries:
            logged = m.of.server.get((entry.id, entry.attempt))
            rows.append(
                {
                    "pass": m.of.info.name,
                    "id": entry.id,
                    "attempt": entry.attempt,
                    "kind": entry.kind,
                    "rows": entry.rows,
                    "frames": len({frame for frame, *_ in entry.asks}) if entry.asks else None,
                    "why": entry.why,
                    "bytes": entry.bytes,
                    "sent_ms": (entry.sent_ns - start) / 1e6 if entry.sent_ns is not None else None,
                    "ended_ms": (entry.ended_ns - start) / 1e6 if entry.ended_ns is not None else None,
                    "outcome": "answered" if entry.answered else "lost",
                    "reason": entry.reason if entry.ends else "no end: the process was killed",
                    "server_rows": logged.rows if logged else None,
                    "detected_rows": len({at for rows in logged.detected.values() for at in rows}) if logged else None,
                }
            )
    return _csv(rows)


def latency_csv(report: Report) -> str:
    series = {"clean": report.latency_ms.clean, "attacked": report.latency_ms.attacked}
    series |= {attack.name: attack.latency_ms for attack in report.attacks}
    return _csv(
        {"pass": name, "stage": stage, **figures.model_dump(exclude={"hidden"}), "reason": figures.hidden}
        for name, stages in series.items()
        for stage, figures in stages.items()
    )


def markdown(report: Report) -> str:
    c, ledger = report.clean, report.ledger
    clean = Rate(value=c.accuracy, low=c.low, high=c.high, count=round((c.accuracy or 0) * c.n), n=c.n)
    lines = [
        f"# {report.scenario.get('name', report.run)}",
        "",
        f"Run `{report.run}`, artefact `{report.artefact.handshake[:60]}`. Shares carry their Wilson 95 % interval.",
        "",
        f"* Clean accuracy: {percent(clean)}",
        f"* Agreement with the unsplit model through the identity codec: {percent(c.agreement_with_unsplit_rate)}",
        f"* {ledger.books[0].upper()}{ledger.books[1:]} {'agree' if ledger.agrees else 'DISAGREE'}: {ledger.rows} rows sent "
        f"({ledger.queries} queries, {ledger.forwarded} forwarded, {ledger.clean} clean), {ledger.lost} of them lost; "
        f"{ledger.server_rows} rows {'in' if ledger.against == 'log' else 'by'} the server's "
        f"{'log' if ledger.against == 'log' else 'counts'}, {ledger.disagreement_count} disagreements",
        "",
        "| attack | point | eps | feedback | budget | ASR | claimed | distance, of all sent | queries | median to success "
        "| requests | wall s |",
        "|---|---|---|---|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    for a in report.attacks:
        name = f"{a.name} (baseline)" if a.baseline else a.name
        cells = [name, a.point or "", eps(a), a.feedback, number(a.budget), percent(a.asr), percent(a.asr_claimed)]
        cells += [f"{number(a.distance)}, {number(a.distance_sent)}"]
        cells += [number(a.queries.total), number(a.queries.median_of_successes), number(a.requests), f"{a.wall_s:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += _detectors(report)
    lines += _hold(report)
    lines += _client(report)
    lines += _timing(report)
    lines += _by_cut(report)
    lines += _security(report)
    lines += ["", "Latency in ms, p50 / p90 / p99:", "", "| stage | clean | attacked |", "|---|--:|--:|"]
    for stage in STAGES:
        lines.append(f"| {stage} | {_three(report.latency_ms.clean, stage)} | {_three(report.latency_ms.attacked, stage)} |")
    lines += ["", f"{' + '.join(ON_THE_WAY)} = total, frame by frame; medians do not add up."]
    lines += ["", *(f"* Note: {note}" for note in report.notes)]
    lines += [f"* Disagreement: {line}" for line in ledger.disagreements]
    return "\n".join(lines).rstrip() + "\n"


def _security(report: Report) -> list[str]:
    s = report.security
    if s is None:
        return []
    lines = ["", f"Security: `{s.level}`, {s.protects}{'; the edge answers only to a token' if s.tokens else ''}."]
    if s.price is not None:
        p = s.price
        lines += [
            "",
            f"Its price, {p.frames} frames one by one: {p.added_us.value:+.0f} us a frame [{p.added_us.low:+.0f}, "
            f"{p.added_us.high:+.0f}] on {p.plain_ms:.2f} ms, {p.added_bytes_up:+.0f} bytes up and {p.added_bytes_down:+.0f} "
            f"down a frame, {p.connection_bytes:+.0f} bytes a connection; first answer on a new connection after "
            f"{p.first_answer_protected_ms:.1f} ms, {p.first_answer_plain_ms:.1f} without.",
        ]
    if s.refusals:
        lines += ["", "| pass | rows | sent | answered | refused or lost |", "|---|---|--:|--:|---|"]
        whose = {"query": "the adversary's queries", "frame": "the phone's frames"}
        lines += [f"| {r.name} | {whose[r.kind]} | {r.rows} | {r.answered} | {_counted(r.refused)} |" for r in s.refusals]
    if s.probes:
        lines += ["", "| tried | times | answered | refused |", "|---|--:|--:|---|"]
        lines += [f"| {p.way} | {p.tries} | {p.answered} | {_counted(p.refused)} |" for p in s.probes]
    return lines


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def _detectors(report: Report) -> list[str]:
    if not report.detectors:
        return []
    lines = ["", "What the edge's detectors made of each pass; of the phone's own frames without an attack: false alarms:", ""]
    lines += ["| pass | detector | action | ASR | without | queries detected | sessions detected | first detection, query "]
    lines[-1] += "| phone's frames detected |"
    lines += ["|---|---|---|---|---|---|---|--:|---|"]
    for d in report.detectors:
        cells = [d.name, d.detector, d.action, percent(d.asr), percent(d.asr_without), percent(d.queries), percent(d.sessions)]
        lines.append(f"| {' | '.join([*cells, number(d.first_detection), percent(d.frames)])} |")
    return lines


def _hold(report: Report) -> list[str]:
    """Only where a pass had a deadline of its own, which somebody wanted to know about."""
    by_name = {attack.name: attack for attack in report.attacks}
    families = [f for f in report.hold if any(point.hold_deadline_ms is not None for point in f.points)]
    if not families:
        return []
    lines = ["", "Held frames, by hold deadline; times are from a frame's arrival at the adversary to its first success:", ""]
    lines += ["| pass | order | hold deadline, ms | held at once | ASR of held frames | ASR, in time | p50 / p90 / p99, ms |"]
    lines += ["|---|---|--:|--:|---|---|--:|"]
    for attack in (by_name[point.name] for family in families for point in family.points):
        cells = [
            attack.name,
            attack.order or "",
            number(attack.hold_deadline_ms),
            number(attack.held_at_once),
            percent(attack.asr_held),
        ]
        cells += [percent(attack.asr_in_time), _percentiles(attack.hold_to_success_ms)]
        lines.append(f"| {' | '.join(cells)} |")
    for family in families:
        grid = by_name[family.curve_of].within
        if grid is not None:
            lines += ["", f"{family.curve_of}, share of its {grid.n} held frames that would have come back wrong, derived"]
            lines += ["from this pass, within a budget and a hold:", ""]
            lines += [f"| | {' | '.join(f'≤ {number(d)} ms' for d in grid.deadlines_ms)} |"]
            lines += [f"|---|{'--:|' * len(grid.deadlines_ms)}"]
            for budget, counts in zip(grid.budgets, grid.counts, strict=True):
                lines.append(f"| ≤ {number(budget)} queries | {' | '.join(share(count / grid.n) for count in counts)} |")
    return lines


def _client(report: Report) -> list[str]:
    lines = ["", "Latency at the client in ms, p50 / p90 / p99, and the share of answered frames that came late:", ""]
    lines += ["| pass | order | held | late | not held | late |", "|---|---|--:|---|--:|---|"]
    for side in report.client:
        cells = [side.name, side.order or ""]
        for delay in (side.held, side.not_held):
            cells += ["", ""] if delay is None else [_percentiles(delay.total_ms), percent(delay.late)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _timing(report: Report) -> list[str]:
    t = report.timing
    if t is None:
        return []
    lines = [
        "",
        f"A man in the middle by timing: areas below the ROC of frames, and of windows of {t.window}, against honest ones",
    ]
    lines += [
        f"({t.baseline}). Threshold of {share(t.false_alarms)} false alarms in its first half; second: "
        f"{percent(t.honest_alarms)}."
    ]
    lines += [
        "",
        "| pass | way, ms, p50 / p90 / p99 | held | not held | windows | windows with an alarm |",
        "|---|--:|---|---|---|---|",
    ]
    for p in t.passes:
        areas = ["–" if roc is None else auc(roc.auc) for roc in (p.held, p.not_held, p.windows)]
        lines.append(f"| {' | '.join([p.name, _percentiles(p.way_ms), *areas, percent(p.alarms)])} |")
    return lines


def _by_cut(report: Report) -> list[str]:
    """Only where the phone had more than one to choose from."""
    if not report.by_cut:
        return []
    lines = ["", "Frames by the cut that they went through; latency at the client in ms, p50 / p90 / p99:", ""]
    lines += ["| pass | policy | cut | frames | accuracy | latency | bytes up a frame |", "|---|---|---|--:|---|--:|--:|"]
    for p in report.by_cut:
        for one in (p.all, *p.cuts) if len(p.cuts) > 1 else (p.all,):
            cells = [p.name, p.policy, one.artefact or "all", number(one.frames), percent(one.accuracy)]
            lines.append(f"| {' | '.join([*cells, _percentiles(one.total_ms), number(one.bytes_up)])} |")
    for p in report.by_cut:
        if len(p.switches) > 1:
            lines += ["", f"{p.name}, switches:", "", "| after s | to | rate up, kbit/s | round trip, ms | predicted, ms |"]
            lines += ["|--:|---|--:|--:|---|"]
        for switch in p.switches[1:]:
            predicted = ", ".join(f"{name} {number(ms)}" for name, ms in switch.predicted_ms.items())
            cells = [number(switch.at_s), switch.to, number(switch.rate_up_kbps), number(switch.round_trip_ms), predicted]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _three(stages: Stages, stage: str) -> str:
    figures = stages.get(stage)
    if figures is None or figures.p50 is None:
        return figures.hidden or "" if figures else ""
    return _percentiles(figures)


def _percentiles(figures: Percentiles) -> str:
    return "–" if figures.p50 is None else " / ".join(number(value) for value in (figures.p50, figures.p90, figures.p99))


def _columns(name: str, value: Rate) -> dict[str, Any]:
    return {name if field == "value" else f"{name}_{field}": x for field, x in value.model_dump().items()}


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    listed = list(rows)
    if not listed:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(listed[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return out.getvalue()
