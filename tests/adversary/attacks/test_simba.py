"""SimBA against what it must find on a linear loss, in both bases and both balls."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from conversation import Turn, case_of, converse, slope
from tails import LinearTail, attack_all, clean_latents, identity, spec, wire_spaces

from adversary.attacks.dct import dct2, planes
from adversary.attacks.noise import Noise
from adversary.attacks.simba import SimBA
from splitcore.codec import fit
from splitcore.latent import F32
from splitcore.threat import LinfBall, Norm, ThreatModel

Basis = Literal["pixel", "dct"]
SHAPES = [(2, 3, 6), (3, 4, 4), (12, 1, 1), (10,), (4, 3)]


def latent(*shape: int) -> F32:
    return clean_latents(identity(shape), 1)[0]


def weights(shape: tuple[int, ...], seed: int = 2) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape)))


def best_of(turns: list[Turn]) -> F32:
    turn = min(turns, key=lambda each: each.loss.min())
    return turn.points[turn.loss.argmin()]


@pytest.mark.parametrize("both_signs", [False, True])
@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_round_in_a_wide_ball_steps_once_against_each_coefficient_of_the_gradient(
    shape: tuple[int, ...], basis: Basis, both_signs: bool
) -> None:
    d = int(np.prod(shape))
    attack = SimBA(basis=basis, step=0.05, both_signs=both_signs)
    w = weights(shape)

    def coefficients(x: F32) -> F32:
        return dct2(x.reshape(planes(shape))) if basis == "dct" else x.reshape(planes(shape))

    # a direction takes one row where the first sign is the right one, else two; both at once are always two
    rows = 1 + (2 * d if both_signs else int(np.where(coefficients(w) > 0, 1, 2).sum()))
    case = case_of(latent(*shape), "l2", 2.0, budget=rows)
    turns = converse(attack, case, slope(w))
    assert len(turns) == 1 + (d if both_signs else rows - 1)
    moved = coefficients(best_of(turns) - case.space.centre)
    np.testing.assert_allclose(moved, -0.1 * np.sign(coefficients(w)), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_round_in_linf_along_coordinates_ends_in_the_corner_against_the_gradient(shape: tuple[int, ...]) -> None:
    w = weights(shape)
    rows = 1 + int(np.where(w > 0, 1, 2).sum())
    case = case_of(latent(*shape), "linf", 0.3, budget=rows)
    assert isinstance(case.ball, LinfBall)
    best = best_of(converse(SimBA(basis="pixel"), case, slope(w)))
    np.testing.assert_array_equal(best, np.where(w > 0, case.ball.low, case.ball.high))


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (5, 16, 9), (64, 1, 1)], ids=str)
def test_a_round_has_every_basis_vector_once_and_they_are_orthonormal(shape: tuple[int, ...], basis: Basis) -> None:
    d = int(np.prod(shape))
    vectors = np.zeros((d, *planes(shape)), np.float32)
    for vector, (at, q, largest) in zip(
        vectors, SimBA(basis=basis).directions(np.random.default_rng(0), planes(shape)), strict=True
    ):
        vector[at] = q
        assert largest == pytest.approx(np.abs(vector).max(), rel=1e-5)
    flat = vectors.reshape(d, d)
    np.testing.assert_allclose(flat @ flat.T, np.eye(d), atol=1e-5)


def test_low_frequencies_come_before_high_ones_and_in_random_order_among_themselves() -> None:
    """The authors' block of 28x28 of 224x224, then ever 7 more: here 4x4 of 32x32, then ever one."""
    orders = []
    for seed in range(2):
        rings = []
        for at, q, _ in SimBA(basis="dct").directions(np.random.default_rng(seed), (2, 32, 32)):
            wave = np.zeros((2, 32, 32), np.float32)
            wave[at] = q
            _, k, m = np.unravel_index(np.abs(dct2(wave)).argmax(), wave.shape)
            rings.append(max(int(k), int(m)))
        assert all(max(rings[:32]) < 4 <= ring for ring in rings[32:])
        assert rings[32:] == sorted(rings[32:])
        orders.append(rings[:32])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(6, 14, 7), (64, 1, 1), (1, 1, 1), (6, 10)], ids=str)
def test_every_candidate_is_in_ball_and_box_and_the_search_goes_on_when_the_ball_is_full(
    shape: tuple[int, ...], norm: Norm, basis: Basis
) -> None:
    z = np.maximum(latent(*shape), 0)
    case = case_of(z, norm, 0.5 * (np.sqrt(z.size) if norm == "l2" else 1), budget=400, box=(0.0, 1e6))
    turns = converse(SimBA(basis=basis, step=0.5), case, slope(weights(shape)))
    for turn in turns:
        assert case.ball.contains(turn.points).all()
        assert turn.points.min() >= 0
    if norm == "l2" and z.size > 1:
        full = next(i for i, turn in enumerate(turns) if case.ball.distance(turn.points)[0] > 0.99 * case.ball.eps)
        losses = [turn.loss[0] for turn in turns]
        assert min(losses[full + 1 :]) < min(losses[: full + 1])


@pytest.mark.parametrize("both_signs", [False, True])
def test_a_latent_that_nothing_can_move_is_asked_once_and_given_up(both_signs: bool) -> None:
    """A box of no width."""
    case = case_of(latent(4, 3, 3), "linf", 0.5, budget=20)
    z = case.space.centre
    case = dataclasses.replace(case, ball=LinfBall(z, 0.5, z, z))
    assert len(converse(SimBA(both_signs=both_signs), case, slope(weights(z.shape)))) == 1


def test_a_round_that_kept_nothing_is_followed_by_one_of_half_the_step() -> None:
    case = case_of(latent(2, 3, 3), "l2", 4.0, budget=73)
    turns = converse(SimBA(basis="pixel", step=0.1), case, slope(np.zeros((2, 3, 3), np.float32)))
    lengths = [float(case.ball.distance(turn.points)[0]) for turn in turns]
    assert lengths == pytest.approx([0.0] + [0.4] * 36 + [0.2] * 36, rel=1e-4)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("codec_name", ["uniform8/channel", "uniform4/tensor"])
def test_no_step_is_too_small_to_arrive(codec_name: str, basis: Basis) -> None:
    """A step of a thousandth of eps is far below half a quantiser's step."""
    case = case_of(latent(6, 14, 14), "l2", 8.0, codec_name, budget=100)
    turns = converse(SimBA(basis=basis, step=0.001), case, slope(np.zeros((6, 14, 14), np.float32)))
    assert all((turn.arrived != case.space.centre).any() for turn in turns[1:])


def test_the_margin_decides_where_float32_takes_the_label_for_certain() -> None:
    """A margin of 40: log p_y is 0 in float32, at the latent and after every step."""
    case = case_of(latent(3, 4, 4), "l2", 2.0, budget=80)
    turns = converse(SimBA(basis="pixel"), case, slope(weights((3, 4, 4)), 40.0))
    losses = np.array([turn.loss[0] for turn in turns])
    assert losses.min() < losses[0] - 0.5 * 2.0 * np.linalg.norm(weights((3, 4, 4)))


def test_a_targeted_search_raises_the_probability_of_its_target() -> None:
    codec = identity((3, 4, 4))
    tail = LinearTail(codec)
    z = latent(3, 4, 4)
    target = int(tail.scores(z[None]).argmin())
    case = case_of(z, "l2", 3.0, budget=150, label=int(tail.scores(z[None]).argmax()), target=target)
    turns = converse(SimBA(), case, tail.scores)

    def p_target(x: F32) -> float:
        scores = tail.scores(x[None])[0]
        return float(np.exp(scores[target]) / np.exp(scores).sum())

    seen = [p_target(turn.points[0]) for turn in turns]
    assert max(seen) > 2 * seen[0]
    assert case.ball.contains(turns[int(np.argmax(seen))].points)[0]


def test_an_unanswered_step_is_never_kept() -> None:
    case = case_of(latent(3, 4, 4), "l2", 2.0, budget=60)
    turns = converse(SimBA(basis="pixel", step=0.05), case, slope(weights((3, 4, 4))), unanswered=range(0, 60, 3))
    best = turns[0]
    for turn in turns[1:]:
        # one coordinate away from the best that was answered; the start counts as no better than anything
        assert (np.abs(turn.points[0] - best.points[0]) > 1e-6).sum() == 1
        if turn.loss[0] < best.loss[0]:
            best = turn


@pytest.mark.parametrize(("norm", "basis"), [("l2", "dct"), ("l2", "pixel"), ("linf", "pixel")])
def test_simba_beats_noise_in_the_same_ball(norm: Norm, basis: Basis, tmp_path: Path) -> None:
    codec = fit("uniform8/channel", spec((8, 4, 4)))
    tail = LinearTail(codec)
    latents = clean_latents(codec, 60)
    spaces = dict(enumerate(wire_spaces(codec, latents)))
    threat = ThreatModel(norm=norm, eps=0.15, eps_unit="std", budget=400)
    found = attack_all(tail, SimBA(basis=basis), threat, spaces, tmp_path / "attack")
    blind = attack_all(tail, Noise(), threat, spaces, tmp_path / "noise")
    clean = tail.scores(latents).argmax(axis=1)
    arrived = codec.decode([outcome.payload or b"" for _, outcome in sorted(blind.items())])
    fell_to_noise = int((tail.scores(arrived).argmax(axis=1) != clean).sum())
    assert sum(outcome.success for outcome in found.values()) >= 2 * fell_to_noise + 10
