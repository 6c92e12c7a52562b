"""Fingerprints of latents, and the queries that lately had the same: the arithmetic of Blacklight (blacklight.py).

A fingerprint is the k smallest of the salted hashes of all windows of w neighbouring quantised values. Two ways to hash:
`sha256`, as in the paper, and `multilinear` (Carter and Wegman, "Universal classes of hash functions", 1979): the sum of
secret 64-bit coefficients times the window's levels modulo 2^64, for all windows at once from one running sum, then mixed.
One-wayness is of no use here, for no hash leaves the process; two different windows agree with a chance of about 2^-60.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from splitcore.latent import F32, LatentSpec

U64: TypeAlias = NDArray[np.uint64]
Hashing: TypeAlias = Literal["multilinear", "sha256"]

WAYS = 8
"""queries remembered at most that had the same hash: the newest"""
AT_ONCE = 1 << 15
"""values that are hashed together: what the processor's cache holds"""


class Fingerprints:
    """Latents [rows, *shape] to fingerprints [rows, at most k], ascending."""

    def __init__(
        self, latent: LatentSpec, *, step: float, w: int, stride: int, k: int, hashing: Hashing, rng: np.random.Generator
    ) -> None:
        """`step`: of the quantiser, as a share of each channel's calibrated range."""
        d = latent.elements
        width = latent.per_channel(latent.hi) - latent.per_channel(latent.lo)
        self._scale = np.broadcast_to(np.float32(1 / step) / width, latent.shape).reshape(d).astype(np.float32)
        # the dither hides where the levels end, so that nobody can walk along within one
        self._dither = rng.random(d, np.float32)
        self.w, self._stride = min(w, d), stride
        self.windows = (d - self.w) // stride + 1
        self.k = min(k, self.windows)
        self._salt = rng.bytes(32)
        self._coefficients = rng.integers(0, 1 << 64, d, np.uint64, endpoint=False) | np.uint64(1)
        self._places = rng.integers(0, 1 << 64, self.windows, np.uint64, endpoint=False)
        self._hash = self._multilinear if hashing == "multilinear" else self._sha256

    def levels(self, latents: F32) -> NDArray[np.int32]:
        """Quantised [rows, d]: what is beyond int16 is as good as there."""
        flat = latents.reshape(len(latents), -1) * self._scale
        flat += self._dither
        return np.clip(np.floor(flat, out=flat), -32768, 32767, out=flat).astype(np.int32)

    def __call__(self, latents: F32) -> U64:
        out = np.empty((len(latents), self.k), np.uint64)
        together = max(1, AT_ONCE // self._scale.size)
        for at in range(0, len(latents), together):
            hashes = self._hash(self.levels(latents[at : at + together]))
            if self.k < self.windows:
                hashes = np.partition(hashes, self.k - 1, axis=1)[:, : self.k]
            out[at : at + together] = hashes
        out.sort(axis=1)
        return out

    def _multilinear(self, levels: NDArray[np.int32]) -> U64:
        rows, d = levels.shape
        running = np.zeros((rows, d + 1), np.uint64)
        np.cumsum(levels.astype(np.uint64) * self._coefficients, axis=1, out=running[:, 1:])  # modulo 2^64, as it should be
        sums = running[:, self.w :: self._stride] - running[:, : d + 1 - self.w : self._stride]
        return _mixed(sums[:, : self.windows] ^ self._places)

    def _sha256(self, levels: NDArray[np.int32]) -> U64:
        windows = sliding_window_view(levels.astype("<i2"), self.w, axis=1)[:, :: self._stride]
        out = np.empty(windows.shape[:2], np.uint64)
        for row, stack in enumerate(windows):
            for place, window in enumerate(stack):
                digest = hashlib.sha256(self._salt + place.to_bytes(4, "little") + window.tobytes()).digest()
                out[row, place] = int.from_bytes(digest[:8], "little")
        return out


def _mixed(x: U64) -> U64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit of the sum on every bit of the hash."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Recent:
    """Which of the newest queries had a hash: a set-associative table of fixed size, in which a new entry takes the place of
    its set's oldest. A set is one cache line: the upper halves of WAYS hashes, and the numbers of the queries that had them."""

    def __init__(self, queries: int, k: int) -> None:
        """Room for twice the hashes of that many queries."""
        self._queries, self._number = queries, 0
        sets = 1 << max(4, (2 * queries * k // WAYS - 1).bit_length())
        self._mask = np.uint64(sets - 1)
        self._table = np.zeros((sets, 2 * WAYS), np.uint32)

    def look(self, prints: U64, enough: int) -> list[tuple[int, int]]:
        """Takes the fingerprints [rows, k] of new queries, which are numbered from 1. For each the newest one before it
        that shares at least `enough` hashes, and how many these are; (0, 0) where there is none."""
        if self._number + len(prints) >= 1 << 32:
            self._table[:], self._number = 0, 0  # numbers have 32 bits
        sets, tags = (prints & self._mask).astype(np.intp), (prints >> np.uint64(32)).astype(np.uint32)
        return [self._look(at, tag, enough) for at, tag in zip(sets, tags, strict=True)]

    def _look(self, at: NDArray[np.intp], tags: NDArray[np.uint32], enough: int) -> tuple[int, int]:
        self._number += 1
        lines = self._table[at]  # [k, 2 WAYS]
        numbers = lines[:, WAYS:]
        found = numbers[lines[:, :WAYS] == tags[:, None]]
        oldest = numbers.argmin(axis=1)
        self._table[at, oldest] = tags
        self._table[at, oldest + WAYS] = self._number
        if len(found) < enough:
            return 0, 0
        found.sort()
        # sorted, a number that is there so often is the same so many places apart; the last is the newest
        often = found[enough - 1 :][found[enough - 1 :] == found[: len(found) - enough + 1]]
        if not len(often) or often[-1] <= max(0, self._number - 1 - self._queries):
            return 0, 0
        return int(often[-1]), int((found == often[-1]).sum())

    @property
    def nbytes(self) -> int:
        return self._table.nbytes
