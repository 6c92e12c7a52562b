"""HopSkipJump as a conversation about a flat boundary, and against the closed form of a linear tail."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from flat import fallen
from plane import Plane

from adversary.attacks import Ask
from adversary.attacks.hopskipjump import HopSkipJump
from splitcore.threat import Norm

SHAPE = (6, 7, 5)
D = 210


def on_the_boundary(plane: Plane) -> np.ndarray:
    return plane.z + np.float32(plane.distance + 1e-5) * plane.n


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_phases_are_the_papers_and_the_probes_grow_with_the_root_of_the_iteration(norm: Norm) -> None:
    plane = Plane(SHAPE, norm=norm, budget=10_000)
    talk = plane.converse(HopSkipJump(initial_probes=30).perturb(plane.z, plane.case), rows=2000)
    assert talk.phases[:8] == ["start", "boundary", "probe", "step", "boundary", "probe", "step", "boundary"]
    probes = [len(ask.points) for ask, _ in talk.of("probe")]
    assert probes == [math.ceil(30 * math.sqrt(t)) for t in range(1, len(probes) + 1)]


@pytest.mark.parametrize(("norm", "per_distance"), [("l2", 1 / D), ("linf", 1 / D)])
def test_probes_lie_at_the_papers_radius(norm: Norm, per_distance: float) -> None:
    """A tenth of the range first, then √d·θ·distance = distance/d for l2 and d·θ·distance, the same fraction, for linf."""
    plane = Plane(SHAPE, norm=norm, budget=10_000)
    search = HopSkipJump().perturb(plane.z, plane.case)
    talk = plane.converse(search, rows=1500)
    x = None
    for ask, answers in zip(talk.asks, talk.answers, strict=True):
        if ask.phase == "probe" and x is not None:
            first = ask is talk.of("probe")[0][0]
            wanted = 0.1 * 8 if first else per_distance * plane.case.ball.distance(x[None])[0]
            lengths = np.linalg.norm((ask.points - x).reshape(len(ask.points), -1), axis=1)
            np.testing.assert_allclose(lengths, wanted, rtol=0.02)
        elif answers.adversarial.any():
            x = answers.arrived[answers.adversarial.argmax()]


@pytest.mark.parametrize("distance", [1.0, 10.0])
def test_the_estimate_points_along_the_normal_as_well_as_so_many_signs_can_tell(distance: float) -> None:
    """k signs of Gaussian probes give a cosine of √(2k/πd) / √(1 + 2k/πd) with the normal."""
    plane = Plane(SHAPE, distance=distance)
    k = 400
    v = plane.converse(HopSkipJump().normal(on_the_boundary(plane), 0.5, k, plane.case)).result
    signal = math.sqrt(2 * k / (math.pi * D))
    assert (v * plane.n).sum() == pytest.approx(signal / math.sqrt(1 + signal**2), abs=0.06)
    assert np.linalg.norm(v) == pytest.approx(1, abs=1e-5)


def test_where_all_probes_agree_their_mean_is_followed_or_fled() -> None:
    plane = Plane(SHAPE)
    for side, sign in ((plane.z + 3 * plane.n, 1), (plane.z - 3 * plane.n, -1)):
        talk = plane.converse(HopSkipJump().normal(side, 0.1, 20, plane.case))
        mean = (talk.asks[0].points - side).mean(axis=0)
        np.testing.assert_allclose(talk.result, sign * mean / np.linalg.norm(mean), atol=1e-4)


def test_what_was_not_answered_weighs_nothing_in_the_estimate() -> None:
    plane = Plane(SHAPE)
    x = on_the_boundary(plane)
    rng = np.random.default_rng(0)
    answered = rng.random(300) < 0.5

    def half(number: int, ask: Ask) -> np.ndarray:
        return answered

    talk = plane.converse(HopSkipJump().normal(x, 0.5, 300, plane.case), answered=half)
    moved = (talk.asks[0].points - x)[answered]
    phi = np.where(plane.beyond(talk.asks[0].points)[answered] > 0, 1.0, -1.0)
    expected = np.tensordot(phi - phi.mean(), moved, axes=1)
    np.testing.assert_allclose(talk.result, expected / np.linalg.norm(expected), atol=1e-4)


def test_an_estimate_that_nobody_answers_is_no_direction_and_the_search_goes_on_asking() -> None:
    plane = Plane(SHAPE, budget=2000)

    def silent(number: int, ask: Ask) -> np.ndarray:
        return np.full(len(ask.points), ask.phase != "probe")

    talk = plane.converse(HopSkipJump().perturb(plane.z, plane.case), rows=2000, answered=silent)
    assert "step" not in talk.phases
    assert len(talk.of("probe")) > 5


@pytest.mark.parametrize("sections", [2, 5])
def test_step_sizes_are_halved_from_distance_over_root_t_and_asked_together_where_sections_are(sections: int) -> None:
    plane = Plane(SHAPE, sections=sections)
    x = on_the_boundary(plane)
    away = -plane.n  # never adversarial: all sizes are tried
    talk = plane.converse(HopSkipJump.step(x, away, 2.0, plane.case))
    assert talk.result is x
    sizes = np.concatenate([((ask.points - x) * away).reshape(len(ask.points), -1).sum(axis=1) for ask in talk.asks])
    np.testing.assert_allclose(sizes, 2.0 * 0.5 ** np.arange(16), atol=1e-5)
    assert len(talk.asks) == math.ceil(16 / (sections - 1))
    along = plane.converse(HopSkipJump.step(x, plane.n, 2.0, plane.case))
    assert len(along.asks) == 1
    assert plane.beyond(along.result[None])[0] == pytest.approx(2.0, abs=1e-3)  # the largest of those that hit


def test_on_a_quantised_wire_probes_and_steps_are_no_smaller_than_what_arrives() -> None:
    plane = Plane((6, 14, 14), codec="uniform4/tensor", distance=6.0, budget=3000)
    talk = plane.converse(HopSkipJump().perturb(plane.z, plane.case), rows=3000)
    x = plane.z
    for ask, answers in zip(talk.asks, talk.answers, strict=True):
        if ask.phase in ("probe", "step"):
            assert (answers.arrived != x).mean() > (0.3 if ask.phase == "probe" else 0.03)
        if ask.phase == "probe":
            # the boundary was found finely enough for them to disagree
            assert 0.02 < answers.adversarial.mean() < 0.98
        elif answers.adversarial.any():
            x = answers.arrived[answers.adversarial.argmax()]


@pytest.mark.parametrize("codec", ["identity", "float16", "uniform8/channel"])
@pytest.mark.parametrize(("norm", "within"), [("l2", 1.1), ("linf", 1.3)])
def test_it_comes_near_the_closed_form_on_every_wire(norm: Norm, within: float, codec: str) -> None:
    ratios = []
    for seed in range(5):
        plane = Plane((8, 4, 4), norm=norm, codec=codec, distance=3.0, seed=seed, budget=4000)
        talk = plane.converse(HopSkipJump().perturb(plane.z, plane.case), rows=4000)
        ratios.append(talk.closest / plane.closest)
    assert min(ratios) > 0.99
    assert np.median(ratios) < within


def test_it_reaches_the_closed_form_of_a_linear_tail_in_linf(tmp_path: Path) -> None:
    assert fallen(HopSkipJump(), "linf", tmp_path, within=1.3, budget=4000, n=10) >= 8


def test_more_sections_take_fewer_round_trips_to_the_same_place() -> None:
    rounds, ratios = {}, {}
    for sections in (2, 8):
        plane = Plane((8, 4, 4), distance=3.0, budget=4000, sections=sections)
        talk = plane.converse(HopSkipJump().perturb(plane.z, plane.case), rows=4000)
        rounds[sections], ratios[sections] = len(talk.asks), talk.closest / plane.closest
    assert rounds[8] < rounds[2] / 2
    assert ratios[8] < 1.15
