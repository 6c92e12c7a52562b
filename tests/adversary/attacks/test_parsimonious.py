"""Parsimonious: its blocks, and its greedy search on set functions whose best set is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conversation import Turn, case_of, converse, slope
from tails import LinearTail, attack_all, clean_latents, identity, spec, wire_spaces

from adversary.attacks.base import as_map
from adversary.attacks.noise import Noise
from adversary.attacks.parsimonious import Block, Parsimonious
from splitcore.codec import fit
from splitcore.latent import F32
from splitcore.threat import LinfBall, ThreatModel

SHAPES = [(3, 32, 32), (8, 4, 4), (6, 14, 7), (64, 8, 8), (2048, 1, 1), (1, 1, 1), (40,), (6, 10), (256, 2, 3)]


def latent(*shape: int) -> F32:
    return clean_latents(identity(shape), 1)[0]


def spread(shape: tuple[int, ...], seed: int = 0) -> F32:
    """Weights far enough apart that float32 keeps their order, of both signs, in random places."""
    d = int(np.prod(shape))
    values = (np.arange(d) - d // 3 + 0.5).astype(np.float32) / np.float32(d)
    return np.random.default_rng(seed).permutation(values).reshape(shape)


def best_of(turns: list[Turn]) -> F32:
    turn = min(turns, key=lambda each: each.loss.min())
    return turn.points[turn.loss.argmin()]


def covered(blocks: list[Block], shape: tuple[int, int, int]) -> F32:
    """How often each coordinate lies in a block."""
    count = np.zeros(shape, np.float32)
    for block in blocks:
        count[block.at] += 1
    return count


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_first_blocks_cover_the_latent_once_and_are_about_as_many_as_wanted(shape: tuple[int, ...]) -> None:
    C, H, W = as_map(shape)
    for most in (1, 16, 64, 192):
        blocks = Parsimonious(most=most).first(C, H, W)
        assert (covered(blocks, (C, H, W)) == 1).all()
        assert len(blocks) <= most


def test_the_authors_blocks_of_an_image_are_had() -> None:
    """k = 4 of 3x32x32, each in one channel."""
    blocks = Parsimonious(side=4, most=192).first(3, 32, 32)
    assert len(blocks) == 192
    assert {tuple(span.stop - span.start for span in block.at) for block in blocks} == {(1, 4, 4)}


@pytest.mark.parametrize("shape", [(3, 7, 5), (8, 4, 4), (64, 1, 1), (5, 3, 1)], ids=str)
def test_blocks_are_halved_down_to_single_coordinates_and_stay_raised(shape: tuple[int, int, int]) -> None:
    blocks = [Block(tuple(slice(0, n) for n in shape), raised=True)]
    for _ in range(20):
        blocks = [half for block in blocks for half in block.split()]
        assert (covered(blocks, shape) == 1).all()
    assert len(blocks) == np.prod(shape)
    assert all(block.raised for block in blocks)


@pytest.mark.parametrize("shape", [(2, 4, 4), (40,), (30, 1, 1), (5, 6)], ids=str)
def test_on_a_modular_set_function_the_best_set_is_found_with_as_many_queries_as_counted(shape: tuple[int, ...]) -> None:
    """d first gains in one ask; the best is flipped at once, every later one is asked for again, as is the first that is no
    gain; then the raised ones, of which none is taken back."""
    d, w = int(np.prod(shape)), spread(shape)
    raised = int((w < 0).sum())
    attack = Parsimonious(side=1, most=d, batch=d)
    case = case_of(latent(*shape), "linf", 0.5, budget=1 + d + raised + raised)
    assert isinstance(case.ball, LinfBall)
    turns = converse(attack, case, slope(w))
    assert [(turn.phase, len(turn.points)) for turn in turns] == [
        ("init", 1), ("insert", d), *[("insert", 1)] * raised, ("delete", raised)
    ]  # fmt: skip
    np.testing.assert_array_equal(best_of(turns), np.where(w > 0, case.ball.low, case.ball.high))
    assert turns[-1].loss.min() > min(turn.loss.min() for turn in turns)


def test_blocks_are_flipped_whole_until_none_gains_and_then_halved() -> None:
    """Weights that are constant on 2x2: the blocks of side 4 find what they can, those of side 2 the rest."""
    w = np.repeat(np.repeat(spread((1, 4, 4)), 2, axis=1), 2, axis=2)
    case = case_of(latent(1, 8, 8), "linf", 0.5, budget=120)
    assert isinstance(case.ball, LinfBall)
    turns = converse(Parsimonious(side=4, most=4), case, slope(w))
    start = turns[0].points[0]
    assert all((point != start).sum() == 16 for point in turns[1].points)
    np.testing.assert_array_equal(best_of(turns), np.where(w > 0, case.ball.low, case.ball.high))


def test_a_block_that_was_raised_in_vain_is_lowered_again() -> None:
    """A set function that is not monotone: each of two coordinates gains alone, but the third is worth as much as both."""

    def scores(points: F32) -> F32:
        a, b, c = (points.reshape(-1, 3) > 0).T
        margin = np.where(a & b & c, 2.0, 5.0 - 1.0 * a - 1.5 * b - 1.4 * c + 2.0 * (a & b) - 2.5 * (b & c) + 0.1 * (a & c))
        return np.stack([margin, np.zeros_like(margin)], axis=1).astype(np.float32)

    case = case_of(np.zeros(3, np.float32), "linf", 0.5, budget=60)
    turns = converse(Parsimonious(side=1), case, scores)
    values = {tuple(point > 0): float(loss) for turn in turns for point, loss in zip(turn.points, turn.loss, strict=True)}
    assert min(values, key=lambda key: values[key]) == (False, True, True)


@pytest.mark.parametrize("codec_name", ["identity", "uniform8/channel", "uniform4/tensor"])
def test_every_candidate_is_a_corner_and_no_ask_is_wider_than_a_mini_batch(codec_name: str) -> None:
    z = np.maximum(latent(6, 14, 7), 0)
    case = case_of(z, "linf", 0.6, codec_name, budget=400, box=(-0.3, 1e6) if codec_name == "identity" else None)
    assert isinstance(case.ball, LinfBall)
    turns = converse(Parsimonious(batch=16), case, slope(spread(z.shape)))
    for turn in turns:
        assert ((turn.points == case.ball.low) | (turn.points == case.ball.high)).all()
        np.testing.assert_allclose(turn.arrived, turn.points, atol=1e-5)
    assert max(len(turn.points) for turn in turns) == 16


def test_an_unanswered_gain_is_no_gain() -> None:
    """Every fourth row is lost, the start among them; what was lost of one pass is made up for in a later one."""
    shape = (2, 4, 4)
    case = case_of(latent(*shape), "linf", 0.5, budget=400)
    assert isinstance(case.ball, LinfBall)
    turns = converse(Parsimonious(side=1), case, slope(spread(shape)), unanswered=range(0, 400, 4))
    np.testing.assert_array_equal(best_of(turns), np.where(spread(shape) > 0, case.ball.low, case.ball.high))


def test_a_latent_that_nothing_can_move_is_asked_once_and_given_up() -> None:
    case = case_of(latent(4, 3, 3), "linf", 0.5, budget=20)
    z = case.space.centre
    case = dataclasses.replace(case, ball=LinfBall(z, 0.5, z, z))
    assert len(converse(Parsimonious(), case, slope(spread(z.shape)))) == 1


def test_parsimonious_beats_noise_in_the_same_ball(tmp_path: Path) -> None:
    codec = fit("uniform8/channel", spec((8, 4, 4)))
    tail = LinearTail(codec)
    latents = clean_latents(codec, 60)
    spaces = dict(enumerate(wire_spaces(codec, latents)))
    threat = ThreatModel(norm="linf", eps=0.15, eps_unit="std", budget=400)
    found = attack_all(tail, Parsimonious(), threat, spaces, tmp_path / "attack")
    blind = attack_all(tail, Noise(), threat, spaces, tmp_path / "noise")
    clean = tail.scores(latents).argmax(axis=1)
    arrived = codec.decode([outcome.payload or b"" for _, outcome in sorted(blind.items())])
    fell_to_noise = int((tail.scores(arrived).argmax(axis=1) != clean).sum())
    assert sum(outcome.success for outcome in found.values()) >= 2 * fell_to_noise + 10
