"""When a phone that re-plans goes over to another cut: by hand, with times that are arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mobile_client.cuts import Cut, Cuts
from mobile_client.passes import Replan
from mobile_client.policy import Replanner
from mobile_client.settings import Setting
from mobile_client.shot import Shot
from splitcore.plan import CutProfile

pytestmark = pytest.mark.timeout(300)  # two trainings before the first test

ROUND_TRIP_MS, EDGE_MS = 10.0, 2.0
BYTES = {"digits-wide": 10_000, "digits-narrow": 1_000}


@pytest.fixture(scope="module")
def cuts(digits_cuts: tuple[Path, Path]) -> list[Cut]:
    return Cuts(digits_cuts, Setting()).for_pass(Replan(), None)


class Stream:
    """Frames one after another over a link whose rate the test sets; all times are made up."""

    def __init__(self, cuts: Sequence[Cut], *, narrow_head_ms: float = 0.0, **policy: Any) -> None:
        self.plan: list[dict[str, Any]] = []
        profiles = [CutProfile(name=cut.name, head_ms=0, encode_ms=0, bytes_up=BYTES[cut.name], edge_ms=0) for cut in cuts]
        profiles[1] = replace(profiles[1], head_ms=narrow_head_ms)
        self.phone = Replanner(Replan(**policy), cuts, profiles, self.plan.append)
        assert self.phone.link is not None
        self.phone.link.round_trip(ROUND_TRIP_MS)
        self.now_ms = 0.0

    def send(self, frames: int, rate_up_kbps: float, edge_ms: float | None = EDGE_MS) -> list[str]:
        """The cut that each went through."""
        went = []
        for _ in range(frames):
            cut = self.phone.current
            shot = Shot(
                id="r/phone/0", sequence=0, sample=0, label=None, cut=cut, payload=b"", head="float32", scheduled_ns=0,
                head_start_ns=0, head_end_ns=0, encoded_ns=0, sent_ns=int(self.now_ms * 1e6), message_bytes=BYTES[cut.name],
            )  # fmt: skip
            answered_ms = self.now_ms + ROUND_TRIP_MS + EDGE_MS + 8 * BYTES[cut.name] / rate_up_kbps
            self.phone.answered(shot, edge_ms, int(answered_ms * 1e6))
            self.now_ms = answered_ms + 100
            went.append(cut.name.removeprefix("digits-"))
        return went


def test_it_leaves_a_cut_when_the_link_gets_slow_and_comes_back_to_the_preferred_one(cuts: list[Cut]) -> None:
    stream = Stream(cuts, memory=4, in_a_row=2)
    assert stream.send(10, rate_up_kbps=100_000) == ["wide"] * 10
    # 800 ms for a frame of the wide cut: three of the last four must be slow, and two answers in a row must say so
    assert stream.send(10, rate_up_kbps=100) == ["wide"] * 4 + ["narrow"] * 6
    assert stream.send(10, rate_up_kbps=100_000) == ["narrow"] * 3 + ["wide"] * 7
    assert [row["to"] for row in stream.plan if row["event"] == "switch"] == ["digits-wide", "digits-narrow", "digits-wide"]
    slow = stream.plan[3]
    assert slow["rate_up_kbps"] == pytest.approx(100, rel=0.5) and slow["round_trip_ms"] == ROUND_TRIP_MS
    assert slow["predicted_ms"]["digits-wide"] > slow["predicted_ms"]["digits-narrow"]


def test_between_the_two_tolerances_it_stays_where_it_is(cuts: list[Cut]) -> None:
    # 40 ms against 4 ms: 36 ms apart, where 30 are left alone, and 15 come back
    stream = Stream(cuts, memory=2, in_a_row=1, tolerance_ms=30)
    assert set(stream.send(10, rate_up_kbps=100_000)) == {"wide"}
    assert set(stream.send(10, rate_up_kbps=3_000)) == {"wide"}
    assert stream.send(10, rate_up_kbps=2_000)[-1] == "narrow"
    assert set(stream.send(10, rate_up_kbps=3_000)) == {"narrow"}
    assert stream.send(10, rate_up_kbps=6_000)[-1] == "wide"


def test_without_a_tolerance_the_least_time_decides_whatever_was_preferred(cuts: list[Cut]) -> None:
    stream = Stream(cuts[::-1], memory=2, in_a_row=1, tolerance=0, tolerance_ms=0, narrow_head_ms=0)
    assert set(stream.send(6, rate_up_kbps=1_000)) == {"narrow"}
    heavy = Stream(cuts, memory=2, in_a_row=1, tolerance=0, tolerance_ms=0, narrow_head_ms=20)
    # 72 ms more on the link against 20 ms more on the phone, and 0.7 ms
    assert heavy.send(6, rate_up_kbps=1_000)[-1] == "narrow"
    assert heavy.send(6, rate_up_kbps=100_000)[-1] == "wide"


@pytest.mark.parametrize("said_ms", [None, -5.0, 1e9, float("nan")])
def test_a_time_at_the_edge_that_is_not_said_or_cannot_be_counts_as_the_links(cuts: list[Cut], said_ms: float | None) -> None:
    stream = Stream(cuts, memory=4, in_a_row=2)
    assert stream.send(10, rate_up_kbps=100, edge_ms=said_ms)[-1] == "narrow"
    assert 50 < stream.plan[3]["rate_up_kbps"] < 110
