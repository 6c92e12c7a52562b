"""Bottlenecks: what training sees is what the codec does, to the last bit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splitcore.codec import fit
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck import (
    BOTTLENECKS,
    BottleneckConfig,
    EntropyBottleneck,
    Float16Bottleneck,
    IdentityBottleneck,
    JpegBottleneck,
    JpegTriplesBottleneck,
    UniformBottleneck,
)

SPEC = LatentSpec((3, 2, 2), (-1.5, -0.1, 2.0), (0.7, 0.3, 9.0), 1.0)
ADAPTER: TypeAdapter[BottleneckConfig] = TypeAdapter(BottleneckConfig)
PER = ("tensor", "channel", "tensor/sample", "channel/sample")
EVERY = [
    IdentityBottleneck(),
    Float16Bottleneck(zstd=True),
    EntropyBottleneck(channels=3, step=0.3),
    JpegBottleneck(quality=60),
    JpegBottleneck(quality=95, zstd=True),
    JpegTriplesBottleneck(quality=80),
    *(UniformBottleneck(bits=bits, per=per) for bits in range(1, 9) for per in PER),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("config", EVERY, ids=str)
@given(seed=st.integers(0, 1 << 32), scale=st.sampled_from([1e-6, 1.0, 30.0, 1e5]))
@settings(max_examples=25, deadline=None)
def test_a_frozen_bottleneck_equals_its_codecs_snap(config: BottleneckConfig, seed: int, scale: float) -> None:
    z = (np.random.default_rng(seed).standard_normal((5, *SPEC.shape)) * scale).astype(np.float32)
    bottleneck = config.build()
    spec = bottleneck.freeze(SPEC)
    arrived = fit(bottleneck.codec_config(), spec).snap(z)
    np.testing.assert_array_equal(bottleneck(torch.from_numpy(z)).detach().numpy(), arrived, strict=True)


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_values_half_way_between_two_codes_round_alike_in_torch_and_numpy(config: BottleneckConfig) -> None:
    codec = fit(UniformBottleneck(bits=4).build().codec_config(), SPEC)
    halves = codec.lo + (np.arange(12, dtype=np.float32).reshape(SPEC.shape) + np.float32(0.5)) * codec.step
    bottleneck = config.build()
    spec = bottleneck.freeze(SPEC)
    snapped = fit(bottleneck.codec_config(), spec).snap(halves[None])
    np.testing.assert_array_equal(bottleneck(torch.from_numpy(halves[None])).detach().numpy(), snapped)


def test_the_gradient_passes_straight_through_inside_the_range_and_stops_outside() -> None:
    bottleneck = UniformBottleneck(bits=2).build()
    bottleneck.freeze(SPEC)
    z = torch.tensor([-2.0, 0.5, 0.1, -0.2, 0.2, 0.4, 1.0, 3.0, 10.0, 8.0, 2.5, 2.0]).reshape(1, 3, 2, 2).requires_grad_()
    bottleneck(z).sum().backward()
    assert z.grad is not None
    assert z.grad.flatten().tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]


def test_ranges_of_each_samples_own_agree_for_constant_huge_and_tiny_latents_and_for_vectors() -> None:
    rng = np.random.default_rng(3)
    for shape, per in product([(3, 2, 2), (4, 3), (5,)], PER[2:]):
        spec = LatentSpec(shape, (0.0,) * shape[0], (1.0,) * shape[0], 1.0)
        z = rng.standard_normal((40, *shape)).astype(np.float32)
        z *= np.float32(10) ** rng.integers(-30, 9, (40, *[1] * len(shape)))
        z[:10] = z[:10].reshape(10, -1)[:, :1].reshape(10, *[1] * len(shape))
        z[5:20] += np.float32(100)
        bottleneck = UniformBottleneck(bits=5, per=per).build()  # type: ignore[arg-type]
        assert bottleneck.freeze(spec) is spec
        arrived = fit(bottleneck.codec_config(), spec).snap(z)
        np.testing.assert_array_equal(bottleneck(torch.from_numpy(z)).numpy(), arrived)


def test_the_gradient_passes_straight_through_a_samples_own_range() -> None:
    z = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    UniformBottleneck(bits=1, per="channel/sample").build()(z).sum().backward()
    assert z.grad is not None and (z.grad == 1).all()


def test_while_training_the_range_is_the_batchs_own() -> None:
    z = torch.randn(16, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0, 0.0]).reshape(3, 1, 1)
    out = UniformBottleneck(bits=8).build()(z)
    assert (out[:, 0] - z[:, 0]).abs().max() < 0.02
    assert (out[:, 1] - z[:, 1]).abs().max() < 2
    torch.testing.assert_close(out[:, 2], z[:, 2])
    assert len(UniformBottleneck(bits=2, per="tensor").build()(z).unique()) <= 4


def test_the_family_is_discriminated_by_kind_and_refuses_unknown_keys() -> None:
    kinds = [ADAPTER.validate_python({"kind": bottleneck().kind}) for bottleneck in BOTTLENECKS]
    assert [type(config) for config in kinds] == list(BOTTLENECKS)
    for wrong in ({"kind": "vq"}, {"kind": "uniform", "bits": 9}, {"kind": "uniform", "bit": 8}, {"bits": 8}, {}):
        with pytest.raises(ValidationError):
            ADAPTER.validate_python(wrong)
