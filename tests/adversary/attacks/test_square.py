"""Square: the paper's schedule, windows and bumps, and the two searches as conversations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conversation import Turn, case_of, converse, slope
from tails import LinearTail, attack_all, clean_latents, identity, spec, wire_spaces

from adversary.attacks.base import as_map
from adversary.attacks.noise import Noise
from adversary.attacks.square import Square, bump, peak, tiles
from splitcore.codec import fit
from splitcore.latent import F32
from splitcore.threat import LinfBall, Norm, ThreatModel


def latent(*shape: int) -> F32:
    return clean_latents(identity(shape), 1)[0]


def weights(shape: tuple[int, ...], seed: int = 2) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape)))


def test_the_schedule_is_the_papers_stretched_to_the_budget() -> None:
    square = Square(p_init=0.8)
    paper = {1: 0.8, 10: 0.8, 11: 0.4, 51: 0.2, 201: 0.1, 501: 0.05, 1001: 0.025, 2001: 0.0125, 4001: 0.00625, 9999: 0.8 / 512}
    assert {i: square.p(i, 10_000) for i in paper} == pytest.approx(paper)
    assert square.p(5, 500) == square.p(100, 10_000)


@pytest.mark.parametrize("budget", [1, 7, 157, 500, 10_000, 12_345])
def test_the_window_is_looked_at_whenever_the_schedule_turns(budget: int) -> None:
    turns = Square.turns(budget)
    p = [Square().p(i, budget) for i in range(1, budget + 1)]
    assert {1} | {i + 2 for i in range(budget - 1) if p[i] != p[i + 1]} == {turn for turn in turns if turn <= budget}


def test_the_window_on_an_image_is_the_papers() -> None:
    """Side round(√(p·H·W)), at least 1 and at most the map's side less one, over all channels; odd and from 3 for bumps."""
    assert Square().window(0.05, 3, 224, 224) == (3, 50, 50)
    assert Square().window(0.8, 1, 28, 28) == (1, 25, 25)
    assert Square().window(1e-6, 3, 32, 32) == (3, 1, 1)
    assert Square().window(0.05, 3, 224, 224, odd=True) == (3, 51, 51)
    assert Square().window(1e-6, 3, 32, 32, odd=True) == (3, 3, 3)


@pytest.mark.parametrize("codec_name", ["identity", "uniform8/channel", "uniform4/tensor"])
@pytest.mark.parametrize("shape", [(6, 14, 7), (3, 6, 6), (64, 1, 1), (40,), (6, 10)], ids=str)
def test_in_linf_every_candidate_is_a_corner_and_differs_from_the_best_in_one_window(
    shape: tuple[int, ...], codec_name: str
) -> None:
    case = case_of(latent(*shape), "linf", 0.6, codec_name, budget=120)
    assert isinstance(case.ball, LinfBall)
    first, *rest = converse(Square(), case, slope(weights(shape)))
    assert len(rest) == 119
    best, best_loss = first.points[0], first.loss[0]
    C, H, W = as_map(shape)
    stripes = (best > case.space.centre).reshape(C, H, W)
    assert (stripes == stripes[:, :1]).all()
    for i, turn in enumerate(rest, 1):
        [point], [loss] = turn.points, turn.loss
        assert ((point == case.ball.low) | (point == case.ball.high)).all()
        np.testing.assert_allclose(turn.arrived[0], point, atol=1e-5)  # corners lie on the grid
        size = Square().window(Square().p(i, 120), C, H, W)
        changed = np.argwhere((point != best).reshape(C, H, W))
        assert len(changed) >= 1
        assert (np.ptp(changed, axis=0) < size).all()
        if loss < best_loss:
            best, best_loss = point, loss


def test_a_window_that_nothing_can_change_is_asked_rather_than_drawn_for_ever() -> None:
    """A box of no width: all corners are one."""
    case = case_of(latent(4, 3, 3), "linf", 0.5, budget=20)
    z = case.space.centre
    case = dataclasses.replace(case, ball=LinfBall(z, 0.5, z, z))
    assert len(converse(Square(), case, slope(weights(z.shape)))) == 20


def test_an_unanswered_start_is_left_for_the_first_answer() -> None:
    case = case_of(latent(3, 6, 6), "linf", 0.5, budget=20)
    turns = converse(Square(p_init=0.05), case, slope(np.zeros((3, 6, 6), np.float32), 5.0), unanswered=(0, 1))
    c, h, w = Square().window(0.05 / 2, 3, 6, 6)
    assert all((turn.points != turns[2].points).sum() <= c * h * w for turn in turns[3:])


def test_an_unanswered_candidate_is_never_gone_on_from() -> None:
    case = case_of(latent(3, 6, 6), "l2", 2.0, budget=60)
    turns = converse(Square(p_init=0.05), case, slope(weights((3, 6, 6))), unanswered=range(1, 60, 2))
    best = turns[0]
    for i, turn in enumerate(turns[1:], 1):
        c, h, w = Square(p_init=0.05).window(Square(p_init=0.05).p(i, 60), 3, 6, 6, odd=True)
        assert (np.abs(turn.points - best.points) > 1e-5).sum() <= 2 * c * h * w
        best = min(best, turn, key=lambda each: each.loss[0])


def test_a_bump_is_two_halves_of_nested_rectangles() -> None:
    """Equation 2 for a half of 5x2: n = 2, heights 1/9, 1/9 + 1/4, 1/9 + 1/4 + 1 from the rim to the middle."""
    low, middle, top = 1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1
    np.testing.assert_allclose(
        peak(5, 2), [[low, low], [middle, middle], [middle, top], [middle, middle], [low, low]], rtol=1e-6
    )
    eta = bump(5, 5)
    assert np.linalg.norm(eta) == pytest.approx(1, abs=1e-6)
    assert (eta[:, :2] > 0).all()
    assert (eta[:, 2:] < 0).all()
    assert bump(1, 1).tolist() == [[-1]]


def test_the_l2_search_starts_from_five_by_five_bumps_around_the_middle() -> None:
    delta = tiles(np.random.default_rng(0), (3, 17, 21))
    assert (delta[:, 1:16, :20] != 0).all()
    assert not delta[:, 0].any()
    assert not delta[:, 16].any()
    assert not delta[:, :, 20].any()
    first = np.abs(delta[:, 1:4, :4])
    upright, turned = np.abs(bump(3, 4)), np.abs(bump(4, 3).T)
    assert any(np.allclose(first, one) for one in (upright, turned))
    assert (tiles(np.random.default_rng(0), (64, 1, 1)) != 0).all()
    assert (tiles(np.random.default_rng(0), (3, 2, 4)) != 0).all()


@pytest.mark.parametrize("shape", [(3, 12, 12), (6, 14, 7), (64, 1, 1), (1, 1, 1), (40,), (6, 10)], ids=str)
def test_in_l2_every_candidate_has_the_whole_length_and_moves_it_between_two_windows(shape: tuple[int, ...]) -> None:
    case = case_of(latent(*shape), "l2", 2.0, budget=200)
    C, H, W = as_map(shape)
    best: Turn | None = None
    turns = converse(Square(), case, slope(weights(shape)))
    for i, turn in enumerate(turns):
        assert case.ball.contains(turn.points)[0]
        assert case.ball.distance(turn.points)[0] == pytest.approx(2.0, rel=1e-4)
        if best is not None:
            c, h, w = Square().window(Square().p(i, 200), C, H, W, odd=True)
            # two windows at most; what rounding moves elsewhere is no change
            assert (np.abs(turn.points - best.points) > 1e-5).sum() <= 2 * c * h * w
        if best is None or turn.loss[0] < best.loss[0]:
            best = turn
    assert best is not None
    assert best.loss[0] < turns[0].loss[0] or case.space.centre.size == 1


def test_in_l2_what_the_box_takes_is_given_to_the_next_window() -> None:
    """Latents after a ReLU: half the start's mass is cut at 0, and the search fills the ball again."""
    z = np.maximum(latent(6, 14, 14), 0)
    case = case_of(z, "l2", 3.0, budget=300, box=(0.0, 1e6))
    turns = converse(Square(), case, slope(weights(z.shape)))
    assert all(turn.points.min() >= 0 for turn in turns)
    assert case.ball.distance(turns[0].points)[0] < 2.7
    assert case.ball.distance(min(turns, key=lambda turn: turn.loss[0]).points)[0] > 2.9


@pytest.mark.parametrize(
    ("norm", "codec_name"), [("linf", "uniform8/channel"), ("l2", "uniform8/channel"), ("l2", "uniform4/tensor")]
)
def test_square_beats_noise_in_the_same_ball(norm: Norm, codec_name: str, tmp_path: Path) -> None:
    codec = fit(codec_name, spec((8, 4, 4)))
    tail = LinearTail(codec)
    latents = clean_latents(codec, 60)
    spaces = dict(enumerate(wire_spaces(codec, latents)))
    eps = 0.3 if codec_name == "uniform4/tensor" else 0.15
    threat = ThreatModel(norm=norm, eps=eps, eps_unit="std", budget=400)
    found = attack_all(tail, Square(), threat, spaces, tmp_path / "attack")
    blind = attack_all(tail, Noise(), threat, spaces, tmp_path / "noise")
    clean = tail.scores(latents).argmax(axis=1)
    arrived = codec.decode([outcome.payload or b"" for _, outcome in sorted(blind.items())])
    fell_to_noise = int((tail.scores(arrived).argmax(axis=1) != clean).sum())
    assert sum(outcome.success for outcome in found.values()) >= 2 * fell_to_noise + 10


def test_in_l2_square_lowers_a_linear_loss_by_most_of_what_its_gradient_would() -> None:
    """Bumps of one sign and whole lengths are no gradient: two thirds, where the best of 2000 random points gets a third."""
    shares = []
    for seed in range(4):
        case = case_of(latent(8, 4, 4), "l2", 2.0, budget=2000, seed=seed)
        w = weights((8, 4, 4), seed)
        start = np.vdot(w, case.space.centre)
        reached = min(turn.loss[0] for turn in converse(Square(), case, slope(w)))
        shares.append((start - reached) / (2.0 * np.linalg.norm(w)))
    assert 0.65 < np.median(shares) <= 1


def test_with_many_channels_the_window_takes_as_large_a_share_of_them_as_of_the_map() -> None:
    assert Square().window(0.25, 64, 16, 16) == (34, 11, 11)
    assert Square().window(0.25, 64, 1, 1) == (16, 1, 1)
    assert Square().window(0.25, 64, 30, 7) == (48, 10, 7)
    assert Square(whole_channels=64).window(0.25, 64, 16, 16) == (64, 8, 8)
