"""What a hold is worth to the adversary, and what it costs the client.

A frame is held from its arrival at the relay until its session ends. Sessions that succeed end at their first success, so one
pass says for every shorter hold and every smaller budget which frames would have fallen: at query q after t ms, so within any
budget of at least q and any deadline of at least t.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from testbed.report.model import Attack, ClientSide, Delay, HoldFamily, HoldPoint, Rate, Within
from testbed.report.read import FrameLine, Pass, SessionLine
from testbed.report.stages import SpanIndex
from testbed.report.statistics import percentiles, rate, rate_of, rounded_steps, success_over
from testbed.report.success import Success, queries_needed


@dataclass(frozen=True)
class Held:
    """The held frames of a pass that count, and what those that fell had needed."""

    n: int
    needed: list[tuple[int, float]]
    """of each that came back wrong: queries and ms to its first success; all of its session where it claims none"""
    timed: bool
    """False for journals of before the hold was written down"""

    @property
    def asr(self) -> Rate:
        return rate_of(len(self.needed), self.n)

    @property
    def to_success_ms(self) -> list[float]:
        return [ms for _, ms in self.needed] if self.timed else []


def held_of(p: Pass, success: Success) -> Held:
    held = _sessions(p)
    fallen = [frame for frame in success.fooled if frame in held]
    needed = [(queries_needed(p, frame), _ms(held[frame]) or 0.0) for frame in fallen]
    timed = all(_ms(held[frame]) is not None for frame in fallen)
    return Held(len(success.counted & held.keys()), sorted(needed), timed)


def is_held(p: Pass, frame: str) -> bool:
    return frame in p.session_of and p.session_of[frame].reason != "full"


def holds_ms(p: Pass) -> list[float]:
    return [ms for session in _sessions(p).values() if (ms := _ms(session)) is not None]


def held_at_once(p: Pass, spans: SpanIndex) -> int | None:
    """The most intervals that overlap: one more at each arrival, one less at each departure."""
    intervals = [spans.interval_ns(frame, p.answered_attempt.get(frame, 1), "relay_in", "relay_out") for frame in _sessions(p)]
    steps = sorted(step for interval in intervals if interval for step in ((interval[0], 1), (interval[1], -1)))
    return max(accumulate(change for _, change in steps), default=None)


def hold_curve(held: Held, end_ms: float | None) -> list[tuple[float, float]]:
    return success_over((ms for _, ms in held.needed), held.n, end_ms) if held.timed else []


def within(held: Held, budget: int | None, end_ms: float | None) -> Within | None:
    """The grid, its last row and column being what the pass itself allowed."""
    if budget is None or not held.needed or not held.timed:
        return None
    queries, times = [q for q, _ in held.needed], [ms for _, ms in held.needed]
    # a session that ends at its deadline ends a little after it
    budgets = [int(step) for step in rounded_steps(max(1, min(queries)), max(budget, *queries))]
    deadlines = rounded_steps(min(times), max(end_ms or 0.0, *times))
    counts = [[sum(q <= b and ms <= d for q, ms in held.needed) for d in deadlines] for b in budgets]
    return Within(budgets=budgets, deadlines_ms=deadlines, counts=counts, n=held.n)


def in_time(p: Pass, success: Success) -> Rate | None:
    if p.info.deadline_ms is None:
        return None
    late = {frame.id for frame in p.frames if frame.late}
    return rate_of(len(success.fooled - late), len(success.counted))


def client_side(p: Pass) -> ClientSide:
    deadline = p.info.deadline_ms is not None
    sessions = _sessions(p)
    held = [frame for frame in p.frames if frame.id in sessions]
    passed = [frame for frame in p.frames if frame.id not in sessions]
    attacked = p.info.kind == "attack"
    return ClientSide(
        name=p.info.name,
        order=p.info.order if attacked else None,
        hold_deadline_ms=p.info.hold_deadline_ms,
        all=_delay(p.frames, deadline),
        held=_delay(held, deadline) if held else None,
        not_held=_delay(passed, deadline) if passed else None,
    )


def families(attacks: Sequence[Attack]) -> list[HoldFamily]:
    """Only of attacks that ask: a blind one needs no time."""
    same: dict[str, list[Attack]] = defaultdict(list)
    for attack in attacks:
        if attack.feedback != "none" and attack.queries.total:
            threat = attack.model_dump_json(
                include={"kind", "parameters", "point", "norm", "eps", "eps_unit", "budget", "codec", "share", "order"}
            )
            same[threat].append(attack)
    found = []
    for members in same.values():
        ordered = sorted(members, key=_deadline)
        points = [HoldPoint(**a.model_dump(include=set(HoldPoint.model_fields))) for a in ordered]
        found.append(HoldFamily(curve_of=ordered[-1].name, points=points))
    return found


def _deadline(attack: Attack) -> float:
    return float("inf") if attack.hold_deadline_ms is None else attack.hold_deadline_ms


def _delay(frames: Iterable[FrameLine], deadline: bool) -> Delay:
    answered = [frame for frame in frames if frame.answered]
    return Delay(
        total_ms=percentiles([frame.total_ms for frame in answered if frame.total_ms is not None]),
        late=rate(frame.late for frame in answered) if deadline else None,
    )


def _sessions(p: Pass) -> dict[str, SessionLine]:
    """Of the frames that were held, by id."""
    return {frame: session for frame, session in p.session_of.items() if is_held(p, frame)}


def _ms(session: SessionLine) -> float | None:
    """From the arrival; of a journal of before that was written down, from the session's start a little later."""
    return session.wall_ms if session.held_ms is None else session.held_ms
