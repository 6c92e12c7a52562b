"""The arithmetic of a plan, by its closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from splitcore.errors import ScenarioError
from splitcore.link import PROFILES, LinkProfile
from splitcore.plan import CutProfile, LinkEstimate, predicted_ms
from testbed.plan.model import Candidate, Device, Kind, Profile, Spread, Stages
from testbed.plan.plot import rates_around
from testbed.plan.predict import busy_ms, crossing_ms, framed_bytes, plan_link, predict, quantiles_of, with_edge

STILL = LinkProfile(rate_up_kbps=2000, rate_down_kbps=8000, delay_ms=40)


def still(ms: float) -> Spread:
    return Spread(p50=ms, p90=ms, p99=ms)


def candidate(
    name: str = "a", kind: Kind = "cut", *, up: float = 10_000, down: float = 500, head: float = 5, tail: float = 3
) -> Candidate:
    total = head + 1 + 0.5 + tail + 2
    return Candidate(
        name=name, kind=kind, cut="x", latent=(4,), codec="identity", folder=None if kind == "phone" else "f", measured="",
        payload_bytes=up, request_bytes=up, reply_bytes=down, up_bytes=up, down_bytes=down,
        stages_ms=Stages(head=still(head), encode=still(1), decode=still(0.5), tail=still(tail), rest=still(2)),
        total_ms=quantiles_of([total] * 10), frames=10, accuracy=None,
    )  # fmt: skip


def test_without_jitter_and_loss_the_total_is_neurosurgeons_sum() -> None:
    predicted = predict(candidate(), STILL)
    expected = (5 + 1 + 0.5 + 3 + 2) + 2 * 40 + 8 * 10_000 / 2000 + 8 * 500 / 8000
    assert predicted.total_ms.p50 == pytest.approx(expected)
    assert predicted.total_ms.p99 == pytest.approx(expected)
    assert (predicted.up_ms, predicted.down_ms) == (pytest.approx(40 + 40), pytest.approx(40 + 0.5))


def test_a_plan_says_what_the_phone_that_replans_says_of_the_same_figures() -> None:
    one = candidate(down=0)
    cut = CutProfile(name="a", head_ms=5, encode_ms=1, bytes_up=one.up_bytes, edge_ms=0.5 + 3)
    rest_ms = one.stages_ms.rest.p50  # of which the phone's rule knows nothing
    by_phone = predicted_ms(cut, LinkEstimate(rate_up_kbps=2000, round_trip_ms=2 * 40)) + rest_ms
    assert predict(one, STILL).total_ms.p50 == pytest.approx(by_phone, abs=0.01)


def test_jitter_moves_a_small_message_by_half_of_it_each_way_and_a_long_one_by_more() -> None:
    link = LinkProfile(rate_up_kbps=1e8, rate_down_kbps=1e8, delay_ms=10, jitter_ms=8)
    rng = np.random.default_rng(0)
    small = crossing_ms(link, link.rate_up_kbps, 100, rng, 4000)
    assert np.median(small) == pytest.approx(10 + 4, abs=0.4)
    assert small.min() >= 10 and small.max() <= 18.001
    # ten pieces at once: nothing overtakes, so the last arrives with the latest, whose median is 8 * 0.5^(1/10)
    long = crossing_ms(link, link.rate_up_kbps, 10 * (16 << 10), rng, 4000)
    assert np.median(long) == pytest.approx(10 + 8 * 0.5**0.1, abs=0.2)


def test_a_lost_segment_costs_a_probe() -> None:
    link = LinkProfile(rate_up_kbps=1e8, rate_down_kbps=1e8, delay_ms=10, loss=0.5)
    times = crossing_ms(link, link.rate_up_kbps, 100, np.random.default_rng(0), 4000)
    rounds = (times - 10) / link.probe_ms
    assert np.mean(rounds < 0.01) == pytest.approx(0.5, abs=0.05)
    assert np.mean(np.abs(rounds - 1) < 0.01) == pytest.approx(0.25, abs=0.05)


def test_what_was_measured_keeps_its_spread_in_the_total() -> None:
    here = np.random.default_rng(1).exponential(10, 5000)
    one = candidate().model_copy(update={"total_ms": quantiles_of(here.tolist())})
    over = predict(one, STILL).total_ms
    link_ms = 2 * 40 + 40 + 0.5
    assert over.p50 - link_ms == pytest.approx(np.median(here), rel=0.1)
    assert over.p90 - link_ms == pytest.approx(np.percentile(here, 90), rel=0.1)


def test_nothing_crosses_for_what_stays_on_the_phone() -> None:
    alone = candidate(kind="phone", up=0, down=0, tail=0)
    slow = LinkProfile(rate_up_kbps=1, rate_down_kbps=1, delay_ms=2000)
    assert predict(alone, slow).total_ms == predict(alone, PROFILES["lan"]).total_ms
    assert predict(alone, slow).slowest == "phone"


def test_frames_in_a_row_are_as_many_as_the_slowest_place_lets_through() -> None:
    assert busy_ms(candidate(), STILL) == {"phone": 6, "uplink": 40, "edge": 3.5, "downlink": 0.5}
    by_link = predict(candidate(), STILL)
    assert (by_link.slowest, by_link.frames_per_s) == ("uplink", pytest.approx(25))
    by_edge = predict(candidate(up=10, tail=99.5), STILL)
    assert (by_edge.slowest, by_edge.frames_per_s) == ("edge", pytest.approx(10))


def test_the_fewer_bytes_win_on_a_slow_link_and_the_shorter_head_on_a_fast_one() -> None:
    early, late = candidate("early", up=50_000, head=1), candidate("late", up=1_000, head=30)
    phone = candidate("phone", "phone", head=45, tail=0, up=0, down=0)
    slow = plan_link([early, late, phone], "slow", LinkProfile(rate_up_kbps=2000, rate_down_kbps=2000, delay_ms=1))
    assert (slow.best, slow.best_sent) == ("late", "late")
    fast = plan_link([early, late, phone], "fast", PROFILES["lan"])
    assert (fast.best, fast.best_sent) == ("early", "early")
    far = plan_link([early, late, phone], "far", LinkProfile(rate_up_kbps=2000, rate_down_kbps=2000, delay_ms=500))
    assert (far.best, far.best_sent) == ("phone", "late")


def profile(*candidates: Candidate) -> Profile:
    device = Device(
        id="0" * 12, cpu="this one", cores=2, platform="", onnxruntime="", phone_threads=1, edge_threads=0, edge_device="cpu"
    )
    return Profile(
        network="net", dataset="digits", measured_at="", device=device, load=0, notes=(), floor_ms=0, candidates=candidates
    )


def test_the_tail_of_another_machine_takes_the_place_of_this_ones() -> None:
    both = with_edge(profile(candidate(tail=30)), profile(candidate(head=90, tail=2)))
    [one] = both.candidates
    assert (one.stages_ms.head.p50, one.stages_ms.tail.p50) == (5, 2)
    assert predict(one, STILL).total_ms.p50 == pytest.approx(predict(candidate(tail=2), STILL).total_ms.p50)
    assert "this one" in both.notes[-1]
    with pytest.raises(ScenarioError, match="expected the same candidates"):
        with_edge(profile(candidate("a")), profile(candidate("b")))


def test_a_message_is_framed_in_pieces_of_16_kib() -> None:
    assert framed_bytes(100) == 100 + 5 + 9
    assert framed_bytes((16 << 10) - 5) == (16 << 10) + 9
    assert framed_bytes(16 << 10) == (16 << 10) + 5 + 2 * 9


def test_a_plot_reaches_as_far_as_its_link() -> None:
    for rate_kbps in (10.0, 10_000.0, 1e7):
        rates = rates_around(LinkProfile(rate_up_kbps=rate_kbps, rate_down_kbps=rate_kbps, delay_ms=1))
        assert rates[0] < rate_kbps < rates[-1]
