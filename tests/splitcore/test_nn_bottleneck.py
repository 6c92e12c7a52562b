"""Bottlenecks: what training sees is what the codec does, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splitcore.codec import fit
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck import BOTTLENECKS, BottleneckConfig, Float16Bottleneck, IdentityBottleneck, UniformBottleneck

SPEC = LatentSpec((3, 2, 2), (-1.5, -0.1, 2.0), (0.7, 0.3, 9.0), 1.0)
ADAPTER: TypeAdapter[BottleneckConfig] = TypeAdapter(BottleneckConfig)
EVERY = [
    IdentityBottleneck(),
    Float16Bottleneck(zstd=True),
    *(UniformBottleneck(bits=bits, per=per) for bits in range(2, 9) for per in ("tensor", "channel")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("config", EVERY, ids=str)
@given(seed=st.integers(0, 1 << 32), scale=st.sampled_from([1e-6, 1.0, 30.0, 1e5]))
def test_a_frozen_bottleneck_equals_its_codecs_snap(config: BottleneckConfig, seed: int, scale: float) -> None:
    z = (np.random.default_rng(seed).standard_normal((5, *SPEC.shape)) * scale).astype(np.float32)
    bottleneck = config.build()
    bottleneck.freeze(SPEC)
    np.testing.assert_array_equal(
        bottleneck(torch.from_numpy(z)).numpy(), fit(bottleneck.codec_config(), SPEC).snap(z), strict=True
    )


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_values_half_way_between_two_codes_round_alike_in_torch_and_numpy(config: BottleneckConfig) -> None:
    codec = fit(UniformBottleneck(bits=4).build().codec_config(), SPEC)
    halves = codec.lo + (np.arange(12, dtype=np.float32).reshape(SPEC.shape) + np.float32(0.5)) * codec.step
    bottleneck = config.build()
    bottleneck.freeze(SPEC)
    snapped = fit(bottleneck.codec_config(), SPEC).snap(halves[None])
    np.testing.assert_array_equal(bottleneck(torch.from_numpy(halves[None])).numpy(), snapped)


def test_the_gradient_passes_straight_through_inside_the_range_and_stops_outside() -> None:
    bottleneck = UniformBottleneck(bits=2).build()
    bottleneck.freeze(SPEC)
    z = torch.tensor([-2.0, 0.5, 0.1, -0.2, 0.2, 0.4, 1.0, 3.0, 10.0, 8.0, 2.5, 2.0]).reshape(1, 3, 2, 2).requires_grad_()
    bottleneck(z).sum().backward()
    assert z.grad is not None
    assert z.grad.flatten().tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]


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
