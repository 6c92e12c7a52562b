"""SimBA beside ART's, which has no ball and sends both signs, one row a call."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from arena import Arena
from compare import compared, fell_beside

from adversary.attacks.simba import SimBA
from splitcore.latent import F32

pytestmark = pytest.mark.parity

N, STEP = 30, 0.16


def art(arena: Arena, basis: Literal["pixel", "dct"], rounds: int) -> F32:
    from art.attacks.evasion import SimBA as Theirs
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    def probabilities(x: F32) -> F32:
        scores = arena.scores(x)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    model = BlackBoxClassifierNeuralNetwork(
        probabilities, arena.latents.shape[1:], 10, clip_values=(0.0, 1.0), channels_first=True
    )
    np.random.seed(0)
    kind = "px" if basis == "pixel" else "dct"
    attack = Theirs(model, attack=kind, epsilon=STEP, max_iter=rounds, freq_dim=1, stride=1, verbose=False)
    found: F32 = attack.generate(arena.latents[:N].copy())
    return found


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_without_a_ball_as_many_fall_as_to_arts_and_as_near(basis: Literal["pixel", "dct"], arena: Arena) -> None:
    """Both signs of the same steps: the same search, in a ball that is never reached."""
    rounds, far = 60, 8.0
    found = art(arena, basis, rounds)
    ours = SimBA(basis=basis, step=STEP / far, frequencies=0.25, both_signs=True)
    result = fell_beside(arena, ours, found, norm="l2", eps=far, budget=2 * rounds + 2)
    outcomes = arena.ours(ours, norm="l2", eps=far, budget=2 * rounds + 2, n=N)
    their_lengths = np.linalg.norm((found - arena.latents[:N]).reshape(N, -1), axis=1)
    our_lengths = np.array([outcome.distance if outcome.success else np.inf for outcome in outcomes])
    lengths = compared(2 * rounds, our_lengths, np.where(arena.wrong(found), their_lengths, np.inf))
    print(result, lengths)
    assert result.low <= 0 <= result.high
    assert lengths.low <= 1


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_in_a_ball_more_fall_than_to_arts_with_as_many_rows_at_most(basis: Literal["pixel", "dct"], arena: Arena) -> None:
    """Theirs walks out of the ball, and ends where it succeeds outside."""
    rounds, eps = 100, 0.8
    found = art(arena, basis, rounds)
    ours = SimBA(basis=basis, step=STEP / eps, frequencies=0.25)
    result = fell_beside(arena, ours, found, norm="l2", eps=eps, budget=2 * rounds)
    print(result)
    assert result.low > 0
