"""SignHunter against the gradient's signs, which it must find on a linear loss after a known number of queries."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from conversation import Turn, case_of, converse, slope
from tails import LinearTail, attack_all, clean_latents, identity, spec, wire_spaces

from adversary.attacks.noise import Noise
from adversary.attacks.signhunter import SignHunter
from splitcore.codec import fit
from splitcore.latent import F32
from splitcore.threat import LinfBall, Norm, ThreatModel


def latent(*shape: int) -> F32:
    return clean_latents(identity(shape), 1)[0]


def weights(shape: tuple[int, ...], seed: int = 2) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape)))


def rows_of_a_round(d: int) -> int:
    """One for each block of each level: 2d - 1 where d is a power of two."""
    return sum(math.ceil(d / math.ceil(d / 2**h)) for h in range(math.ceil(math.log2(d)) + 1))


def best_of(turns: list[Turn]) -> F32:
    return min(turns, key=lambda turn: turn.loss[0]).points[0]


def test_a_round_of_a_power_of_two_takes_twice_as_many_queries_as_coordinates_less_one() -> None:
    assert rows_of_a_round(64) == 127
    assert rows_of_a_round(1) == 1


@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 5, 7), (64, 1, 1), (1, 1, 1), (40,), (6, 10)], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_round_finds_every_sign_of_a_linear_loss(norm: Norm, shape: tuple[int, ...]) -> None:
    d, w = int(np.prod(shape)), weights(shape)
    case = case_of(latent(*shape), norm, 0.7, budget=1 + rows_of_a_round(d))
    turns = converse(SignHunter(), case, slope(w))
    assert {turn.phase for turn in turns[1:]} == {"flip"}
    step = 0.7 / (np.sqrt(d) if norm == "l2" else 1)
    np.testing.assert_allclose(best_of(turns), case.space.centre - step * np.sign(w), atol=1e-6)
    # the signs of single coordinates are settled by the last level alone, whatever the levels above it did
    wrong_before = best_of(turns[:-d]) - case.space.centre if d > 1 else 0
    assert d == 1 or (np.sign(wrong_before) != -np.sign(w)).any()


def test_blocks_are_runs_that_halve_from_the_whole_on() -> None:
    case = case_of(latent(4, 2, 2), "linf", 0.5, budget=32)
    turns = converse(SignHunter(), case, slope(np.zeros((4, 2, 2), np.float32)))
    first = turns[0].points.ravel()
    flipped = [np.flatnonzero(turn.points.ravel() != first).tolist() for turn in turns[1:]]
    runs = [list(range(start, start + n)) for n in (16, 8, 4, 2, 1) for start in range(0, 16, n)]
    assert flipped == runs


def test_after_a_round_blocks_are_of_coordinates_in_random_order() -> None:
    case = case_of(latent(4, 2, 2), "linf", 0.5, budget=63)
    turns = converse(SignHunter(), case, slope(np.zeros((4, 2, 2), np.float32)))
    first = turns[0].points.ravel()
    halves = [np.flatnonzero(turn.points.ravel() != first).tolist() for turn in turns[33:35]]
    assert halves[0] != list(range(8))
    assert sorted(halves[0] + halves[1]) == list(range(16))


@pytest.mark.parametrize("codec_name", ["identity", "uniform8/channel", "uniform4/tensor"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_candidate_is_in_ball_and_box(norm: Norm, codec_name: str) -> None:
    z = np.maximum(latent(6, 14, 7), 0)
    case = case_of(z, norm, 0.6 * (np.sqrt(z.size) if norm == "l2" else 1), codec_name, budget=300, box=(-0.5, 1e6))
    for turn in converse(SignHunter(), case, slope(weights(z.shape))):
        assert case.ball.contains(turn.points)[0]
        assert turn.points.min() >= -0.5


def test_in_l2_on_a_coarse_wire_as_many_coordinates_move_as_arrive() -> None:
    """uniform4 has steps of 0.53; eps = 2.2 spread over 96 coordinates would move each by 0.22, which is rounded away."""
    case = case_of(latent(6, 4, 4), "l2", 2.2, "uniform4/tensor", budget=64)
    step = case.space.probe
    assert 2.2 / np.sqrt(96) < step / 2
    for turn in converse(SignHunter(), case, slope(weights((6, 4, 4)))):
        changed = turn.arrived != case.space.centre
        assert changed.sum() == math.floor((2.2 / step) ** 2)
        assert case.ball.contains(turn.arrived)[0]


def test_an_unanswered_flip_is_never_kept() -> None:
    case = case_of(latent(4, 4, 4), "linf", 0.5, budget=100)
    turns = converse(SignHunter(), case, slope(weights((4, 4, 4))), unanswered=range(0, 100, 4))
    best = turns[0]
    for turn in turns[1:]:
        changed = np.flatnonzero(turn.points != best.points)
        assert changed.size == np.ptp(changed) + 1  # one run away from the best that was answered
        if turn.loss[0] < best.loss[0]:
            best = turn


def test_a_latent_that_nothing_can_move_is_given_up_unasked() -> None:
    case = case_of(latent(4, 3, 3), "linf", 0.5, budget=20)
    z = case.space.centre
    case = dataclasses.replace(case, ball=LinfBall(z, 0.5, z, z))
    assert converse(SignHunter(), case, slope(weights(z.shape))) == []


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_signhunter_beats_noise_in_the_same_ball(norm: Norm, tmp_path: Path) -> None:
    codec = fit("uniform8/channel", spec((8, 4, 4)))
    tail = LinearTail(codec)
    latents = clean_latents(codec, 60)
    spaces = dict(enumerate(wire_spaces(codec, latents)))
    threat = ThreatModel(norm=norm, eps=0.15, eps_unit="std", budget=400)
    found = attack_all(tail, SignHunter(), threat, spaces, tmp_path / "attack")
    blind = attack_all(tail, Noise(), threat, spaces, tmp_path / "noise")
    clean = tail.scores(latents).argmax(axis=1)
    arrived = codec.decode([outcome.payload or b"" for _, outcome in sorted(blind.items())])
    fell_to_noise = int((tail.scores(arrived).argmax(axis=1) != clean).sum())
    assert sum(outcome.success for outcome in found.values()) >= 2 * fell_to_noise + 10
