"""What the phone makes of the times that it sees: against a link whose rate and round trip are known."""

from __future__ import annotations

import numpy as np
import pytest

from mobile_client.observed import ObservedLink
from splitcore.link import LinkProfile
from splitcore.link.line import Line

EDGE_MS = 3.0


def stream(link: ObservedLink, line: Line, sizes: list[int], sent_ms: list[float], *, delay_ms: float, noise_ms: list[float]):
    """Frames over `line`, which has a delay of its own up; their answers come back after `delay_ms` more."""
    for size, at_ms, late_ms in zip(sizes, sent_ms, noise_ms, strict=True):
        arrived_ms = line.arrival_s(at_ms / 1e3, size) * 1e3
        link.answer(size, at_ms, arrived_ms + EDGE_MS + delay_ms + late_ms, EDGE_MS)


def line(rate_kbps: float, delay_ms: float) -> Line:
    profile = LinkProfile(rate_up_kbps=rate_kbps, rate_down_kbps=rate_kbps, delay_ms=delay_ms)
    return Line(profile, rate_kbps, np.random.default_rng(0))


@pytest.mark.parametrize("gap_ms", [200.0, 1.0], ids=["idle", "busy"])
def test_the_rate_is_found_on_an_idle_line_and_on_a_busy_one(gap_ms: float) -> None:
    link = ObservedLink(8)
    link.round_trip(50.0)
    stream(link, line(800, 20), [2000] * 10, [gap_ms * n for n in range(10)], delay_ms=30, noise_ms=[0.0] * 10)
    assert link.estimate is not None
    assert link.estimate.rate_up_kbps == pytest.approx(800)
    assert link.estimate.round_trip_ms == 50.0


def test_frames_of_different_sizes_over_a_busy_line_give_the_same_rate() -> None:
    link = ObservedLink(20)
    link.round_trip(10.0)
    sizes = [200, 5000, 300, 9000, 100] * 4
    stream(link, line(2000, 5), sizes, [float(n) for n in range(20)], delay_ms=5, noise_ms=[0.0] * 20)
    assert link.estimate is not None and link.estimate.rate_up_kbps == pytest.approx(2000)


def test_what_holds_up_less_than_half_of_the_frames_does_not_make_a_fast_link_slow() -> None:
    link = ObservedLink(8)
    for took_ms in (4.0, 4.0, 90.0, 4.0):
        link.round_trip(took_ms)
    noise = [0.0, 40.0, 0.0, 0.0, 60.0, 0.0, 25.0, 0.0]
    stream(link, line(20_000, 2), [1000] * 8, [100.0 * n for n in range(8)], delay_ms=2, noise_ms=noise)
    assert link.estimate is not None
    assert link.estimate.rate_up_kbps == pytest.approx(20_000) and link.estimate.round_trip_ms == 4.0


def test_a_link_that_gets_slow_shows_within_the_memory() -> None:
    link, changing = ObservedLink(4), line(20_000, 2)
    link.round_trip(4.0)
    stream(link, changing, [1000] * 8, [100.0 * n for n in range(8)], delay_ms=2, noise_ms=[0.0] * 8)
    changing.become(LinkProfile(rate_up_kbps=100, rate_down_kbps=100, delay_ms=2), 100)
    stream(link, changing, [1000] * 4, [800 + 100.0 * n for n in range(4)], delay_ms=2, noise_ms=[0.0] * 4)
    assert link.estimate is not None and link.estimate.rate_up_kbps == pytest.approx(100)


def test_nothing_is_said_before_there_was_a_round_trip_and_half_a_memory_of_frames() -> None:
    link = ObservedLink(4)
    assert link.estimate is None
    link.answer(1000, 0.0, 10.0, 1.0)
    assert link.estimate is None
    link.round_trip(5.0)
    assert link.estimate is None
    link.answer(1000, 20.0, 30.0, 1.0)
    assert link.estimate is None
    link.answer(1000, 40.0, 50.0, 1.0)
    assert link.estimate is not None and link.estimate.rate_up_kbps == pytest.approx(2000)


def test_an_answer_that_overtook_another_says_nothing_of_the_line() -> None:
    link = ObservedLink(2)
    link.round_trip(0.0)
    link.answer(1000, 0.0, 8.0, 0.0)
    link.answer(1000, 0.0, 4.0, 0.0)
    assert link.estimate is not None and link.estimate.rate_up_kbps == pytest.approx(1000)
