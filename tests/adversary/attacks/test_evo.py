"""EVO as a conversation about a flat boundary, its rules as formulae, and against the closed form."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from flat import fallen
from plane import Conversation, Plane

from adversary.attacks import Ask
from adversary.attacks.dct import idct2
from adversary.attacks.evo import EVO, MU, adapted, choose
from splitcore.latent import F32


def walked(plane: Plane, rows: int, attack: EVO | None = None) -> Conversation[F32 | None]:
    return plane.converse((attack or EVO()).perturb(plane.z, plane.case), rows=rows)


def test_mu_follows_the_rule_of_one_success_in_five() -> None:
    assert adapted(0.01, 0.2) == pytest.approx(0.01)
    assert adapted(0.01, 1.0) == pytest.approx(0.01 * math.exp(0.8))
    assert adapted(0.01, 0.0) == pytest.approx(0.01 * math.exp(-0.2))
    assert adapted(0.4, 1.0) == MU[1]
    assert adapted(1.1e-5, 0.0) == MU[0]


def test_mutants_lie_at_the_radius_that_mu_brings_them_to_and_mu_changes_every_30_trials() -> None:
    plane = Plane((8, 4, 4), distance=3.0)
    rounds = walked(plane, 400).of("walk")
    mu, won, best = 0.01, 0, None
    for tried, (ask, answers) in enumerate(rounds):
        if tried and tried % 30 == 0:
            mu, won = adapted(mu, won / 30), 0
        distance = np.linalg.norm(ask.points[0] - plane.z)
        if best is not None:
            assert distance == pytest.approx((1 - mu) * best, rel=1e-4)
        if answers.adversarial[0]:
            best, won = distance, won + 1
    assert best is not None


def test_a_mutation_changes_one_coordinate_in_twenty() -> None:
    plane = Plane((40, 4, 4), distance=3.0)
    rounds = walked(plane, 120).of("walk")
    first = next(n for n, (_, answers) in enumerate(rounds) if answers.adversarial[0])
    offset = rounds[first][0].points[0] - plane.z
    for ask, answers in rounds[first + 1 :]:
        shrunk = (ask.points[0] - plane.z) / offset
        changed = np.abs(shrunk / np.median(shrunk) - 1) > 1e-3
        assert 25 <= changed.sum() <= 32
        if answers.adversarial[0]:
            break


def test_the_length_of_a_mutation_is_kept_on_every_map() -> None:
    for shape in [(8, 4, 4), (6, 14, 14), (16, 32, 32), (300,)]:
        plane = Plane(shape, distance=3.0)
        rounds = walked(plane, 200).of("walk")
        lengths, offset = [], None
        for ask, answers in rounds:
            here = ask.points[0] - plane.z
            if offset is not None:
                # ‖v‖/‖offset‖ is the angle's tangent, less what of v lies along the offset
                cos = np.vdot(here, offset) / (np.linalg.norm(here) * np.linalg.norm(offset))
                lengths.append(math.sqrt(max(1 / cos**2 - 1, 0)))
            if answers.adversarial[0]:
                offset = here
        assert np.sqrt(np.mean(np.square(lengths))) == pytest.approx(0.2, rel=0.35)


def test_coordinates_are_drawn_once_each_and_in_proportion() -> None:
    rng = np.random.default_rng(0)
    weights = np.cumsum(np.repeat([1.0, 3.0], 50))
    drawn = np.zeros(100)
    for _ in range(4000):
        at = choose(rng, weights, 5)
        assert len(set(at.tolist())) == len(at) == 5
        drawn[at] += 1
    # 3, less a little for drawing without return; the standard error is 0.05
    assert drawn[50:].sum() / drawn[:50].sum() == pytest.approx(2.95, abs=0.15)
    assert set(choose(rng, np.cumsum([1.0, 0.0, 1.0]), 3).tolist()) <= {0, 2}


def test_the_path_and_the_variances_follow_equations_4_and_5() -> None:
    evo = EVO(path_rate=0.1, covariance_rate=0.01)
    v = np.array([2.0, 0.0], np.float32)
    path, variances = evo.evolved(np.array([1.0, -1.0], np.float32), np.array([1.0, 4.0], np.float32), v)
    np.testing.assert_allclose(path, [0.9 + math.sqrt(0.1 * 1.9) * 2, -0.9], rtol=1e-6)
    np.testing.assert_allclose(variances, 0.99 * np.array([1.0, 4.0]) + 0.01 * np.square(path), rtol=1e-6)
    # under selection that takes every mutation the variances stay where they are drawn from, on average
    rng = np.random.default_rng(0)
    path, variances = np.zeros(50, np.float32), np.ones(50, np.float32)
    for _ in range(3000):
        path, variances = EVO().evolved(path, variances, rng.standard_normal(50).astype(np.float32))
    assert variances.mean() == pytest.approx(1, abs=0.15)


def test_a_coarse_map_pays_where_the_boundary_is_smooth() -> None:
    found: dict[float, list[float]] = {2.5: [], 1.0: []}
    for reduction, ratios in found.items():
        for seed in range(4):
            plane = Plane((3, 16, 12), distance=3.0, seed=seed)
            low = np.zeros((3, 16, 12), np.float32)
            low[:, :4, :3] = np.random.default_rng(seed).standard_normal((3, 4, 3))
            n = idct2(low)
            plane.n = n / np.float32(np.linalg.norm(n))
            ratios.append(walked(plane, 700, EVO(reduction=reduction)).closest / plane.closest)
    assert np.median(found[2.5]) < 0.85 * np.median(found[1.0])


def test_several_mutants_are_asked_together_where_round_trips_are_dear() -> None:
    plane = Plane((8, 4, 4), distance=3.0, sections=8)
    talk = walked(plane, 3000)
    assert {len(ask.points) for ask, _ in talk.of("walk")} == {7}
    assert len(talk.asks) < 450
    assert talk.closest < 1.3 * plane.closest


def test_rows_that_are_not_answered_count_as_no_trial() -> None:
    plane = Plane((8, 4, 4), distance=3.0)

    def none(number: int, ask: Ask) -> np.ndarray:
        return np.full(len(ask.points), ask.phase != "walk")

    silent = plane.converse(EVO().perturb(plane.z, plane.case), rows=300, answered=none)
    distances = [float(np.linalg.norm(ask.points[0] - plane.z)) for ask, _ in silent.of("walk")]
    assert np.ptp(distances) < 1e-3 * distances[0]


@pytest.mark.parametrize("codec", ["identity", "float16", "uniform8/channel"])
def test_it_comes_near_the_closed_form_on_every_wire(codec: str) -> None:
    ratios = []
    for seed in range(4):
        plane = Plane((8, 4, 4), codec=codec, distance=3.0, seed=seed)
        ratios.append(walked(plane, 2500).closest / plane.closest)
    assert min(ratios) > 0.99
    assert np.median(ratios) < 1.25


def test_on_a_coarse_grid_steps_that_do_not_arrive_add_up() -> None:
    """One step of this grid in each coordinate is 6 away, so most that a mutant moves by rounds to none."""
    for seed in range(3):
        plane = Plane((8, 4, 4), codec="uniform4/channel", distance=5.0, seed=seed)
        assert walked(plane, 2500).closest < 1.6 * plane.closest


def test_it_reaches_the_closed_form_of_a_linear_tail(tmp_path: Path) -> None:
    # two classes: with more, it may stay at the second nearest plane
    assert fallen(EVO(), "l2", tmp_path, within=1.25, budget=2500, n=6, classes=2) == 6
