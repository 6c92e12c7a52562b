"""The orthonormal cosine transform of maps: what is smooth lies in few low frequencies.

DCT-II, Ahmed, Natarajan, Rao, "Discrete Cosine Transform", IEEE Trans. Computers 1974; `idct2` is its transpose (DCT-III). As
the transform keeps lengths and angles, a random direction among low frequencies is a smooth one of the same length.

A shape is seen as `planes`: its channels' maps, or, where a map is one place only, the channels themselves as one line. The
order of channels means nothing, so "low" is then no more than a fixed orthonormal subspace.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from adversary.attacks.base import as_map
from splitcore.latent import F32


def planes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Any shape as [n, H, W] to transform over H and W: [C, H, W], and where H = W = 1 one line [1, 1, C]."""
    C, H, W = as_map(shape)
    return (C, H, W) if H * W > 1 else (1, 1, C)


@cache
def matrix(n: int) -> F32:
    """[n, n], read-only; row k is frequency k, and the rows are orthonormal."""
    k, at = np.arange(n)[:, None], np.arange(n) + 0.5
    rows = np.cos(np.pi / n * k * at) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    cosines: F32 = rows.astype(np.float32)
    cosines.flags.writeable = False
    return cosines


def dct2(x: F32) -> F32:
    """Frequencies [..., H, W] of x [..., H, W]; [0, 0] is the mean times √(H·W)."""
    return _apply(x, matrix(x.shape[-2]), matrix(x.shape[-1]))


def idct2(spectrum: F32) -> F32:
    """x [..., H, W] of its frequencies [..., H, W]."""
    return _apply(spectrum, matrix(spectrum.shape[-2]).T, matrix(spectrum.shape[-1]).T)


def low(H: int, W: int, share: float) -> tuple[int, int]:
    """(h, w): the corner of the lowest `share` of the frequencies along each axis, at least one."""
    return max(1, math.ceil(share * H)), max(1, math.ceil(share * W))


def smooth(corner: F32, H: int, W: int) -> F32:
    """x [..., H, W] of its lowest frequencies [..., h, w], all others 0: cheaper than `idct2` of the padded spectrum."""
    h, w = corner.shape[-2:]
    return _apply(corner, matrix(H)[:h].T, matrix(W)[:w].T)


def by_frequency(H: int, W: int) -> NDArray[np.int64]:
    """[H·W]: the flat indices of a spectrum from the lowest frequency to the highest, (i/H)² + (j/W)²."""
    i, j = np.arange(H)[:, None] / H, np.arange(W) / W
    order: NDArray[np.int64] = np.argsort((i**2 + j**2).ravel(), kind="stable")
    return order


def _apply(x: F32, rows: F32, columns: F32) -> F32:
    """rows @ x @ columnsᵀ for each [H, W] of x: the columns of all at once, which is one product of matrices."""
    *outer, H, W = x.shape
    halfway = np.ascontiguousarray(x).reshape(-1, W) @ columns.T
    transformed: F32 = rows @ halfway.reshape(*outer, H, len(columns))
    return transformed
