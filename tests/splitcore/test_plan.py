"""Neurosurgeon's rule by its closed form."""

from __future__ import annotations

import pytest

from splitcore.plan import CutProfile, LinkEstimate, best, predicted_ms

PHONE = CutProfile(name="phone", head_ms=90, encode_ms=1, bytes_up=100, edge_ms=0)
MIDDLE = CutProfile(name="middle", head_ms=20, encode_ms=2, bytes_up=10_000, edge_ms=3)
IMAGE = CutProfile(name="image", head_ms=0, encode_ms=4, bytes_up=100_000, edge_ms=5)


def link(rate_up_kbps: float, round_trip_ms: float = 10.0) -> LinkEstimate:
    return LinkEstimate(rate_up_kbps=rate_up_kbps, round_trip_ms=round_trip_ms)


def test_the_time_is_the_sum_of_its_parts() -> None:
    # 10,000 bytes at 8 Mbit/s are 10 ms
    assert predicted_ms(MIDDLE, link(8_000)) == pytest.approx(20 + 2 + 10 + 10 + 3)
    assert predicted_ms(IMAGE, link(float("inf"), 0)) == pytest.approx(9)


@pytest.mark.parametrize(("rate_up_kbps", "expected"), [(100, PHONE), (5_000, MIDDLE), (100_000, IMAGE)])
def test_the_best_cut_moves_towards_the_image_as_the_link_gets_faster(rate_up_kbps: float, expected: CutProfile) -> None:
    assert best((PHONE, MIDDLE, IMAGE), link(rate_up_kbps)) is expected


def test_the_first_of_equal_ones_is_taken_and_of_none_none() -> None:
    assert best((MIDDLE, CutProfile(**{**vars(MIDDLE), "name": "same"})), link(1000)) is MIDDLE
    with pytest.raises(ValueError, match="empty"):
        best((), link(1000))
