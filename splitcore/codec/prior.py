"""The factorised prior of entropy coding: how probable each integer is in each channel, as integer tables of 16 bits.

Ballé et al., "Variational image compression with a scale hyperprior", ICLR 2018, section 2: one density a channel, the same at
every position. Both ends must hold the same numbers to the last bit, and floating-point densities differ between machines, so
the tables are integers, made once, frozen into the manifest, and the codec's name carries their hash.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import CodecError

TOTAL = 1 << 16
"""what the frequencies of a channel add up to"""
LOWEST, HIGHEST = -(1 << 15), (1 << 15) - 1
"""symbols are int16, so that an escaped one is two bytes"""
MAX_SYMBOLS = 4096
"""of one channel's table"""
MAX_ENTRIES = 1 << 20
"""of all tables together"""


@dataclass(frozen=True)
class Prior:
    """Tables of C channels: a latent's value is symbol·step, and symbol offset + i has frequency cdf[i + 1] - cdf[i]."""

    offset: tuple[int, ...]
    """[C] the symbol that a table begins with"""
    cdf: tuple[tuple[int, ...], ...]
    """[C][n + 2] cumulated frequencies of n symbols and of the escape, strictly rising from 0 to 65536"""
    step: tuple[float, ...]
    """[C] distance between neighbouring values; 1: the latent itself is rounded to integers"""

    def __post_init__(self) -> None:
        if not len(self.offset) == len(self.cdf) == len(self.step) or len(self.cdf) >= TOTAL:
            lengths = f"{len(self.offset)}, {len(self.cdf)}, {len(self.step)}"
            raise CodecError(f"a prior has as many offsets as tables and steps, fewer than {TOTAL}, got {lengths}")
        if sum(map(len, self.cdf)) > MAX_ENTRIES:
            raise CodecError(
                f"a prior has at most {MAX_ENTRIES} entries, got {sum(map(len, self.cdf))}: shorten the tables' tails"
            )
        for channel, (first, cdf) in enumerate(zip(self.offset, self.cdf, strict=True)):
            n = len(cdf) - 2
            if not 1 <= n <= MAX_SYMBOLS or first < LOWEST or first + n - 1 > HIGHEST:
                raise CodecError(
                    f"a prior's table has 1 to {MAX_SYMBOLS} symbols within {LOWEST}..{HIGHEST}, got {n} from {first} on "
                    f"in channel {channel}"
                )
            if cdf[0] != 0 or cdf[-1] != TOTAL or (np.diff(cdf) < 1).any():
                raise CodecError(f"a prior's table rises strictly from 0 to {TOTAL}, that of channel {channel} does not")
        if not all(math.isfinite(step) and 1e-6 <= step <= 30 for step in self.step):
            raise CodecError(f"a prior's steps lie in [1e-6, 30], got {min(self.step)} to {max(self.step)}")

    @classmethod
    def of(
        cls, masses: Sequence[NDArray[np.floating]], offset: Sequence[int], step: Sequence[float], *, rare: float = 1e-6
    ) -> Prior:
        """From probabilities or counts [C][n] of the symbols from `offset` on; `rare`: share of those outside of the tables."""
        cdf = []
        for mass in masses:
            whole = np.asarray(mass, np.float64)
            if whole.ndim != 1 or not (np.isfinite(whole).all() and (whole >= 0).all() and whole.sum() > 0):
                raise CodecError("expected masses [n] that are finite, not negative and not all zero: count some latents first")
            frequencies = integer_frequencies(np.append(whole / whole.sum() * (1 - rare), rare))
            cdf.append((0, *np.cumsum(frequencies).tolist()))
        return cls(tuple(map(int, offset)), tuple(cdf), tuple(float(np.float32(value)) for value in step))

    @classmethod
    def counted(cls, latents: NDArray[np.floating], step: Sequence[float]) -> Prior:
        """From the histogram of latents [k, C, ...], a channel's `step` apart; a symbol that never was has half a count."""
        masses, offset = [], []
        for c, width in enumerate(step):
            symbols = np.clip(np.rint(latents[:, c].ravel() / np.float32(width)), LOWEST, HIGHEST).astype(np.int64)
            median = int(np.median(symbols))
            first = max(int(symbols.min()), median - MAX_SYMBOLS // 2)
            counts = np.bincount((symbols - first)[symbols >= first])[:MAX_SYMBOLS]
            masses.append(np.maximum(counts, 0.5))
            offset.append(first)
        return cls.of(masses, offset, step)

    @cached_property
    def hash(self) -> str:
        """8 hexadecimal digits that stand for the tables."""
        exact = json.dumps([self.offset, self.cdf, self.step], separators=(",", ":"))
        return hashlib.sha256(exact.encode()).hexdigest()[:8]


def integer_frequencies(p: NDArray[np.float64]) -> NDArray[np.int64]:
    """Probabilities [n] to frequencies >= 1 that add up to 65536, near p·65536."""
    exact = p * TOTAL
    frequencies = np.maximum(np.floor(exact), 1).astype(np.int64)
    missing = TOTAL - int(frequencies.sum())
    if missing > 0:
        frequencies[np.argsort(-(exact - frequencies), kind="stable")[:missing]] += 1
        missing = TOTAL - int(frequencies.sum())
        frequencies[frequencies.argmax()] += max(missing, 0)
    while missing < 0:  # the rare were raised to 1: the frequent feel it least
        largest = int(frequencies.argmax())
        taken = min(-missing, max(int(frequencies[largest]) // 64, 1))
        frequencies[largest] -= taken
        missing += taken
    return frequencies
