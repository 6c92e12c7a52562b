"""SignHunter beside a plain twin of the paper's algorithm, and beside Square, as the published comparison has them."""

from __future__ import annotations

import numpy as np
import pytest
from arena import Arena
from compare import difference

from adversary.attacks.signhunter import SignHunter
from adversary.attacks.square import Square

pytestmark = pytest.mark.parity

N, EPS = 40, 0.075


def twin(arena: Arena, number: int, eps: float, budget: int) -> int | None:
    """Al-Dujaili and O'Reilly 2020, algorithm 2, as it stands there; how many evaluations until the first success."""
    z, y = arena.latents[number].ravel(), arena.labels[number]
    d = z.size
    s = np.ones(d, np.float32)
    best, i, h = np.inf, 0, 0
    for evaluation in range(1, budget + 1):
        trial = s.copy()
        if evaluation > 1:
            chunk = -(-d // 2**h)
            trial[i * chunk : (i + 1) * chunk] *= -1
        x = np.clip(z + np.float32(eps) * trial, 0, 1).reshape(1, *arena.latents.shape[1:])
        logits = arena.scores(x)[0]
        margin = logits[y] - np.delete(logits, y).max()
        if margin < 0:
            return evaluation
        if margin < best:
            s, best = trial, margin
        if evaluation > 1:
            i += 1
            if i == 2**h:
                i, h = 0, h + 1
    return None


def test_each_latent_falls_at_the_same_query_as_to_the_papers_algorithm(arena: Arena) -> None:
    d = arena.latents[0].size
    assert d == 128  # a power of two, as the paper's blocks are; the first round takes 2d rows, and the clean one is ours
    outcomes = arena.ours(SignHunter(), norm="linf", eps=EPS, budget=2 * d + 1, n=N)
    ours = [None if outcome.first_success is None else outcome.first_success - 1 for outcome in outcomes]
    theirs = [twin(arena, number, EPS, 2 * d) for number in range(N)]
    assert sum(fell is not None for fell in ours) >= N // 2
    # scores of a row differ in their last bit with its company, so that a tie may end otherwise
    assert sum(mine == other for mine, other in zip(ours, theirs, strict=True)) >= N - 1


def test_as_many_fall_as_to_square_and_it_needs_no_more_than_the_published_share_of_queries(arena: Arena) -> None:
    """BlackboxBench, CIFAR-10 in linf: 107 queries on success beside Square's 73."""
    budget = 500
    ours = arena.ours(SignHunter(), norm="linf", eps=EPS, budget=budget, n=N)
    square = arena.ours(Square(), norm="linf", eps=EPS, budget=budget, n=N)
    ours_fell, square_fell = (np.array([outcome.success for outcome in outcomes]) for outcomes in (ours, square))
    mean = [np.mean([outcome.queries for outcome in outcomes if outcome.success]) for outcomes in (ours, square)]
    print(ours_fell.mean(), square_fell.mean(), mean)
    assert difference(ours_fell, square_fell)[1] >= 0
    assert mean[0] <= 107 / 73 * mean[1]
