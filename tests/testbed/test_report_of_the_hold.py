"""What a hold is worth and what it costs: closed forms on passes written by hand, and one real stream under attack."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from testbed.drive import drive, new_run
from testbed.report import live
from testbed.report.build import build
from testbed.report.model import Report
from testbed.report.read import FrameLine, Pass, PassInfo, SessionLine
from testbed.report.stages import SpanIndex
from testbed.report.statistics import rounded_steps
from testbed.report.success import reference_of, success_of
from testbed.scenario import load_scenario


def frames(wrong: Sequence[int] = (), late: Sequence[int] = (), n: int = 8, total_ms: Sequence[float] = ()) -> list[FrameLine]:
    return [
        FrameLine(
            id=str(i), sequence=i, sample=i, label=0, predicted=int(i in wrong), late=i in late,
            total_ms=total_ms[i] if total_ms else 1.0,
        )
        for i in range(n)
    ]  # fmt: skip


def session(frame: int, success: bool, queries: int, held_ms: float | None, reason: str = "", **fields: Any) -> SessionLine:
    return SessionLine(
        frame=str(frame), success=success, queries=queries, first_success=queries if success else None, held_ms=held_ms,
        reason=reason or ("success" if success else "deadline"), **fields,
    )  # fmt: skip


def a_pass(kind: str, lines: list[FrameLine], sessions: Sequence[SessionLine] = (), **info: Any) -> Pass:
    described = PassInfo(
        **{"name": kind, "run": "r", "kind": kind, "adversary": True, "codec": "c", "count": len(lines), "load": {},
           "wall_s": 1.0, **info}
    )  # fmt: skip
    return Pass(described, lines, {}, list(sessions), {}, {})


CLEAN = a_pass("clean", frames(wrong=[7]))
ATTACKED = a_pass(
    "attack", frames(wrong=[0, 1, 2, 3, 7], late=[3]),
    [
        session(0, True, 3, 10.0),
        session(1, True, 40, 20.0),
        session(2, True, 5, 90.0),
        session(3, False, 50, 100.0),  # claims nothing, and came back wrong all the same
        session(4, False, 50, 100.0),
        session(5, False, 0, None, reason="full"),
        session(7, True, 1, 1.0),  # the clean pass was wrong here too
    ],
    budget=50, deadline_ms=500.0, hold_deadline_ms=100.0, feedback="scores", order="overtake",
)  # fmt: skip
SUCCESS = success_of(ATTACKED, reference_of(ATTACKED, [CLEAN]))
HELD = live.held_of(ATTACKED, SUCCESS)


def test_only_held_frames_that_count_are_in_the_denominator() -> None:
    assert (HELD.asr.count, HELD.asr.n) == (4, 5), "6 and 7 were not held or do not count, 5 found no room"
    assert HELD.needed == [(3, 10.0), (5, 90.0), (40, 20.0), (50, 100.0)]


def test_the_curve_steps_up_where_each_frame_fell_and_ends_at_the_success_rate_of_held_frames() -> None:
    assert live.hold_curve(HELD, 100.0) == [(0, 0.0), (10.0, 0.2), (20.0, 0.4), (90.0, 0.6), (100.0, 0.8)]
    assert live.hold_curve(HELD, 400.0)[-1] == (400.0, 0.8)


def test_the_grid_counts_what_came_within_both_and_its_corner_is_the_whole_pass() -> None:
    grid = live.within(HELD, 50, 100.0)
    assert grid is not None and grid.n == 5
    assert (grid.budgets, grid.deadlines_ms) == ([5, 10, 20, 50], [10.0, 20.0, 50.0, 100.0])
    assert grid.counts == [[1, 1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 2], [1, 2, 2, 4]]


def test_what_came_back_wrong_but_late_is_no_success_in_time() -> None:
    rate = live.in_time(ATTACKED, SUCCESS)
    assert rate is not None and (rate.count, rate.n) == (3, 7)
    assert live.in_time(a_pass("attack", frames()), SUCCESS) is None, "no deadline, no lateness"


def test_a_journal_without_times_has_no_curve_and_no_grid() -> None:
    old = a_pass("attack", frames(wrong=[0]), [session(0, True, 3, None)])
    held = live.held_of(old, success_of(old, reference_of(old, [CLEAN])))
    assert held.asr.count == 1 and live.hold_curve(held, None) == [] and live.within(held, 50, None) is None
    started = a_pass("attack", frames(wrong=[0]), [session(0, True, 3, None, wall_ms=7.0)])
    held = live.held_of(started, success_of(started, reference_of(started, [CLEAN])))
    assert live.hold_curve(held, None)[-1] == (7.0, 1.0), "the session's own time is the next best"


def test_the_client_is_told_what_held_frames_and_the_others_waited() -> None:
    waited = a_pass(
        "attack", frames(late=[1, 3], total_ms=[600, 600, 5, 5, 5, 5, 5, 5]), ATTACKED.sessions[:2],
        deadline_ms=500.0, order="keep", hold_deadline_ms=400.0,
    )  # fmt: skip
    side = live.client_side(waited)
    assert (side.order, side.hold_deadline_ms) == ("keep", 400.0)
    assert side.held is not None and side.not_held is not None and side.held.late is not None
    assert (side.held.total_ms.p50, side.held.total_ms.n, side.held.late.count) == (600, 2, 1)
    assert (side.not_held.total_ms.p50, side.not_held.total_ms.n) == (5, 6)
    assert side.all.late is not None and (side.all.late.count, side.all.late.n) == (2, 8)
    clean = live.client_side(CLEAN)
    assert clean.order is None and clean.held is None and clean.not_held is not None and clean.all.late is None


def test_frames_held_at_one_moment_are_counted_from_their_spans() -> None:
    def span(frame: int, first: int, last: int) -> dict[str, Any]:
        return {
            "kind": "span",
            "node": "adversary",
            "frame": str(frame),
            "attempt": 1,
            "t": {"relay_in": first, "relay_out": last},
        }

    p = a_pass("attack", frames(), [session(i, False, 0, 1.0) for i in range(4)])
    spans = [span(0, 0, 10), span(1, 2, 5), span(2, 4, 12), span(3, 10, 12), span(6, 0, 99)]
    assert live.held_at_once(p, SpanIndex(spans, {})) == 3, "frame 3 came when frame 0 went, frame 6 was not held"
    assert live.held_at_once(p, SpanIndex([], {})) is None


@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.01, 1e5)), min_size=1, max_size=30),
    st.integers(1, 500), st.none() | st.floats(0.1, 1e5),
)  # fmt: skip
def test_the_grid_never_falls_with_more_of_either_and_agrees_with_the_curve(
    needed: list[tuple[int, float]], budget: int, end_ms: float | None
) -> None:
    held = live.Held(40, sorted(needed), timed=True)
    grid, curve = live.within(held, budget, end_ms), live.hold_curve(held, end_ms)
    assert grid is not None and grid.counts[-1][-1] == len(needed)
    for row, below in zip(grid.counts, [*grid.counts[1:], grid.counts[-1]], strict=True):
        assert row == sorted(row) and all(a <= b for a, b in zip(row, below, strict=True))
    for ms, count in zip(grid.deadlines_ms, grid.counts[-1], strict=True):
        assert count / 40 == max(share for at, share in curve if at <= ms)


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_the_steps_of_a_grid_rise_and_end_at_what_was_allowed(low: float, high: float) -> None:
    steps = rounded_steps(min(low, high), max(low, high))
    assert 1 <= len(steps) <= 6 and steps[-1] == max(low, high) and sorted(set(steps)) == steps


@pytest.fixture(scope="module")
def stream(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """scenarios/live.yaml, smaller, and with time enough for some to fall on a busy machine."""
    folder = tmp_path_factory.mktemp("live")
    document = yaml.safe_load((Path(__file__).parents[2] / "scenarios" / "live.yaml").read_text())
    passes = {attack["name"]: attack for attack in document["attacks"]}
    del document["recipe"]
    passes["square-400"]["threat"]["deadline_ms"] = passes["square-400-keep"]["threat"]["deadline_ms"] = 4000
    document |= {
        "artefact": str(digits_artefact), "frames": 60, "deadline_ms": 6000, "edge": {"device": "cpu", "threads": 1},
        "attacks": [passes[name] for name in ("noise", "square-400", "square-25", "square-400-keep")],
    }  # fmt: skip
    (folder / "live.yaml").write_text(yaml.safe_dump(document))
    run = new_run(load_scenario(folder / "live.yaml"), folder)
    drive(run, digits_artefact, None, Console(quiet=True))
    return run, build(run)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_running_stream_is_held_and_the_report_says_what_the_hold_was_worth(stream: tuple[Path, Report]) -> None:
    run, report = stream
    assert report.ledger.agrees, report.ledger.disagreements
    attacks = {attack.name: attack for attack in report.attacks}
    for name in ("square-400", "square-25", "square-400-keep"):
        attack = attacks[name]
        assert attack.share == 0.5 and 0 < attack.frames.held < 60 and attack.held_at_once is not None
        assert attack.asr_held.count == attack.asr.count, "no frame fell that was not held"
        assert attack.hold_curve[-1][1] == attack.asr_held.value
        if name != "square-25":
            assert attack.within is not None and attack.within.counts[-1][-1] == attack.asr_held.count > 0
        [path] = run.glob(f"passes/*-{name}/sessions.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(row["held_ms"] >= row["wall_ms"] > 0 for row in rows), "the hold begins before the session"
    assert [(family.curve_of, [point.name for point in family.points]) for family in report.hold] == [
        ("square-400", ["square-25", "square-400"]),
        ("square-400-keep", ["square-400-keep"]),
    ]
    assert attacks["noise"].distance_sent is not None, "also where nothing was turned"


@pytest.mark.long
def test_frames_wait_behind_held_ones_only_where_the_order_is_kept(stream: tuple[Path, Report]) -> None:
    sides = {side.name: side for side in stream[1].client}
    assert list(sides) == ["clean", "noise", "square-400", "square-25", "square-400-keep"]
    overtaking, waiting = sides["square-400"], sides["square-400-keep"]
    assert overtaking.held and overtaking.not_held and waiting.not_held
    medians = [delay.total_ms.p50 for delay in (overtaking.not_held, waiting.not_held)]
    assert medians[0] is not None and medians[1] is not None and medians[0] < medians[1]


@pytest.mark.long
def test_page_and_markdown_have_the_grid_and_the_clients_side(stream: tuple[Path, Report]) -> None:
    run, _ = stream
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    for said in ("Success over hold time", "What the hold does to the client", "held and not held"):
        assert said in page
    for said in ("| square-400-keep | keep | 4,000 |", "within a budget and a hold", "| square-25 | overtake |"):
        assert said in text
