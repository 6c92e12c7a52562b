"""What a latent's specification refuses, and the scales that it gives."""

from __future__ import annotations

import numpy as np
import pytest

from splitcore.errors import CodecError
from splitcore.latent import MAX_ELEMENTS, LatentSpec


@pytest.mark.parametrize(
    ("shape", "lo", "hi", "std"),
    [
        ((), (), (), 1.0),
        ((0,), (), (), 1.0),
        ((-2,), (0.0,), (1.0,), 1.0),
        ((2, 0), (0.0,) * 2, (1.0,) * 2, 1.0),
        ((2.0,), (0.0,) * 2, (1.0,) * 2, 1.0),
        ((2,), (0.0,), (1.0,), 1.0),
        ((2,), (0.0,) * 2, (1.0,), 1.0),
        ((1,), (0.0,), (0.0,), 1.0),
        ((1,), (1.0,), (0.0,), 1.0),
        ((1,), (float("nan"),), (0.0,), 1.0),
        ((1,), (0.0,), (float("inf"),), 1.0),
        ((1,), (0.0,), (1e7,), 1.0),
        ((1,), (-1e7,), (1.0,), 1.0),
        ((1,), (0.0,), (1.0,), 0.0),
        ((1,), (0.0,), (1.0,), float("nan")),
        ((1, MAX_ELEMENTS + 1), (0.0,), (1.0,), 1.0),
        ((1, 2**40, 2**40), (0.0,), (1.0,), 1.0),
    ],
)
def test_a_specification_that_cannot_be_is_refused(
    shape: tuple[int, ...], lo: tuple[float, ...], hi: tuple[float, ...], std: float
) -> None:
    with pytest.raises(CodecError, match="got"):
        LatentSpec(shape, lo, hi, std)


def test_the_scales_of_a_latent_come_from_its_specification() -> None:
    spec = LatentSpec((2, 3, 4), (-1.0, 0.0), (1.0, 5.0), 0.5)
    assert (spec.channels, spec.elements, spec.range) == (2, 24, 6.0)
    assert spec.per_channel(spec.hi).shape == (2, 1, 1) and spec.per_channel(spec.hi).dtype == np.float32
    assert LatentSpec((4,), (0.0,) * 4, (1.0,) * 4, 1.0).per_channel((0.0,) * 4).shape == (4,)


def test_latents_of_any_layout_and_type_become_contiguous_float32() -> None:
    spec = LatentSpec((2, 3), (0.0,) * 2, (1.0,) * 2, 1.0)
    turned = np.arange(24, dtype=np.float64).reshape(3, 2, 4).T
    stack = spec.check(turned)
    assert stack.dtype == np.float32 and stack.flags.c_contiguous and (stack == turned).all()
