"""Random directions, cheap: windows of one bank of Gaussian noise, where fresh noise would cost more than the server's answer.

A window is chosen by the latent's own generator, so a sample's draws do not depend on its company. Two windows overlap only
where their offsets are near, and then they are shifted copies of white noise, which are as good as orthogonal.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from splitcore.latent import F32
from splitcore.threat import norms, per_row

BANK = 1 << 22
"""numbers in the bank, 16 MiB"""
LARGEST = BANK // 64
"""elements of a point above which noise is drawn afresh: the bank would hold too few windows apart"""


@cache
def _bank() -> F32:
    noise: F32 = np.random.Generator(np.random.SFC64(20_200_518)).standard_normal(BANK, np.float32)
    noise.flags.writeable = False
    return noise


def gaussian(rng: np.random.Generator, k: int, shape: tuple[int, ...]) -> F32:
    """k standard normal points [k, *shape], writable."""
    d = math.prod(shape)
    if d > LARGEST:
        return rng.standard_normal((k, *shape), np.float32)
    at = rng.integers(0, BANK - d + 1, k)
    return sliding_window_view(_bank(), d)[at].reshape(k, *shape)


def directions(rng: np.random.Generator, k: int, shape: tuple[int, ...]) -> F32:
    """k points [k, *shape] uniform on the unit l2 sphere."""
    u = gaussian(rng, k, shape)
    u /= per_row(norms(u), u)
    return u


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    """±1 each with probability a half, [*shape]."""
    n = math.prod(shape)
    bits = np.frombuffer(rng.bytes(n), np.int8) & 1
    return (bits.astype(np.float32) * np.float32(2) - np.float32(1)).reshape(shape)
