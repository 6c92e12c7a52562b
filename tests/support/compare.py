"""Distances of two attacks on the same latents, and how sure one can be of which is shorter."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from arena import Arena
from numpy.typing import NDArray

from adversary.attacks import Attack
from splitcore.latent import F32
from splitcore.threat import BALLS, Norm


class Compared(NamedTuple):
    """The median of ours over the median of theirs, with the bootstrap's 95 % interval, by percentiles, samples in pairs."""

    queries: int
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float


def beside(arena: Arena, attack: Attack, found: F32, *, norm: Norm, seed: int = 0) -> Compared:
    """`attack` on the latents that another library found adversarial `found` [n, *shape] for, with the rows that it took."""
    n = len(found)
    queries = arena.model.rows // n
    theirs = np.where(arena.wrong(found), BALLS[norm].lengths(found - arena.latents[:n]), np.inf)
    outcomes = arena.ours(attack, norm=norm, eps=1e-9, budget=queries, n=n, seed=seed)
    assert all(outcome.queries <= queries for outcome in outcomes)
    ours = np.array([outcome.nearest[-1][1] if outcome.nearest else np.inf for outcome in outcomes])
    return compared(queries, ours, theirs)


def compared(queries: int, ours: NDArray[Any], theirs: NDArray[Any]) -> Compared:
    picks = np.random.default_rng(0).integers(0, len(ours), (2000, len(ours)))
    with np.errstate(invalid="ignore"):
        ratios = np.median(ours[picks], axis=1) / np.median(theirs[picks], axis=1)
    low, high = np.percentile(np.nan_to_num(ratios, nan=1.0), (2.5, 97.5))
    our_median, their_median = float(np.median(ours)), float(np.median(theirs))
    return Compared(queries, our_median, their_median, our_median / their_median, float(low), float(high))


class Fell(NamedTuple):
    """Shares of samples that fell within the same rows and ball, and the bootstrap's 95 % interval of ours less theirs."""

    ours: float
    theirs: float
    low: float
    high: float
    our_rows: float
    """of a sample, in the mean; those that succeed stop"""
    their_rows: float


def fell_beside(arena: Arena, attack: Attack, found: F32, *, norm: Norm, eps: float, budget: int, seed: int = 0) -> Fell:
    """`attack` with at most `budget` rows a sample, on the latents that another library found `found` [n, *shape] for."""
    n = len(found)
    their_rows = arena.model.rows / n
    inside = BALLS[norm].lengths(found - arena.latents[:n]) <= eps * (1 + 1e-4)
    theirs = arena.wrong(found) & inside
    outcomes = arena.ours(attack, norm=norm, eps=eps, budget=budget, n=n, seed=seed)
    ours = np.array([outcome.success for outcome in outcomes])
    low, high = difference(ours, theirs)
    our_rows = float(np.mean([outcome.queries for outcome in outcomes]))
    return Fell(float(ours.mean()), float(theirs.mean()), low, high, our_rows, their_rows)


def difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the share of `ours` less that of `theirs`, samples in pairs."""
    picks = np.random.default_rng(0).integers(0, len(ours), (2000, len(ours)))
    low, high = np.percentile(ours[picks].mean(axis=1) - theirs[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
