"""N-Attack: the update in closed form, both forms of the search, budgets and silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conversation import case_of, converse, slope
from flat import near_meant_and_blind
from tails import clean_latents, identity

from adversary.attacks.nattack import NAttack
from splitcore.latent import F32
from splitcore.threat import Norm

FAR = 100.0
"""margin at which nothing is adversarial, so that a conversation goes on"""


def latent(*shape: int) -> F32:
    return clean_latents(identity(shape), 1)[0]


def weights(shape: tuple[int, ...], seed: int = 2) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape)))


def test_a_population_is_the_papers_where_the_budget_holds_twenty_of_them_and_one_ask() -> None:
    z = latent(3, 4, 4)
    for budget, population in ((12_000, 300), (6000, 300), (1000, 50), (30, 2)):
        turns = converse(NAttack(), case_of(z, "linf", 0.1, budget=budget), slope(weights(z.shape), FAR))
        assert [len(turn.points) for turn in turns[:3]] == [population] * 3
        assert sum(len(turn.points) for turn in turns) == budget
        assert {turn.phase for turn in turns} == {"population"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("box", [None, (-8.0, 8.0)])
def test_every_candidate_lies_in_ball_and_box(norm: Norm, box: tuple[float, float] | None) -> None:
    z = latent(3, 4, 4)
    case = case_of(z, norm, 0.5, box=box, budget=600)
    turns = converse(NAttack(), case, slope(weights(z.shape), FAR))
    for turn in turns:
        assert case.ball.contains(turn.points).all()
    assert case.ball.distance(turns[-1].points).mean() > 0.45


def test_the_direct_form_spreads_by_eps_and_moves_by_the_papers_update() -> None:
    """No box and a ball that cuts little off (σ is a tenth of eps): the samples are what was asked, less the centre."""
    z = latent(2, 4, 4)
    w = weights(z.shape)
    eps, spread, b = 4.0, 0.1, 200
    attack = NAttack(population=b, spread=spread)
    first, second, *_ = converse(attack, case_of(z, "linf", eps, budget=b * 400), slope(w, FAR))
    noise = (first.points - z) / (spread * eps)
    assert noise.std() == pytest.approx(1, abs=0.02)
    # algorithm 1 with the published numbers, α/σ = 0.08 in units of σ·10: Δν = -α/σ²·mean(Ĵ·ε)
    loss = first.loss.astype(np.float64)
    Z = (loss - loss.mean()) / loss.std()
    nu = -0.008 / 0.1**2 * np.tensordot(Z, noise, axes=1) / b
    assert second.points[0] == pytest.approx(z + spread * eps * nu, abs=1e-3)  # the centre itself comes first


def test_the_tanh_form_is_the_papers_in_a_finite_box() -> None:
    z = np.clip(latent(2, 4, 4), -2, 2)
    w = weights(z.shape)
    b = 200
    # a ball that cuts nothing off
    first, second, *_ = converse(
        NAttack(population=b), case_of(z, "linf", 50.0, budget=b * 400, box=(-3.0, 3.0)), slope(w, FAR)
    )
    noise = (np.arctanh(first.points.astype(np.float64) / 3) - np.arctanh(z / 3)) / 0.1
    assert noise.std() == pytest.approx(1, abs=0.02)
    loss = first.loss.astype(np.float64)
    Z = (loss - loss.mean()) / loss.std()
    mu = -0.008 / (b * 0.1) * np.tensordot(Z, noise, axes=1)
    assert np.arctanh(second.points[0].astype(np.float64) / 3) == pytest.approx(np.arctanh(z / 3) + mu, abs=1e-4)


def test_a_latent_at_its_bounds_is_searched_directly() -> None:
    """Half of it zeros of a ReLU: tanh would leave them there."""
    z = np.maximum(latent(4, 4, 4), 0)
    turns = converse(NAttack(), case_of(z, "linf", 0.3, budget=400, box=(0.0, 4.0)), slope(weights(z.shape), FAR))
    zeros = z == 0
    assert 0.3 < zeros.mean() < 0.7
    raised = turns[0].points[:, zeros]
    assert (raised > 0.1).mean() == pytest.approx(0.37, abs=0.1)  # P(N(0, 1)·eps > eps/3)
    assert raised.min() >= 0


def test_with_fewer_queries_the_rate_is_raised_so_that_the_centre_comes_as_far() -> None:
    z = latent(2, 4, 4)
    w = weights(z.shape)
    far = {}
    for budget in (2000, 8000):
        attack = NAttack(population=40, spread=0.01)  # a ball that cuts nothing off
        turns = converse(attack, case_of(z, "l2", 1000.0, budget=budget), slope(w, FAR * 100))
        moved = (z - turns[-1].points[0]).ravel()
        far[budget] = moved @ w.ravel() / np.linalg.norm(w) / (10.0 / np.sqrt(32))
    # 50 populations at four times the rate of 200: 0.8·200 along the gradient, less what is not seen of it
    assert far[8000] == pytest.approx(160, rel=0.05)
    assert far[2000] == pytest.approx(far[8000], rel=0.05)


def test_a_loss_that_is_flat_or_silent_moves_nothing() -> None:
    z = latent(3, 4, 4)
    flat = converse(NAttack(), case_of(z, "linf", 0.5, budget=400), slope(np.zeros(z.shape, np.float32), FAR))
    assert flat[-1].points[0] == pytest.approx(z)
    w = weights(z.shape)
    silent = converse(NAttack(), case_of(z, "linf", 0.5, budget=400), slope(w, FAR), unanswered=range(400))
    assert silent[-1].points[0] == pytest.approx(z)
    # what is answered of a population counts alone: rows without an answer are not rows of loss 0
    half = converse(NAttack(population=200), case_of(z, "l2", 0.5, budget=4000), slope(w, FAR), unanswered=range(0, 200, 2))
    moved = (z - half[1].points[0]).ravel()
    assert moved @ w.ravel() / np.linalg.norm(moved) / np.linalg.norm(w) > 0.7


@pytest.mark.parametrize("codec_name", ["uniform8/channel", "uniform4/tensor"])
@pytest.mark.parametrize("shape", [(4, 3, 3), (64, 1, 1), (20,)], ids=str)
@pytest.mark.parametrize("at_bounds", [False, True])
def test_on_a_quantised_wire_samples_of_either_form_arrive_changed(
    codec_name: str, shape: tuple[int, ...], at_bounds: bool
) -> None:
    z = latent(*shape)
    if at_bounds:
        z.reshape(-1)[::2] = -4
    case = case_of(z, "l2", 0.5 * float(np.sqrt(z.size)), codec_name, budget=200)
    for turn in converse(NAttack(spread=0.001, sigma=0.0001), case, slope(weights(shape), FAR)):
        assert (turn.arrived != case.space.centre).reshape(len(turn.points), -1)[1:].any(axis=1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_reaches_the_nearest_boundary_of_a_linear_tail_and_the_target_and_beats_noise(norm: Norm, tmp_path: Path) -> None:
    fell, meant, blind = near_meant_and_blind(NAttack(), norm, tmp_path)
    assert (fell, meant) == (8, 8)
    assert blind <= 1
