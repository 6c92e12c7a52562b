"""Coarse maps and how they are stretched, against torch's interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adversary.attacks.coarse import gain, plane, side, stretch, weights


@pytest.mark.parametrize(("h", "w", "H", "W"), [(2, 3, 5, 7), (1, 1, 4, 4), (6, 6, 14, 14), (4, 1, 4, 9), (2, 2, 3, 2)])
def test_a_map_is_stretched_as_torch_does_it(h: int, w: int, H: int, W: int) -> None:
    coarse = np.random.default_rng(0).standard_normal((5, h, w)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], size=(H, W), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(stretch(coarse, H, W), theirs[0].numpy(), atol=1e-6)


def test_a_map_of_equal_sides_is_left_alone() -> None:
    coarse = np.ones((2, 3, 4), np.float32)
    assert stretch(coarse, 3, 4) is coarse


def test_the_gain_is_what_independent_values_grow_by() -> None:
    values = np.random.default_rng(0).standard_normal((4000, 6, 6)).astype(np.float32)
    grown = np.linalg.norm(stretch(values, 14, 14)) / np.linalg.norm(values)
    assert grown == pytest.approx(gain(14, 6) ** 2, rel=0.01)
    assert gain(7, 7) == pytest.approx(1)
    assert (weights(9, 4).sum(axis=1) == pytest.approx(1)) is True


def test_vectors_and_tokens_have_no_neighbours() -> None:
    assert plane((6, 14, 7)) == (6, 14, 7)
    assert plane((40,)) == (40, 1, 1)
    assert plane((6, 10)) == (60, 1, 1)


def test_a_short_side_is_kept_whole() -> None:
    assert [side(n, 0.4, 4) for n in (1, 3, 4, 8, 14, 32)] == [1, 3, 4, 4, 6, 13]
