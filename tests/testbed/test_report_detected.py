"""What the report says of detectors and of timing: closed forms on passes written by hand, and one real run with both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from testbed.drive import drive, new_run, plans
from testbed.report import timing
from testbed.report.build import build
from testbed.report.detected import detections
from testbed.report.read import FrameLine, Pass, PassInfo, SessionLine
from testbed.report.reconcile import entries_of, server_rows_of
from testbed.report.roc import auc, interval, roc
from testbed.scenario import load_scenario

SLOW = {"kind": "query_rate", "action": "flag", "rows_per_s": 5}
FLAG = {"kind": "blacklight", "action": "flag", "k": 50}


def info(name: str, kind: str, **fields: Any) -> PassInfo:
    return PassInfo(name=name, run=name, kind=kind, adversary=True, codec="c", count=2, load={}, wall_s=1.0, **fields)


def asked(id: str, *asks: tuple[str, str, int], attempt: int = 1) -> dict[str, Any]:
    rows = sum(count for *_, count in asks)
    return {"event": "sent", "id": id, "attempt": attempt, "kind": "query", "rows": rows, "asks": asks}


def logged(id: str, rows: int, detected: list[int], origin: str = "query", attempt: int = 1) -> dict[str, Any]:
    found = {"detected": {"blacklight": detected}} if detected else {}
    return {"id": id, "attempt": attempt, "origin": origin, "rows": rows, **found}


def test_the_first_detection_is_the_number_of_the_query_among_those_of_its_frame() -> None:
    ledger = [
        asked("r/q/0", ("r/p/0", "clean", 1), ("r/p/1", "clean", 1)),
        asked("r/q/1", ("r/p/1", "search", 2), ("r/p/0", "search", 3)),
        asked("r/q/1", ("r/p/1", "search", 2), ("r/p/0", "search", 3), attempt=2),
    ]
    server = [
        logged("r/q/0", 2, []),
        logged("r/q/1", 5, [1, 3, 4]),  # the second row of frame 1, the second and third of frame 0
        logged("r/q/1", 5, [1, 3, 4], attempt=2),  # a retry asks nothing new
        logged("r/p/0", 1, [0], origin="client"),
        logged("r/p/1", 1, [], origin="client"),
    ]
    sessions = [SessionLine(frame=f"r/p/{n}", success=False, queries=4 - n, reason="budget") for n in range(2)]
    p = Pass(info("square", "attack", detectors=[FLAG]), [], {}, sessions, entries_of(ledger), server_rows_of(server))
    [found] = detections([p], [])
    assert (found.detector, found.action, found.settings) == ("blacklight", "flag", {"k": 50})
    assert found.first_detections == [3, 3] and found.first_detection == 3
    assert found.queries is not None and (found.queries.count, found.queries.n) == (3, 7)
    assert found.sessions is not None and (found.sessions.count, found.sessions.n) == (2, 2)
    assert (found.frames.count, found.frames.n) == (1, 2)


def test_an_area_is_the_share_of_pairs_that_are_in_order() -> None:
    assert auc([3, 1], [2, 0]).value == 0.75
    assert auc([1, 1], [1, 1]).value == 0.5 and auc([], [1.0]).value is None
    perfect = auc(range(10, 20), range(10))
    assert perfect.value == perfect.high == 1.0 and perfect.low is not None and 0.6 < perfect.low < 1


@example(1e-9, 2, 2)
@example(2.1e-9, 500, 500)
@example(1 - 1e-9, 500, 2)
@given(st.floats(0, 1), st.integers(2, 500), st.integers(2, 500))
def test_the_interval_of_an_area_holds_it_and_stays_within_bounds(area: float, m: int, n: int) -> None:
    low, high = interval(area, m, n)
    assert 0 <= low <= area + 1e-9 and area - 1e-9 <= high <= 1
    mirrored = interval(1 - area, m, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-6)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_the_area_below_the_curve_is_the_area(positives: list[int], negatives: list[int]) -> None:
    curve = roc(positives, negatives)
    assert curve is not None and curve.points[0] == (0, 0) and curve.points[-1] == (1, 1)
    x, y = np.array(curve.points).T
    assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
    assert np.trapezoid(y, x) == pytest.approx(curve.auc.value)


def timed(name: str, kind: str, ways: list[float], **fields: Any) -> Pass:
    lines = [
        FrameLine(id=str(n), sequence=n, sample=n, predicted=0, way_ms=way, message_bytes=500, answered_ns=n)
        for n, way in enumerate(ways)
    ]
    return Pass(info(name, kind, timing={"window": 4, "false_alarms": 0.1}, **fields), lines, {}, [], {}, {})


def test_held_frames_are_told_from_honest_ones_and_honest_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    clean = timed("clean", "clean", rng.normal(5, 1, 400).tolist())
    same = timed("record", "attack", rng.normal(5, 1, 400).tolist())
    later = timed("keep", "attack", rng.normal(8, 1, 400).tolist())
    notes: list[str] = []
    found = timing.of([clean, same, later], notes)
    assert found is not None and found.baseline == "clean" and not found.direct and not notes
    assert found.fixed_ms == pytest.approx(5, abs=0.3) and found.scatter_ms == pytest.approx(1, abs=0.3)
    assert found.honest_alarms.n == 50
    record, keep = found.passes
    assert record.not_held is not None and record.not_held.auc.value == pytest.approx(0.5, abs=0.06) and record.held is None
    # the closed form: Φ(3 / √2), and for means of four Φ(6 / √2)
    assert keep.not_held is not None and keep.not_held.auc.value == pytest.approx(0.983, abs=0.01)
    assert keep.windows is not None and keep.windows.auc.value == pytest.approx(1.0, abs=0.001)
    assert keep.alarms is not None and keep.alarms.value == 1.0
    few = timing.of([timed("clean", "clean", [1.0] * 30)], notes)
    assert few is None and "too few" in notes[0]
    direct = timed("direct", "stream", rng.normal(5, 1, 400).tolist())
    past = Pass(direct.info.model_copy(update={"adversary": False}), direct.frames, {}, [], {}, {})
    found = timing.of([past, clean], [])
    assert found is not None and found.direct and found.baseline == "direct"


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_run_with_detectors_and_timing_has_both_in_its_report_and_the_books_agree(
    digits_artefact: Path, tmp_path: Path
) -> None:
    square = {"attack": {"kind": "square"}, "threat": {"norm": "linf", "eps": 0.5, "budget": 60}}
    document = {
        "name": "watched", "artefact": str(digits_artefact), "frames": 48, "window": 48, "seed": 5,
        "edge": {"device": "cpu", "threads": 1, "detectors": ["blacklight", SLOW]},
        "phone": {"timing": {"window": 4}},
        "streams": [{"name": "direct", "direct": True}],
        "attacks": [{"name": "flagged", "detectors": "flag", **square}, {"name": "off", "detectors": "off", **square},
                    {"name": "rejected", **square}],
    }  # fmt: skip
    path = tmp_path / "watched.yaml"
    path.write_text(yaml.safe_dump(document))
    scenario = load_scenario(path)
    assert [plan.name for plan in plans(scenario)] == ["direct", "clean", "identity", "flagged", "off", "rejected"]
    folder = new_run(scenario, tmp_path / "runs")
    drive(folder, digits_artefact, None, Console(quiet=True))
    report = build(folder, digits_artefact)
    assert report.ledger.agrees, report.ledger.disagreements
    found = {(d.name, d.detector): d for d in report.detectors}
    names = ["direct", "clean", "identity", "flagged", "rejected"]
    assert list(found) == [(name, kind) for name in names for kind in ("blacklight", "query_rate")]
    assert {found[name, "blacklight"].frames.count for name in ("direct", "clean", "identity")} == {0}
    flagged, rejected = found["flagged", "blacklight"], found["rejected", "blacklight"]
    assert flagged.queries is not None and flagged.queries.value is not None and flagged.queries.value > 0.5
    assert rejected.without == "flagged" and rejected.asr is not None and rejected.asr_without is not None
    assert rejected.asr.count < rejected.asr_without.count
    assert rejected.frames.count == 0, "what was asked about goes on as it was, and has its answer"
    assert found["rejected", "query_rate"].action == "flag"
    assert sum(p.errors for p in report.passes) == 0
    t = report.timing
    assert t is not None and t.direct and [p.name for p in t.passes] == ["clean", "flagged", "off", "rejected"]
    assert t.passes[1].held is not None and t.passes[1].held.auc.positives == 48
    page = (folder / "report.html").read_text()
    assert "<h2>Detectors</h2>" in page and 'id="figure-9"' in page
    assert "first detection, query" in (folder / "report.md").read_text()
    described = json.loads((folder / "passes" / "05-rejected" / "pass.json").read_text())
    assert [one["kind"] for one in described["detectors"]] == ["blacklight", "query_rate"]
