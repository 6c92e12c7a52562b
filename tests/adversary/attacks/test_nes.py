"""NES: the estimate in closed form, the authors' schedule as a conversation, small maps and quantised wires."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conversation import Turn, case_of, converse, slope
from flat import near_meant_and_blind
from tails import clean_latents, identity

from adversary.attacks.nes import NES
from splitcore.latent import F32
from splitcore.threat import Norm

FAR = 1e4
"""margin at which nothing is adversarial, so that a conversation goes on"""


def latent(*shape: int) -> F32:
    return clean_latents(identity(shape), 1)[0]


def weights(shape: tuple[int, ...], seed: int = 2) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape)))


def middle(turn: Turn, new: int) -> F32:
    """The point that the probes of a turn lie around: each with its mirror image."""
    pairs = (len(turn.points) - new) // 2
    return (turn.points[new : new + pairs] + turn.points[new + pairs :])[0] / 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_probes_are_mirrored_around_the_point_and_spread_by_the_authors_share_of_eps(norm: Norm) -> None:
    z = latent(4, 5, 5)
    eps = 0.5 if norm == "linf" else 5.0
    first, second, *_ = converse(NES(samples=400), case_of(z, norm, eps, budget=1300), slope(weights(z.shape), FAR))
    assert len(first.points) == 400
    u = first.points[:200] - z
    assert first.points[200:] == pytest.approx(z - u, abs=1e-6)
    assert u.std() == pytest.approx(0.02 * 0.5, rel=0.02)  # σ = 0.001 at the authors' eps of 0.05; 5/√100 is 0.5
    # one round trip an iteration: the step's point comes first, then the probes around it
    assert len(second.points) == 401
    assert middle(second, new=1) == pytest.approx(second.points[0], abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_first_step_follows_the_papers_estimate(norm: Norm) -> None:
    z = latent(3, 4, 4)
    eps = 0.5 if norm == "linf" else 3.0
    turns = converse(NES(samples=20), case_of(z, norm, eps, budget=60), slope(weights(z.shape)))
    [first, second] = turns[:2]
    # algorithm 1, probe by probe in double precision
    g = np.zeros(z.shape)
    sigma = 0.02 * (eps if norm == "linf" else eps / np.sqrt(z.size))
    w = weights(z.shape).astype(np.float64)
    for point in first.points:
        g += np.vdot(w, point) * (point - z) / sigma
    g /= 20 * sigma
    step = np.sign(g) if norm == "linf" else g / np.linalg.norm(g)
    assert second.points[0] == pytest.approx(z - 0.2 * eps * step, abs=eps * 2e-3)


def test_the_estimate_of_a_linear_loss_is_its_gradient_in_the_mean() -> None:
    """E[uuᵀ]·w = w: 20 estimates of 2,000 probes each, in mean and in angle."""
    z = latent(2, 4, 4)
    w = weights(z.shape)
    steps = []
    for seed in range(20):
        case = case_of(z, "l2", 1.0, budget=2100, seed=seed)
        [_, second] = converse(NES(samples=2000, momentum=0), case, slope(w, FAR))[:2]
        steps.append((z - second.points[0]).ravel() / 0.2)
    cosine = np.array(steps) @ w.ravel() / np.linalg.norm(w)
    # n/2 directions in d dimensions: cos² is about m/(m + d + 1)
    assert cosine.mean() == pytest.approx(np.sqrt(1000 / (1000 + 33)), abs=0.005)


def test_mirrored_probes_cancel_what_is_curved() -> None:
    z = latent(2, 4, 4)
    w = weights(z.shape)
    linear = slope(w, FAR)

    def bowl(points: F32) -> F32:
        scores = linear(points)
        scores[:, 0] += 50 * np.square((points - z).reshape(len(points), -1)).sum(axis=1)
        return scores

    flat, curved = (converse(NES(samples=40), case_of(z, "l2", 1.0, budget=90), loss)[1] for loss in (slope(w), bowl))
    # FAR rounds the loss to a thousandth, so directions agree but for that
    a, b = (turn.points[0] - z for turn in (flat, curved))
    assert np.vdot(a, b) / np.vdot(a, a) > 0.99


def test_momentum_keeps_nine_tenths_of_what_went_before() -> None:
    """The loss turns round after the first answer: with the same pull each time the second step would be back."""
    z = latent(2, 3, 3)
    w = weights(z.shape)
    asked = 0

    def turning(points: F32) -> F32:
        nonlocal asked
        asked += 1
        return slope(w if asked == 1 else -w * np.float32(0.5), FAR)(points)

    turns = converse(NES(samples=1000, learning_rate=0.01), case_of(z, "linf", 1.0, budget=3100), turning)
    first, second = turns[1].points[0] - z, turns[2].points[0] - turns[1].points[0]
    clear = np.abs(w) > 0.1
    # m = 0.1·w, then 0.9·0.1·w - 0.1·0.5·w = 0.04·w: still the same way
    np.testing.assert_array_equal(np.sign(first[clear]), -np.sign(w[clear]))
    np.testing.assert_array_equal(np.sign(second[clear]), -np.sign(w[clear]))
    asked = 0
    turns = converse(NES(samples=1000, learning_rate=0.01, momentum=0), case_of(z, "linf", 1.0, budget=3100), turning)
    assert turns[2].points[0] == pytest.approx(z, abs=1e-6)


def test_the_rate_is_halved_when_the_loss_is_no_lower_than_five_steps_before_and_not_below_the_least() -> None:
    z = latent(2, 3, 3)
    w = weights(z.shape)

    def level(points: F32) -> F32:
        """Falls along w within an ask, and never from one ask to the next."""
        return slope(w, FAR)(points - points[-20:].mean(axis=0))

    attack = NES(samples=20, learning_rate=0.02, min_learning_rate=0.004, momentum=0)
    turns = converse(attack, case_of(z, "linf", 10.0, budget=21 * 30), level)
    at = [z] + [turn.points[0] for turn in turns[1:]]
    steps = [float(np.abs(b - a).max()) for a, b in pairwise(at)]
    expected = [0.2] * 5 + [0.1] * 6 + [0.05] * 6 + [0.04] * 6
    assert steps[: len(expected)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 51, 52, 53, 157])
def test_all_but_two_rows_of_the_budget_are_spent_and_the_last_asks_where_the_last_step_led(budget: int) -> None:
    """A pair of probes, and a row to see what came of them, take three."""
    z = latent(3, 4, 4)
    turns = converse(NES(), case_of(z, "linf", 0.1, budget=budget), slope(weights(z.shape), FAR))
    assert max(0, budget - 2) <= sum(len(turn.points) for turn in turns) <= budget
    assert bool(turns) == (budget >= 3)
    assert not turns or (turns[-1].phase, len(turns[-1].points)) == ("step", 1)


def test_answers_that_do_not_come_move_nothing_and_half_a_pair_still_counts() -> None:
    z = latent(3, 4, 4)
    w = weights(z.shape)
    case = case_of(z, "l2", 1.0, budget=1000)
    silent = converse(NES(), case, slope(w), unanswered=range(1000))
    assert sum(len(turn.points) for turn in silent) >= 998
    assert all(np.abs(turn.points.mean(axis=0) - z).max() < 1e-6 for turn in silent)
    # of the first 100 pairs one half each is lost
    some = converse(NES(samples=200), case_of(z, "l2", 1.0, budget=201), slope(w), unanswered=range(100))
    step = (z - some[1].points[0]).ravel()
    assert step @ w.ravel() / np.linalg.norm(step) / np.linalg.norm(w) > 0.6


@pytest.mark.parametrize("codec_name", ["uniform8/channel", "uniform4/tensor"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_quantised_wire_probes_arrive_and_still_tell_the_gradient(codec_name: str, norm: Norm) -> None:
    z = latent(6, 4, 4)
    w = weights(z.shape)
    eps = 1.2 if norm == "linf" else 12.0
    case = case_of(z, norm, eps, codec_name, budget=2001)
    first, second = converse(NES(samples=2000), case, slope(w, 0.0))[:2]
    changed = (first.arrived != case.space.centre).reshape(2000, -1).mean(axis=1)
    assert changed.min() > 0.3
    moved = (case.space.centre - second.points[0]).ravel()
    assert moved @ w.ravel() / np.linalg.norm(moved) / np.linalg.norm(w) > (0.7 if norm == "linf" else 0.9)


def test_probes_stay_in_a_box_of_ones_own() -> None:
    z = np.clip(latent(3, 4, 4), -0.5, 0.5)
    for turn in converse(NES(), case_of(z, "linf", 0.4, budget=300, box=(-0.5, 0.5)), slope(weights(z.shape), FAR)):
        assert np.abs(turn.points).max() <= 0.5


def test_the_cross_entropy_is_followed_where_it_says_so() -> None:
    """Three classes: the margin looks at the larger other one alone, the cross-entropy at both."""
    z = latent(2, 4, 4)
    w = weights(z.shape, 2), weights(z.shape, 3)

    def scores(points: F32) -> F32:
        flat = (points - z).reshape(len(points), -1)
        return np.stack([np.full(len(flat), 8), 0.01 + flat @ w[0].ravel(), flat @ w[1].ravel()], axis=1).astype(np.float32)

    ways = {}
    for objective in ("margin", "cross-entropy"):
        attack = NES(samples=4000, momentum=0, sigma=0.02, objective=objective)  # type: ignore[arg-type]
        step = converse(attack, case_of(z, "l2", 0.01, budget=4001), scores)[1].points[0] - z
        ways[objective] = [float(np.vdot(step, v) / np.linalg.norm(step) / np.linalg.norm(v)) for v in (w[0], w[0] + w[1])]
    # σ is small beside the 0.01 between the two: the margin sees the first class alone
    assert ways["margin"][0] > 0.98 > ways["margin"][1]
    assert ways["cross-entropy"][1] > 0.98 > ways["cross-entropy"][0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_reaches_the_target_and_the_nearest_boundary_of_a_linear_tail(norm: Norm, tmp_path: Path) -> None:
    fell, meant, blind = near_meant_and_blind(NES(), norm, tmp_path)
    assert fell >= 7
    assert blind <= 1
    assert meant == 8
