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
    its set's oldest. Queries are numbered from 1."""

    def __init__(self, queries: int, k: int) -> None:
        """Room for twice the hashes of that many queries."""
        self._queries = queries
        sets = 1 << max(4, (2 * queries * k // WAYS - 1).bit_length())
        self._mask = np.uint64(sets - 1)
        self._hashes = np.zeros((sets, WAYS), np.uint64)
        self._numbers = np.zeros((sets, WAYS), np.int64)

    def most_like(self, hashes: U64, number: int) -> tuple[int, int]:
        """Of the queries before `number` that shares most of `hashes`: its number, and how many. (0, 0): none shares any."""
        at = (hashes & self._mask).astype(np.intp)
        numbers = self._numbers[at]
        found = numbers[(self._hashes[at] == hashes[:, None]) & (numbers > max(0, number - 1 - self._queries))]
        if not found.size:
            return 0, 0
        first = int(found.min())
        counts = np.bincount(found - first)
        best = len(counts) - 1 - int(counts[::-1].argmax())  # the newest of equals
        return first + best, int(counts[best])

    def add(self, hashes: U64, number: int) -> None:
        at = (hashes & self._mask).astype(np.intp)
        oldest = self._numbers[at].argmin(axis=1)
        self._hashes[at, oldest] = hashes
        self._numbers[at, oldest] = number

    @property
    def nbytes(self) -> int:
        return self._hashes.nbytes + self._numbers.nbytes
