"""Bandits-TD: the paper's update beside a plain twin, tiles, budgets and silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conversation import case_of, converse, slope
from flat import near_meant_and_blind
from tails import clean_latents, identity

from adversary.attacks.bandits import Bandits, Tiles
from adversary.attacks.draw import gaussian
from splitcore.latent import F32
from splitcore.threat import Norm

FAR = 100.0
"""margin at which nothing is adversarial, so that a conversation goes on"""


def latent(*shape: int) -> F32:
    return clean_latents(identity(shape), 1)[0]


def weights(shape: tuple[int, ...], seed: int = 2) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape)))


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((3, 299, 299), (3, 43, 43)), ((6, 14, 14), (6, 7, 7)), ((6, 15, 14), (6, 8, 7)), ((8, 4, 4), (8, 4, 4)),
     ((3, 7, 14), (3, 7, 14)), ((64, 1, 1), (64, 1, 1)), ((40,), (40, 1, 1)), ((6, 100), (6, 100, 1))],
    ids=str,
)  # fmt: skip
def test_tiles_fit_the_map(shape: tuple[int, ...], grid: tuple[int, ...]) -> None:
    tiles = Tiles(shape, None)
    assert tiles.shape == grid
    assert tiles.whole(np.zeros((5, *grid), np.float32)).shape == (5, *shape)


def test_all_of_a_tile_has_the_same_value() -> None:
    tiles = Tiles((2, 7, 6), 3)
    v = np.random.default_rng(0).standard_normal(tiles.shape).astype(np.float32)
    assert tiles.shape == (2, 3, 2)
    np.testing.assert_array_equal(tiles.whole(v), np.kron(v, np.ones((1, 3, 3), np.float32))[:, :7, :6])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_probes_are_two_an_iteration_and_mirrored_at_first_as_far_as_the_authors_go(norm: Norm) -> None:
    z = latent(3, 4, 4)
    turns = converse(Bandits(), case_of(z, norm, 2.0, budget=101), slope(weights(z.shape), FAR))
    assert [len(turn.points) for turn in turns] == [2] * 50 + [1]
    assert turns[-1].phase == "step"
    plus, minus = turns[0].points - z
    assert plus == pytest.approx(-minus, abs=1e-6)
    # 0.1 at eps 0.05·√d, and 0.01 at eps 5
    far = 0.1 / (0.05 * np.sqrt(3 * 299 * 299)) * 2.0 * np.sqrt(z.size) if norm == "linf" else 0.01 / 5 * 2.0
    assert np.linalg.norm(plus) == pytest.approx(far, rel=0.05)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_does_what_the_paper_writes_but_for_the_scale_of_gradients(norm: Norm) -> None:
    """A twin of algorithms 1 to 3 in double precision, with the authors' numbers for 7,500 tiles and gradients of length 1."""
    z = latent(3, 4, 4)
    w, d, eps = weights(z.shape).astype(np.float64), z.size, 20.0
    # the defaults are these to two digits
    exact = (200 if norm == "linf" else 20) / np.sqrt(7500)
    assert exact == pytest.approx(2.3 if norm == "linf" else 0.23, rel=0.01)
    attack = Bandits(objective="margin", prior_rate=float(exact))
    turns = converse(attack, case_of(z, norm, eps, budget=81, seed=5), slope(weights(z.shape), FAR))
    draws = gaussian(np.random.default_rng(5), 32, (3, 4, 4)).astype(np.float64)
    linf = norm == "linf"
    delta, eta = (1.0, 0.004 * eps * np.sqrt(d)) if linf else (0.01, 0.002 * eps)
    # the authors divide u by √n, and n = 7500 here would be their tiles: the update is made as long for n = d
    online = (100 if linf else 0.1) * np.sqrt(d / 7500)
    step = (0.2 if linf else 0.1) * eps
    x, prior, squares = z.astype(np.float64), np.zeros(z.shape), 0.0
    for t, (turn, noise) in enumerate(zip(turns[:32], draws, strict=True), start=1):
        u = delta * noise / np.sqrt(d)
        q = [prior + u, prior - u]
        points = [x + eta * one / np.linalg.norm(one) for one in q]
        assert turn.points == pytest.approx(np.array(points), abs=2e-3 * eps)
        losses = [np.vdot(w, point) for point in points]
        derivative = (losses[0] - losses[1]) / (eta * delta)
        mean_length = (np.linalg.norm(q[0]) + np.linalg.norm(q[1])) / 2
        squares += ((derivative / 2 * mean_length) ** 2 * d - squares) / t
        g = derivative / np.sqrt(squares) * u
        if linf:
            p = (prior + 1) / 2
            p = p * np.exp(online * g) / (p * np.exp(online * g) + (1 - p) * np.exp(-online * g))
            prior = 2 * p - 1
            x = np.clip(x - step * np.sign(prior), z - eps, z + eps)
        else:
            prior = prior + online * g
            x = x - step * prior / np.linalg.norm(prior)
            x = z + (x - z) * min(1, eps / np.linalg.norm(x - z))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_loss_a_thousand_times_as_steep_is_followed_the_same_way(norm: Norm) -> None:
    z = latent(3, 4, 4)
    w = weights(z.shape)
    ways = [
        converse(Bandits(objective="margin"), case_of(z, norm, 2.0, budget=101), slope(w * np.float32(scale)))[-1].points[0] - z
        for scale in (0.1, 100)
    ]
    assert np.vdot(ways[0], ways[1]) / np.linalg.norm(ways[0]) / np.linalg.norm(ways[1]) > 0.98


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_map_of_tiles_is_searched_as_the_coarse_map_itself(norm: Norm) -> None:
    z, w = latent(2, 4, 4), weights((2, 4, 4))
    tile = np.ones((1, 2, 2), np.float32)
    eps = 2.0
    coarse = converse(Bandits(objective="margin"), case_of(z, norm, eps, budget=41), slope(w, FAR))
    whole_eps = eps if norm == "linf" else 2 * eps  # four times the coordinates
    whole = converse(
        Bandits(objective="margin", tile=2), case_of(np.kron(z, tile), norm, whole_eps, budget=41), slope(np.kron(w, tile), FAR)
    )
    for mine, other in zip(whole, coarse, strict=True):
        assert mine.points == pytest.approx(np.kron(other.points, tile), abs=0.01)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_prior_comes_to_know_the_gradient(norm: Norm) -> None:
    """Two queries at a time: as each exploration is kept, 32 dimensions are known after some hundred."""
    z = latent(2, 4, 4)
    w = weights(z.shape)
    cosines = []
    for budget in (21, 201, 801):
        moved = []
        for seed in range(5):
            case = case_of(z, norm, 1e3, budget=budget, seed=seed)
            way = converse(Bandits(learning_rate=1e-4), case, slope(w, FAR))[-1].points[0] - z
            moved.append(-np.vdot(way, np.sign(w) if norm == "linf" else w) / np.linalg.norm(way))
        cosines.append(np.mean(moved) / (np.sqrt(32) if norm == "linf" else np.linalg.norm(w)))
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] > 0.8


def test_the_point_itself_is_asked_when_a_probe_around_the_last_was_adversarial() -> None:
    z = latent(3, 4, 4)
    w = weights(z.shape)
    offset = 0.5 - float(np.vdot(w, z))
    turns = converse(Bandits(), case_of(z, "l2", 2.0, budget=200), slope(w, offset))
    rows = [len(turn.points) for turn in turns]
    won = [bool((turn.loss < 0).any()) for turn in turns]
    assert rows[0] == 2
    assert True in won[:-1]
    # the last turns are what the budget leaves
    assert rows[1:-2] == [3 if before else 2 for before in won[:-3]]


def test_answers_that_do_not_come_move_nothing() -> None:
    z = latent(3, 4, 4)
    case = case_of(z, "linf", 2.0, budget=100)
    for turn in converse(Bandits(), case, slope(weights(z.shape), FAR), unanswered=range(0, 100, 2)):
        assert turn.points.mean(axis=0) == pytest.approx(z, abs=1e-6)


@pytest.mark.parametrize("codec_name", ["uniform8/channel", "uniform4/tensor"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(4, 3, 3), (1, 1, 1), (20,), (3, 14, 15)], ids=str)
def test_on_a_quantised_wire_probes_arrive_changed(codec_name: str, norm: Norm, shape: tuple[int, ...]) -> None:
    z = latent(*shape)
    case = case_of(z, norm, 1.2 if norm == "linf" else 1.2 * float(np.sqrt(z.size)), codec_name, budget=60)
    first, *rest = converse(Bandits(), case, slope(weights(shape), FAR))
    assert (first.arrived[0] != first.arrived[1]).any()
    assert all(np.isfinite(turn.points).all() for turn in rest)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_reaches_the_nearest_boundary_of_a_linear_tail_and_the_target_and_beats_noise(norm: Norm, tmp_path: Path) -> None:
    """By the margin; what the cross-entropy follows beyond the nearest boundary is the sum of all other classes."""
    fell, meant, blind = near_meant_and_blind(Bandits(objective="margin"), norm, tmp_path, targeted=Bandits())
    assert (fell, meant) == (8, 8)
    assert blind <= 1
