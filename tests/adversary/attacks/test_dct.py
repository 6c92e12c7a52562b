"""The cosine transform against its closed form."""

from __future__ import annotations

import numpy as np
import pytest

from adversary.attacks.dct import by_frequency, dct2, idct2, low, matrix, planes, smooth

SIZES = [(1, 1), (1, 7), (5, 1), (4, 4), (7, 14), (14, 7)]


def maps(H: int, W: int) -> np.ndarray:
    return np.random.default_rng(H * 100 + W).standard_normal((2, 3, H, W)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 256])
def test_the_rows_of_the_transform_are_orthonormal(n: int) -> None:
    assert matrix(n).dtype == np.float32
    np.testing.assert_allclose(matrix(n) @ matrix(n).T, np.eye(n), atol=1e-5)


@pytest.mark.parametrize(("H", "W"), SIZES)
def test_the_transform_is_the_sum_of_cosines_and_its_inverse_gives_the_map_back(H: int, W: int) -> None:
    x = maps(H, W)
    spectrum = dct2(x)
    assert spectrum.dtype == np.float32
    i, j = np.mgrid[:H, :W] + 0.5
    for k in range(H):
        for m in range(W):
            wave = np.cos(np.pi * k * i / H) * np.cos(np.pi * m * j / W)
            expected = (x * wave).sum(axis=(-2, -1)) / np.sqrt((wave**2).sum())
            np.testing.assert_allclose(spectrum[..., k, m], expected, atol=1e-5)
    np.testing.assert_allclose(idct2(spectrum), x, atol=1e-5)


@pytest.mark.parametrize(("H", "W"), SIZES)
def test_a_low_corner_alone_gives_what_the_padded_spectrum_gives(H: int, W: int) -> None:
    h, w = low(H, W, 0.4)
    corner = np.ascontiguousarray(maps(H, W)[..., :h, :w])
    padded = np.zeros((2, 3, H, W), np.float32)
    padded[..., :h, :w] = corner
    np.testing.assert_allclose(smooth(corner, H, W), idct2(padded), atol=1e-5)


def test_the_low_share_is_never_empty() -> None:
    assert low(5, 4, 0.1) == (1, 1)
    assert low(14, 7, 0.5) == (7, 4)
    assert low(3, 3, 1.0) == (3, 3)


def test_a_latent_of_one_place_is_transformed_over_its_channels() -> None:
    assert planes((6, 14, 7)) == (6, 14, 7)
    assert planes((64, 1, 1)) == (1, 1, 64)
    assert planes((40,)) == (1, 1, 40)
    assert planes((6, 10)) == (6, 10, 1)


def test_frequencies_are_ordered_from_the_mean_to_the_checkerboard() -> None:
    order = by_frequency(4, 6)
    assert sorted(order) == list(range(24))
    assert order[0] == 0
    assert order[1] == 1  # one sixth of a wave across the longer side is lower than a quarter
    assert order[-1] == 23
