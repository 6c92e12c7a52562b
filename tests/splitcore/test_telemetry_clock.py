"""Clock offsets against closed forms, and against two clocks of one kernel that differ by a known amount."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitcore.telemetry.clock import Offset, best_of, host_identity, hull, offset_of

NS = st.integers(0, 10**13)


@given(offset=st.integers(-(10**18), 10**18), there=NS, back=NS, thinking=NS, t0=st.integers(0, 10**18))
@settings(deadline=None)
def test_the_true_offset_lies_within_the_uncertainty_however_asymmetric_the_path(
    offset: int, there: int, back: int, thinking: int, t0: int
) -> None:
    t1 = t0 + there + offset
    t2 = t1 + thinking
    t3 = t2 - offset + back
    measured = offset_of(t0, t1, t2, t3)
    assert abs(measured.offset_ns - offset) <= measured.uncertainty_ns
    assert measured.uncertainty_ns == (there + back + 1) // 2
    # the closed form: half of the asymmetry is the error
    assert abs(2 * (measured.offset_ns - offset) - (there - back)) <= 1


@given(offset=st.integers(-(10**18), 10**18), delay=NS)
@settings(deadline=None)
def test_a_symmetric_path_gives_the_offset_exactly(offset: int, delay: int) -> None:
    assert offset_of(0, delay + offset, delay + offset, 2 * delay) == Offset(offset, delay)


@given(exchanges=st.lists(st.builds(Offset, st.integers(), st.integers(0)), min_size=1))
@settings(deadline=None)
def test_the_best_exchange_is_the_one_with_the_shortest_round_trip(exchanges: list[Offset]) -> None:
    assert best_of(exchanges).uncertainty_ns == min(exchange.uncertainty_ns for exchange in exchanges)


def test_a_process_shares_its_clock_with_its_children() -> None:
    said = subprocess.run([sys.executable, "-c", WHO], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == host_identity()


WHO = "from splitcore.telemetry.clock import host_identity; print(host_identity())"
NODE = """
import sys, time
from splitcore.telemetry.clock import host_identity
from splitcore.telemetry.spans import Telemetry
telemetry = Telemetry("other", sys.argv[1])
telemetry.span("r/c/1", 1, sent=time.monotonic_ns())
sys.stdin.readline()
telemetry.close()
print(host_identity())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="time namespaces are Linux's")
def test_two_time_namespaces_are_told_apart_and_their_offset_is_measured(tmp_path: Path) -> None:
    from splitcore.journal import read
    from splitcore.telemetry.collector import Collector

    if os.geteuid() != 0 or not Path("/proc/self/ns/time").exists():
        pytest.skip("a time namespace needs root and a kernel that has them")
    ahead = ["unshare", "--time", "--monotonic", "1000", "--fork"]
    tried = subprocess.run([*ahead, "true"], capture_output=True, text=True, timeout=60)
    if tried.returncode:
        pytest.skip(f"a time namespace is not permitted here: {tried.stderr.strip()}")
    collector = Collector(tmp_path / "spans.jsonl")
    with subprocess.Popen(
        [*ahead, sys.executable, "-c", NODE, collector.endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as node:
        while "other" not in collector.offsets:
            assert node.poll() is None
        identity, _ = node.communicate(b"\n", timeout=60)
    collector.close()
    assert node.returncode == 0
    assert identity.decode().strip() != host_identity()
    measured = collector.offsets["other"]
    # its clock is 1000 s ahead, so 1000 s are to be taken from it
    assert abs(measured.offset_ns + 1000 * 10**9) <= measured.uncertainty_ns < 10**9
    rows = [row for row in read(tmp_path / "spans.jsonl") if row["kind"] == "node"]
    assert rows == [orjson.loads(orjson.dumps({"kind": "node", "node": "other", **vars(measured)}))]


@given(offsets=st.lists(st.tuples(st.integers(-(10**12), 10**12), st.integers(0, 10**9)), min_size=1, max_size=6))
def test_the_offset_of_a_run_covers_every_comparison_that_was_made_in_it(offsets: list[tuple[int, int]]) -> None:
    whole = None
    for offset, uncertainty in offsets:
        whole = hull(whole, Offset(offset, uncertainty))
    assert whole is not None
    for offset, uncertainty in offsets:
        assert whole.offset_ns - whole.uncertainty_ns <= offset - uncertainty
        assert offset + uncertainty <= whole.offset_ns + whole.uncertainty_ns
    assert len(offsets) > 1 or whole == Offset(*offsets[0])
