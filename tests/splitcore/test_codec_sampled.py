"""`uniform` on each latent's own range: what the range does, and the grid that stands still for whoever changes a payload."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitcore.codec import fit
from splitcore.latent import LatentSpec

SPEC = LatentSpec((3, 4, 5), (-1.0, 0.0, -7.0), (1.0, 2.5, 9.0), 1.0)
NAMES = [f"uniform{bits}/{per}/sample" for bits in (1, 3, 8) for per in ("tensor", "channel")]
RNG = np.random.default_rng(0)
LATENTS = (RNG.standard_normal((6, *SPEC.shape)) * 10.0 ** RNG.integers(-3, 4, (6, 3, 1, 1))).astype(np.float32)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_smallest_and_the_largest_value_of_each_range_arrive_as_they_are(bits: int) -> None:
    arrived = fit(f"uniform{bits}/channel/sample", SPEC).snap(LATENTS)
    lo, hi = LATENTS.min((2, 3), keepdims=True), LATENTS.max((2, 3), keepdims=True)
    np.testing.assert_array_equal(arrived.min((2, 3), keepdims=True), lo)
    np.testing.assert_array_equal(arrived.max((2, 3), keepdims=True), hi)
    assert (np.abs(arrived - LATENTS) <= (hi - lo) / (2**bits - 1) * 0.501).all()


@given(
    latents=hnp.arrays(np.float32, (1, 2, 5), elements=st.floats(-2e6, 2e6, width=32)),
    bits=st.integers(1, 8),
    per=st.sampled_from(["tensor", "channel"]),
)
@settings(deadline=None, max_examples=300)
def test_encoding_again_changes_nothing_for_any_latent(latents: np.ndarray, bits: int, per: str) -> None:
    codec = fit(f"uniform{bits}/{per}/sample", LatentSpec((2, 5), (0.0,) * 2, (1.0,) * 2, 1.0))
    payloads = codec.encode(latents)
    arrived = codec.decode(payloads)
    assert arrived.tobytes() == codec.snap(latents).tobytes()
    assert codec.encode(arrived) == payloads


@pytest.mark.parametrize("value", [0.0, 1e-40, -1e-40, 3.0, -3.0, 1e6, -1e6, 12345.678])
def test_a_constant_latent_arrives_as_it_is(value: float) -> None:
    latents = np.full((1, *SPEC.shape), value, np.float32)
    for name in NAMES:
        assert (fit(name, SPEC).snap(latents) == latents).all()


def test_a_nearly_constant_channel_loses_no_more_than_float32_hardly_resolves() -> None:
    latents = (100 + 1e-4 * RNG.random((4, *SPEC.shape))).astype(np.float32)
    assert np.abs(fit("uniform8/channel/sample", SPEC).snap(latents) - latents).max() < 100 * 2**-11


@pytest.mark.parametrize("suffix", ["", "+zstd"])
@pytest.mark.parametrize("name", NAMES)
def test_whoever_keeps_a_payloads_range_moves_on_a_grid_that_stands_still(name: str, suffix: str) -> None:
    codec = fit(name + suffix, SPEC)
    [payload] = codec.encode(LATENTS[:1])
    centre = codec.decode([payload])[0]
    grid = codec.as_sent(payload)
    assert grid.name == codec.name and (grid.lo >= codec.lo).all() and (grid.hi <= codec.hi).all()

    moved = centre + (RNG.standard_normal((20, *SPEC.shape)) * 2 * grid.step).astype(np.float32)
    payloads = grid.encode(moved)
    arrived = codec.decode(payloads)

    assert grid.encode(centre[None]) == [payload]
    assert arrived.tobytes() == grid.snap(moved).tobytes() == grid.snap(arrived).tobytes() == grid.decode(payloads).tobytes()
    assert grid.encode(arrived) == payloads
    inside = np.clip(moved, grid.lo, grid.hi)
    assert (np.abs(arrived - inside) <= grid.step * 0.501).all()
    towards = grid.snap_towards(moved, centre)
    assert (np.abs(towards - centre) <= np.abs(moved - centre) + 1e-5 * np.abs(centre)).all()
    # each coordinate by itself: what is put together of two snapped latents is snapped
    mixed = np.where(RNG.random(arrived.shape) < 0.5, arrived, centre)
    assert grid.snap(mixed).tobytes() == mixed.tobytes()


def test_other_codecs_write_on_the_grid_of_any_payload_already() -> None:
    for name in ("identity", "float16", "uniform4/channel", "uniform4/tensor+zstd"):
        codec = fit(name, SPEC)
        assert codec.as_sent(codec.encode(LATENTS[:1])[0]) is codec and not codec.coupled


@pytest.mark.parametrize("name", NAMES)
def test_towards_the_centre_no_coordinate_ends_farther_although_the_range_moves(name: str) -> None:
    codec = fit(name, SPEC)
    centre = codec.snap(LATENTS[:1])[0]
    moved = centre + (RNG.standard_normal((20, *SPEC.shape)) * 0.5).astype(np.float32)
    towards = codec.snap_towards(moved, centre)
    assert codec.coupled and (np.abs(towards - centre) <= np.abs(moved - centre)).all()
    assert codec.snap(towards).tobytes() == towards.tobytes()
