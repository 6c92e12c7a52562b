"""ZOO: derivatives and steps in closed form, coordinates in sweeps, budgets and silence."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from conversation import Turn, case_of, converse, slope
from flat import near_meant_and_blind
from tails import clean_latents, identity

from adversary.attacks.zoo import ZOO, Solver, curvature
from splitcore.latent import F32
from splitcore.threat import Norm

FAR = 100.0
"""margin at which nothing is adversarial, so that a conversation goes on"""


def latent(*shape: int) -> F32:
    return clean_latents(identity(shape), 1)[0]


def weights(shape: tuple[int, ...], seed: int = 2) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape)))


def steps(turns: Collection[Turn]) -> list[F32]:
    """Where the search was after each round: the first row of every ask but the first."""
    return [turn.points[0] for turn in list(turns)[1:]]


def test_a_round_asks_the_point_and_128_coordinates_to_both_sides_and_a_sweep_takes_each_once() -> None:
    z = latent(6, 10, 5)
    first, *rest = converse(ZOO(), case_of(z, "linf", 0.2, budget=2000), slope(weights(z.shape), FAR))
    assert [len(turn.points) for turn in [first, *rest]][:4] == [256, 257, 1 + 2 * 44, 257]
    seen: list[int] = []
    for turn in (first, *rest[:2]):
        new = len(turn.points) % 2
        at = turn.points[0] if new else z
        moved = (turn.points[new:] - at).reshape(len(turn.points) - new, -1)
        k = len(moved) // 2
        rows, columns = np.nonzero(moved)
        np.testing.assert_array_equal(rows, np.arange(2 * k))  # one coordinate each
        np.testing.assert_array_equal(columns[:k], columns[k:])
        assert moved[rows, columns] == pytest.approx(np.repeat([0.1, -0.1], k), abs=1e-6)  # h is half of eps
        seen += columns[:k].tolist()
    assert sorted(seen) == list(range(300))


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 257, 258, 259, 300, 1000])
def test_all_but_two_rows_of_the_budget_are_spent_and_the_last_asks_where_the_last_step_led(budget: int) -> None:
    z = latent(6, 10, 5)
    turns = converse(ZOO(), case_of(z, "linf", 0.2, budget=budget), slope(weights(z.shape), FAR))
    assert max(0, budget - 2) <= sum(len(turn.points) for turn in turns) <= budget
    assert bool(turns) == (budget >= 3)
    assert not turns or (turns[-1].phase, len(turns[-1].points)) == ("step", 1)


@pytest.mark.parametrize("beta", [(0.9, 0.999), (0.5, 0.9)])
def test_adams_steps_are_the_papers_coordinate_by_coordinate(beta: tuple[float, float]) -> None:
    """A twin of algorithm 2 in double precision, on a loss whose derivatives change as it goes."""
    z = latent(2, 4, 4)
    w, eps = weights(z.shape), 1.0

    def bent(points: F32) -> F32:
        flat = (points - z).reshape(len(points), -1)
        loss = flat @ w.ravel() + np.square(flat) @ np.abs(w.ravel())
        return np.stack([loss + 4, np.zeros_like(loss)], axis=1)

    attack = ZOO(learning_rate=0.05, h=0.01, coordinates=8, beta1=beta[0], beta2=beta[1])
    turns = converse(attack, case_of(z, "linf", eps, budget=17 * 20), bent)
    M, v, T = np.zeros((3, 32))
    x = np.zeros(32)
    for turn, at in zip(turns, steps(turns), strict=False):
        new = len(turn.points) % 2
        i = np.nonzero((turn.points[new : new + 8] - (turn.points[0] if new else z)).reshape(8, -1))[1]
        g = w.ravel()[i] + 2 * np.abs(w.ravel()[i]) * x[i]
        T[i] += 1
        M[i] = beta[0] * M[i] + (1 - beta[0]) * g
        v[i] = beta[1] * v[i] + (1 - beta[1]) * g**2
        x[i] -= 0.05 * (M[i] / (1 - beta[0] ** T[i])) / (np.sqrt(v[i] / (1 - beta[1] ** T[i])) + 1e-8)
        assert (at - z).ravel() == pytest.approx(x, abs=2e-3)
    assert T.max() >= 4


def test_newtons_first_sweep_in_l2_leads_along_the_gradient_to_the_sphere() -> None:
    """With the distance in the objective and f linear, x = z - eps·w/‖w‖, at once."""
    z = latent(4, 5, 5)
    w = weights(z.shape)
    turns = converse(ZOO(), case_of(z, "l2", 2.0, budget=203), slope(w, 1.0))
    assert steps(turns)[0] == pytest.approx(z - 2 * w / np.linalg.norm(w), abs=0.01)


def test_adam_in_l2_comes_to_the_same_with_time() -> None:
    z = latent(2, 4, 4)
    w = weights(z.shape)
    attack = ZOO(solver="adam", learning_rate=0.02)
    last = converse(attack, case_of(z, "l2", 2.0, budget=65 * 200), slope(w, 4.0))[-1].points[0]
    way = (z - last).ravel()
    assert np.linalg.norm(way) == pytest.approx(2, rel=0.05)
    assert way @ w.ravel() / np.linalg.norm(way) / np.linalg.norm(w) > 0.99


def test_newton_finds_the_bottom_of_a_bowl_in_one_sweep() -> None:
    """Algorithm 3 is exact on a parabola in each coordinate."""
    z = latent(2, 4, 4)
    bottom = z + np.random.default_rng(1).uniform(-0.4, 0.4, z.shape).astype(np.float32)
    a = np.random.default_rng(2).uniform(0.5, 2, z.size).astype(np.float32)

    def bowl(points: F32) -> F32:
        loss = np.square((points - bottom).reshape(len(points), -1)) @ a
        return np.stack([loss, np.zeros_like(loss)], axis=1)

    turns = converse(ZOO(solver="newton"), case_of(z, "linf", 1.0, budget=66), bowl)
    assert steps(turns)[0] == pytest.approx(bottom, abs=1e-3)


def test_newton_goes_one_unit_downhill_where_nothing_is_bent_upwards() -> None:
    z = latent(2, 4, 4)
    w = weights(z.shape)

    def dome(points: F32) -> F32:
        flat = (points - z).reshape(len(points), -1)
        loss = flat @ w.ravel() - 0.1 * np.square(flat).sum(axis=1) + 2
        return np.stack([loss, np.zeros_like(loss)], axis=1)

    turns = converse(ZOO(solver="newton", learning_rate=0.5), case_of(z, "linf", 1.0, budget=66), dome)
    assert steps(turns)[0] == pytest.approx(z - 0.5 * np.sign(w), abs=1e-5)


def test_the_curvature_of_a_parabola_is_exact_at_uneven_places() -> None:
    at = np.array([[0.3, 0.0, -0.1], [1.0, 0.5, 0.4], [0.2, 0.2, 0.1], [0.2, 0.1, 0.1]], np.float32)
    f = 3 * at**2 - 2 * at + 1
    for place, value, expected in zip(at, f, (6, 6, 0, 0), strict=True):
        places = [np.array([one], np.float32) for one in place]
        bent = curvature(*places, np.array([value[0]]), value[1], np.array([value[2]]))
        assert bent == pytest.approx([expected], abs=1e-3)
    nothing = curvature(at[:, 0], at[:, 1], at[:, 2], f[:, 0], np.float32(np.inf), f[:, 2])
    assert (nothing == 0).all()


@pytest.mark.parametrize("solver", ["adam", "newton"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_coordinates_at_their_bounds_are_probed_to_one_side(norm: Norm, solver: Solver) -> None:
    """ReLU's zeros: half of a difference would be half of the derivative."""
    z = np.maximum(latent(3, 4, 4), 0)
    w = weights(z.shape)
    eps = 0.1 if norm == "linf" else 1.0
    case = case_of(z, norm, eps, budget=98, box=(0.0, 4.0))
    turns = converse(ZOO(solver=solver, learning_rate=0.2 if solver == "adam" else 1.0), case, slope(w, 1.0))
    assert turns[0].points.min() == 0
    moved = steps(turns)[0] - z
    if norm == "linf" and solver == "adam":
        assert moved == pytest.approx(np.maximum(z - 0.2 * eps * np.sign(w), 0) - z, abs=1e-6)
    elif norm == "l2" and solver == "newton":
        assert moved == pytest.approx(np.maximum(z - eps * w / np.linalg.norm(w), 0) - z, abs=0.01)


@pytest.mark.parametrize("codec_name", ["uniform8/channel", "uniform4/tensor"])
def test_on_a_quantised_wire_every_probe_arrives_and_the_derivative_is_that_of_what_arrived(codec_name: str) -> None:
    z = latent(2, 4, 4)
    w = weights(z.shape)
    case = case_of(z, "l2", 2.0, codec_name, budget=67)
    turns = converse(ZOO(h=1e-4), case, slope(w, 1.0))
    changed = (turns[0].arrived[1:] != case.space.centre).reshape(64, -1)
    assert (changed.sum(axis=1) == 1).all()
    moved = (case.space.centre - steps(turns)[0]).ravel()
    assert moved @ w.ravel() / np.linalg.norm(moved) / np.linalg.norm(w) > 0.999


def test_coordinates_whose_probes_are_not_answered_stay_where_they_are() -> None:
    z = latent(2, 4, 4)
    w = weights(z.shape)
    # of the first round's 64 probes, without the point itself, the first ten and the last ten
    lost = [*range(10), *range(54, 64)]
    turns = converse(ZOO(), case_of(z, "linf", 0.5, budget=200), slope(w, FAR), unanswered=lost)
    moved = (steps(turns)[0] != z).ravel()
    coordinates = np.nonzero((turns[0].points - z).reshape(64, -1))[1]
    expected = np.ones(32, bool)
    expected[coordinates[lost]] = False
    np.testing.assert_array_equal(moved, expected)
    for solver in ("adam", "newton"):
        silent = converse(ZOO(solver=solver), case_of(z, "l2", 0.5, budget=200), slope(w, FAR), unanswered=range(200))
        assert silent[-1].points[0] == pytest.approx(z)


@pytest.mark.parametrize("solver", ["adam", "newton"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_reaches_the_nearest_boundary_of_a_linear_tail_and_the_target_and_beats_noise(
    norm: Norm, solver: Solver, tmp_path: Path
) -> None:
    fell, meant, blind = near_meant_and_blind(ZOO(solver=solver), norm, tmp_path)
    assert (fell, meant) == (8, 8)
    assert blind <= 1
