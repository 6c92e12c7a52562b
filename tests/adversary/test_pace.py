"""How many sections a search takes: the fewest rows where rows cost, the fewest round trips where those do."""

from __future__ import annotations

import math

import pytest

from adversary.pace import CHOICES, Pace


def test_bisection_is_cheapest_where_a_round_trip_costs_no_more_than_the_rows() -> None:
    assert Pace(round_trip_s=0.0, row_s=20e-6, sessions=1).sections == 2
    assert Pace(round_trip_s=0.0003, row_s=20e-6, sessions=64).sections == 2


def test_a_long_way_takes_many_sections_and_a_crowd_fewer() -> None:
    alone = Pace(round_trip_s=0.05, row_s=20e-6, sessions=1).sections
    crowd = Pace(round_trip_s=0.05, row_s=20e-6, sessions=256).sections
    assert alone == CHOICES[-1]
    assert 2 < crowd < alone


@pytest.mark.parametrize("round_trip_ms", [0.2, 1, 10, 100])
@pytest.mark.parametrize("sessions", [1, 16, 64, 512])
def test_the_choice_takes_the_least_time_for_twenty_bits(round_trip_ms: float, sessions: int) -> None:
    """The time of a whole search, written out: rounds that give log2(m) bits each."""
    row_s = 25e-6

    def search_s(m: int) -> float:
        one_round = max(round_trip_ms / 1e3 + (m - 1) * row_s, sessions * (m - 1) * row_s)
        return 20 / math.log2(m) * one_round

    chosen = Pace(round_trip_ms / 1e3, row_s, sessions).sections
    assert search_s(chosen) == pytest.approx(min(search_s(m) for m in CHOICES))
