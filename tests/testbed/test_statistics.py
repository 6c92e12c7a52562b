"""Shares, intervals, percentiles and curves, each against its closed form."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.report.statistics import median, percentiles, rate, rate_of, success_over


def wilson(count: int, n: int) -> tuple[float, float]:
    """(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)"""
    z, p = NormalDist().inv_cdf(0.975), count / n
    centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(case: tuple[int, int]) -> None:
    count, n = case
    got = rate_of(count, n)
    assert (got.low, got.high) == pytest.approx(wilson(count, n), abs=1e-12)
    assert got.low is not None and got.high is not None and got.value is not None
    assert 0 <= got.low <= got.value + 1e-12 and got.value <= got.high + 1e-12 <= 1 + 2e-12


def test_a_share_of_nothing_is_null_and_says_so_by_its_denominator() -> None:
    got = rate([])
    assert (got.value, got.low, got.high, got.n) == (None, None, None, 0)


def test_a_share_keeps_its_count_and_denominator() -> None:
    got = rate([True, False, True, True])
    assert (got.value, got.count, got.n) == (0.75, 3, 4)


def test_percentiles_of_a_ramp_are_on_the_ramp() -> None:
    got = percentiles([float(x) for x in range(101)])
    assert (got.p50, got.p90, got.p99, got.n) == (50.0, 90.0, 99.0, 101)


def test_percentiles_of_nothing_are_null_with_a_reason() -> None:
    got = percentiles([])
    assert got.p50 is None and got.n == 0 and got.hidden


def test_the_median_of_nothing_is_none() -> None:
    assert median([]) is None
    assert median([1, 3, 2]) == 2


def test_success_over_steps_up_at_each_success_and_ends_at_the_budget() -> None:
    assert success_over([5, 2, 5], 4, 10) == [(0, 0.0), (2, 0.25), (5, 0.75), (10, 0.75)]


def test_success_over_of_an_attack_that_asks_nothing_is_there_from_the_start() -> None:
    assert success_over([0, 0], 4, None) == [(0, 0.5)]


@given(st.lists(st.integers(1, 50), max_size=30))
def test_success_over_never_falls_and_ends_at_the_success_rate(needed: list[int]) -> None:
    curve = success_over(needed, 30, 50)
    shares = [value for _, value in curve]
    assert shares == sorted(shares) and shares[-1] == len(needed) / 30
    assert [q for q, _ in curve] == sorted({q for q, _ in curve})
