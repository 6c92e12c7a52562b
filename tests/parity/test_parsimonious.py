"""Parsimonious beside greedy search without laziness, and beside Square, as the published comparison has them."""

from __future__ import annotations

import numpy as np
import pytest
from arena import Arena
from compare import difference
from conversation import case_of, converse

from adversary.attacks.parsimonious import Parsimonious
from adversary.attacks.square import Square

pytestmark = pytest.mark.parity

N, EPS = 40, 0.075


def margins(arena: Arena, number: int, points: np.ndarray) -> np.ndarray:
    y = arena.labels[number]
    logits = arena.scores(points)
    return logits[:, y] - np.delete(logits, y, axis=1).max(axis=1)


def eager(arena: Arena, number: int, eps: float) -> tuple[float, int]:
    """One local search over squares of 2x2 of one channel, every gain measured anew before each flip: (margin, rows)."""
    z = arena.latents[number]
    C, H, W = z.shape
    low, high = np.clip(z - np.float32(eps), 0, 1), np.clip(z + np.float32(eps), 0, 1)
    x, raised = low.copy(), np.zeros((C, H // 2, W // 2), bool)
    best, rows = margins(arena, number, x[None])[0], 1
    for insert in (True, False):
        while True:
            blocks = np.argwhere(raised != insert)
            if not len(blocks):
                break
            trials = np.stack([x] * len(blocks))
            for trial, (c, i, j) in zip(trials, blocks, strict=True):
                at = c, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
                trial[at] = (high if insert else low)[at]
            values = margins(arena, number, trials)
            rows += len(trials)
            if values.min() >= best:
                break
            x, best = trials[values.argmin()], values.min()
            raised[tuple(blocks[values.argmin()])] = insert
    return float(best), rows


def test_the_lazy_search_comes_about_as_low_as_the_eager_one_with_a_fraction_of_its_queries(arena: Arena) -> None:
    """|V| = 32 squares of 2x2 in one mini-batch, until the first halving."""
    n, shares, fractions = 15, [], []
    for number in range(n):
        z, y = arena.latents[number], int(arena.labels[number])
        eager_margin, eager_rows = eager(arena, number, 0.05)
        case = case_of(z, "linf", 0.05, budget=400, label=y, box=(0.0, 1.0))
        turns = converse(Parsimonious(side=2, most=32, batch=64), case, arena.scores)
        second = [i for i, turn in enumerate(turns) if turn.phase == "insert" and len(turn.points) > 1][1]
        lazy = turns[:second]
        start = float(lazy[0].loss[0])
        shares.append((start - min(float(turn.loss.min()) for turn in lazy)) / (start - eager_margin))
        fractions.append(sum(len(turn.points) for turn in lazy) / eager_rows)
    print(np.median(shares), np.median(fractions))
    assert np.median(shares) >= 0.95
    assert np.median(fractions) <= 0.5


def test_as_many_fall_as_to_square_and_it_needs_no_more_than_the_published_share_of_queries(arena: Arena) -> None:
    """BlackboxBench, CIFAR-10 in linf: 208 queries on success beside Square's 73."""
    budget = 500
    ours = arena.ours(Parsimonious(), norm="linf", eps=EPS, budget=budget, n=N)
    square = arena.ours(Square(), norm="linf", eps=EPS, budget=budget, n=N)
    ours_fell, square_fell = (np.array([outcome.success for outcome in outcomes]) for outcomes in (ours, square))
    mean = [np.mean([outcome.queries for outcome in outcomes if outcome.success]) for outcomes in (ours, square)]
    print(ours_fell.mean(), square_fell.mean(), mean)
    assert difference(ours_fell, square_fell)[1] >= 0
    assert mean[0] <= 208 / 73 * mean[1]
