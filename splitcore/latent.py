"""The latent: what the head computes, the wire carries and the tail consumes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import CodecError

if TYPE_CHECKING:
    from splitcore.codec.prior import Prior

F32: TypeAlias = NDArray[np.float32]

MAX_ELEMENTS = 1 << 26
"""elements of one latent at most: 256 MiB of float32, above every cut of the networks in use"""


@dataclass(frozen=True)
class LatentSpec:
    """Shape and calibrated range of a latent.

    `lo` and `hi` are the per-channel ranges [C] of the calibration set, C = shape[0]; `std` is its standard deviation
    over all elements. Codecs and attack budgets take their scales from here, so both ends agree on them. `prior` holds the
    tables of the entropy coder, where one was trained.
    """

    shape: tuple[int, ...]
    lo: tuple[float, ...]
    hi: tuple[float, ...]
    std: float
    prior: Prior | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.shape or any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise CodecError(f"a latent's shape is one or more positive integers, got {self.shape}")
        if self.elements > MAX_ELEMENTS:
            raise CodecError(f"a latent has at most {MAX_ELEMENTS} elements, got {self.elements} from {self.shape}")
        if len(self.lo) != self.channels or len(self.hi) != self.channels:
            raise CodecError(f"expected {self.channels} channel ranges, got {len(self.lo)} and {len(self.hi)}")
        for lo, hi in zip(self.lo, self.hi, strict=True):
            if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi and max(-lo, hi) < 1e6):
                raise CodecError(f"a channel's range is finite, below 1e6 and lo < hi, got [{lo}, {hi}]")
        if self.prior is not None and len(self.prior.cdf) != self.channels:
            raise CodecError(f"expected a prior of {self.channels} channels, got one of {len(self.prior.cdf)}")
        if not (math.isfinite(self.std) and self.std > 0):
            raise CodecError(f"a latent's std is positive and finite, got {self.std}")

    @property
    def channels(self) -> int:
        return self.shape[0]

    @cached_property
    def elements(self) -> int:
        return math.prod(self.shape)

    def per_channel(self, values: tuple[float, ...]) -> F32:
        """[C] values as float32 [C, 1, ..., 1], ready to broadcast over a latent."""
        return np.asarray(values, np.float32).reshape(self.channels, *([1] * (len(self.shape) - 1)))

    @property
    def range(self) -> float:
        """The width of the widest span of the whole tensor, max(hi) - min(lo)."""
        return max(self.hi) - min(self.lo)

    def check(self, latents: NDArray[np.generic]) -> F32:
        """Latents [k, *shape] as finite float32. Raises CodecError."""
        if latents.shape[1:] != self.shape or latents.ndim != len(self.shape) + 1:
            raise CodecError(f"expected latents [k, {', '.join(map(str, self.shape))}], got {list(latents.shape)}")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, and is refused as that
            stack = np.ascontiguousarray(latents, np.float32)
        if not all_finite(stack):
            raise CodecError("expected finite latents, got NaN or infinity: the head or the sender is at fault")
        return stack


def all_finite(stack: F32) -> bool:
    """Whether no number of a contiguous array is NaN or infinite."""
    # a sum of squares is finite when all of it is, and one pass of BLAS; a float32 may overflow, so a doubt is looked into
    return bool(np.isfinite(np.vdot(stack, stack)) or np.isfinite(stack).all())
