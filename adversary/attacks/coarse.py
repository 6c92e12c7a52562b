"""Fewer dimensions than a latent has: maps with shorter sides, and how they are stretched over the latent's own."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from splitcore.latent import F32


def plane(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """[C, H, W] as it is; vectors and tokens as [n, 1, 1]: their coordinates have no neighbours that smoothness could mean."""
    if len(shape) == 3:
        C, H, W = shape
        return C, H, W
    return math.prod(shape), 1, 1


def side(n: int, share: float, smallest: int) -> int:
    """A share of a side of n places, but no fewer than `smallest` of them, or all."""
    return min(n, max(math.ceil(share * n), smallest))


@cache
def weights(n: int, of: int) -> F32:
    """[n, of], read-only: linear interpolation from `of` places to n that cover the same length; each row adds up to 1."""
    at = np.clip((np.arange(n) + 0.5) * of / n - 0.5, 0, of - 1)
    below = np.minimum(at.astype(np.int64), max(of - 2, 0))
    rows = np.zeros((n, of), np.float32)
    rows[np.arange(n), below] = 1 - (at - below)
    rows[np.arange(n), np.minimum(below + 1, of - 1)] += at - below
    rows.flags.writeable = False
    return rows


def stretch(coarse: F32, H: int, W: int) -> F32:
    """[..., h, w] as [..., H, W], bilinear; `coarse` itself where the sides are equal."""
    h, w = coarse.shape[-2:]
    if (h, w) == (H, W):
        return coarse
    stretched: F32 = np.matmul(weights(H, h) @ coarse, weights(W, w).T)
    return stretched


def gain(n: int, of: int) -> float:
    """How much longer independent values on `of` places become on n, root mean square."""
    return float(np.linalg.norm(weights(n, of))) / math.sqrt(of)
