"""Stages of the latency: by hand, over two clocks, and where the clocks cannot tell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.report.stages import ON_THE_WAY, NodeClock, SpanIndex, clocks_of, summary

NAMES = {
    "client": ("scheduled", "head_start", "head_end", "encoded", "sent", "answered"),
    "adversary": ("relay_in", "relay_out"),
    "edge": ("received", "dequeued", "decoded", "tail_done"),
}
ORDER = ("scheduled", "head_start", "head_end", "encoded", "sent", "relay_in", "relay_out", "received", "dequeued", "decoded",
         "tail_done", "answered")  # fmt: skip
SAME = {node: NodeClock(0, 0) for node in NAMES}


def spans(times: dict[str, int], attempt: int = 1, behind: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """What the nodes tell; a node that is `behind` reads so many ns less."""
    return [
        {"kind": "span", "node": node, "frame": "r/c/0", "attempt": attempt,
         "t": {name: times[name] - (behind or {}).get(node, 0) for name in names if name in times}}
        for node, names in NAMES.items()
    ]  # fmt: skip


def steps(values: list[int]) -> dict[str, int]:
    now, times = 1_000, {}
    for name, step in zip(ORDER, values, strict=True):
        now += step
        times[name] = now
    return times


def test_every_stage_is_the_difference_that_its_name_says() -> None:
    times = steps([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
    assert SpanIndex(spans(times), SAME).stages_ns("r/c/0", 1, relayed=True) == {
        "client_queue": 1 + 8, "head": 2, "encode": 4, "uplink": 16 + 64, "hold": 32, "server_queue": 128, "decode": 256,
        "tail": 512, "downlink": 1024, "network": 16 + 64 + 1024, "total": 2047,
    }  # fmt: skip


@given(st.lists(st.integers(0, 10**10), min_size=12, max_size=12), st.integers(-(10**12), 10**12))
def test_the_stages_add_up_to_the_total_exactly_whatever_the_clocks(values: list[int], offset: int) -> None:
    clocks = {**SAME, "edge": NodeClock(offset, 5)}
    split = SpanIndex(spans(steps(values), behind={"edge": 7}), clocks).stages_ns("r/c/0", 1, relayed=True)
    assert split is not None
    assert sum(split[stage] for stage in ON_THE_WAY) == split["total"]


def test_a_clock_that_is_behind_is_set_right_by_its_offset() -> None:
    times = steps([5] * 12)
    behind = spans(times, behind={"edge": 1_000_000})
    apart = {**SAME, "edge": NodeClock(1_000_000, 2)}
    assert SpanIndex(behind, apart).stages_ns("r/c/0", 1, relayed=True) == SpanIndex(spans(times), SAME).stages_ns(
        "r/c/0", 1, relayed=True
    )


def test_without_a_relay_nothing_is_held() -> None:
    times = {name: t for name, t in steps([5] * 12).items() if not name.startswith("relay")}
    split = SpanIndex(spans(times), SAME).stages_ns("r/c/0", 1, relayed=False)
    assert split is not None and split["hold"] == 0 and split["uplink"] == 15


def test_a_frame_with_a_span_missing_is_not_measured() -> None:
    complete = spans(steps([5] * 12))
    for missing in range(3):
        partial = [span for i, span in enumerate(complete) if i != missing]
        assert SpanIndex(partial, SAME).stages_ns("r/c/0", 1, relayed=True) is None


def test_a_retry_keeps_what_the_client_did_once() -> None:
    first = steps([5] * 12)
    second = {name: t + 1000 for name, t in first.items() if name not in ("scheduled", "head_start", "head_end", "encoded")}
    split = SpanIndex([*spans(first)[:1], *spans(second, attempt=2)], SAME).stages_ns("r/c/0", 2, relayed=True)
    assert split is not None
    assert split["client_queue"] == 5 + 5 + 1000 and split["total"] == 55 + 1000


@pytest.mark.parametrize(("uncertainty_ns", "shown"), [(0, True), (900_000, True), (1_100_000, False)])
def test_a_one_way_stage_smaller_than_the_uncertainty_is_not_given(uncertainty_ns: int, shown: bool) -> None:
    times = steps([0, *[500_000] * 11])  # uplink 1 ms, downlink 0.5 ms
    clocks = {**SAME, "edge": NodeClock(0, uncertainty_ns)}
    index = SpanIndex(spans(times), clocks)
    split = index.stages_ns("r/c/0", 1, relayed=True)
    assert split is not None
    figures = summary([split], clocks_of(index, clocks))
    assert (figures["uplink"].p50 == 1.0) is shown
    assert (figures["uplink"].hidden is None) is shown
    assert (figures["downlink"].p50 is None) is (uncertainty_ns > 500_000)
    assert figures["network"].p50 == 1.5, "the round trip needs no offset"
    assert figures["hold"].p50 == 0.5 and figures["tail"].p50 == 0.5


def test_one_way_stages_are_not_given_where_the_clocks_were_never_compared() -> None:
    index = SpanIndex(spans(steps([5] * 12)), {})
    clocks = clocks_of(index, {})
    assert clocks.uncertainty_ms is None and not clocks.shared
    split = index.stages_ns("r/c/0", 1, relayed=True)
    assert split is not None
    figures = summary([split], clocks)
    assert figures["uplink"].p50 is None and "never compared" in (figures["uplink"].hidden or "")
    assert figures["total"].p50 is not None


def test_one_clock_for_all_is_called_shared() -> None:
    index = SpanIndex(spans(steps([5] * 12)), SAME)
    assert clocks_of(index, SAME).shared
    assert not clocks_of(index, {**SAME, "edge": NodeClock(3, 1)}).shared
