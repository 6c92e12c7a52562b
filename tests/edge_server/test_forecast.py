"""What a batch is expected to take. Times are made up."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.forecast import ENOUGH, NOTHING, STALE_NS, Forecast, fitted

US = 1000


def test_the_line_is_found_under_noise_and_stalls_do_not_bend_it():
    rng = np.random.default_rng(0)
    seen = deque((rows, 100 * US + 7 * US * rows + int(rng.normal(0, 2 * US))) for rows in range(1, 61))
    for at in (10, 30, 50):
        seen[at] = (seen[at][0], 50_000 * US)
    line = fitted(seen)
    assert line.row_ns == pytest.approx(7 * US, rel=0.1)
    assert line.batch_ns == pytest.approx(100 * US, rel=0.2)


def test_batches_of_one_size_are_forecast_too():
    line = fitted(deque([(8, 800 * US)] * 20))
    assert line.ns(8, 64) == pytest.approx(800 * US)


@given(st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 10**9)), min_size=ENOUGH, max_size=64))
def test_no_row_and_no_batch_costs_less_than_nothing(seen):
    line = fitted(deque(seen))
    assert line.row_ns >= 0 and line.batch_ns >= 0 and line.above_ns >= 0
    assert line.ns(10, 4) <= line.ns(11, 4)


def batches(forecast: Forecast, n: int, now_ns: int, took_ns: int = 100 * US) -> int:
    for _ in range(n):
        forecast.begin(4, now_ns)
        now_ns += took_ns
        forecast.end(now_ns)
    return now_ns


def test_nothing_is_forecast_before_enough_batches_and_none_after_a_second_without_one():
    forecast = Forecast()
    now_ns = batches(forecast, ENOUGH - 1, 0)
    assert forecast.line(now_ns) is NOTHING
    now_ns = batches(forecast, 1, now_ns)
    assert forecast.line(now_ns).ns(4, 64) == pytest.approx(100 * US)
    later_ns = now_ns + STALE_NS
    assert forecast.line(later_ns) is NOTHING
    later_ns = batches(forecast, ENOUGH, later_ns, took_ns=300 * US)
    assert forecast.line(later_ns).ns(4, 64) == pytest.approx(300 * US), "what was before the rest is forgotten"


def test_when_the_last_batches_were_slow_all_is_expected_to_be_and_when_they_are_fast_again_it_is_not():
    forecast = Forecast()
    now_ns = batches(forecast, 2 * ENOUGH, 0)
    now_ns = batches(forecast, 3, now_ns, took_ns=300 * US)
    assert forecast.line(now_ns).ns(4, 64) >= 290 * US
    now_ns = batches(forecast, 4, now_ns)
    assert forecast.line(now_ns).ns(4, 64) <= 310 * US
    assert forecast.line(now_ns).row_ns * 4 + forecast.line(now_ns).batch_ns == pytest.approx(100 * US)


def test_what_is_left_of_a_batch_shrinks_to_nothing():
    forecast = Forecast()
    now_ns = batches(forecast, ENOUGH, 0)
    assert forecast.left_ns(now_ns, 64) == 0
    forecast.begin(4, now_ns)
    assert forecast.left_ns(now_ns + 40 * US, 64) == pytest.approx(60 * US)
    assert forecast.left_ns(now_ns + 400 * US, 64) == 0
