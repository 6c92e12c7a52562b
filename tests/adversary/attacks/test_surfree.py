"""SurFree: the geometry of its circles, a conversation about a flat boundary, and the closed form."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from flat import fallen
from plane import Conversation, Plane

from adversary.attacks import Ask
from adversary.attacks.dct import dct2
from adversary.attacks.surfree import KEPT, SurFree, Tried, direction
from splitcore.latent import F32


def walked(plane: Plane, rows: int, attack: SurFree | None = None) -> Conversation[F32 | None]:
    return plane.converse((attack or SurFree()).perturb(plane.z, plane.case), rows=rows)


def placed(plane: Plane, tangent: float, seed: int = 0) -> tuple[F32, Tried, F32]:
    """(x, u, v): x on the boundary of `plane`; in the plane of u and v its normal has the angle arctan(tangent) to u."""
    n = plane.n.ravel()
    side = np.random.default_rng(seed).standard_normal(n.size).astype(np.float32)
    side -= (side @ n) * n
    side /= np.float32(np.linalg.norm(side))
    psi = math.atan(tangent)
    u = np.float32(math.cos(psi)) * n + np.float32(math.sin(psi)) * side
    v = np.float32(math.sin(psi)) * n - np.float32(math.cos(psi)) * side
    offset = np.float32(plane.distance / math.cos(psi) * 1.00001) * u
    return plane.z + offset.reshape(plane.z.shape), Tried(offset.reshape(plane.z.shape), 4), v


def test_all_candidates_lie_on_the_circle_over_the_diameter_from_the_clean_point() -> None:
    """Thales: z and x are seen from each under a right angle."""
    plane = Plane((6, 14, 9))
    x, tried, v = placed(plane, 0.7)
    angles = np.linspace(-1.5, 1.5, 13).astype(np.float32)
    points = tried.circle(plane.z, v, angles)
    np.testing.assert_allclose(((points - plane.z) * (points - x)).sum(axis=(1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm((points - plane.z).reshape(13, -1), axis=1), tried.r * np.cos(angles), rtol=1e-4)


@pytest.mark.parametrize("tangent", [0.3, 1.0, 4.0])
def test_where_the_boundary_is_flat_the_foot_of_the_perpendicular_is_the_best_of_the_arc(tangent: float) -> None:
    plane = Plane((6, 14, 9))
    _, tried, v = placed(plane, tangent)
    best = math.atan(tangent)
    angles = np.linspace(0.001, math.pi / 2, 4000).astype(np.float32)
    adversarial = plane.beyond(tried.circle(plane.z, v, angles)) > 0
    assert angles[adversarial].max() == pytest.approx(best, abs=2e-3)
    assert (plane.beyond(tried.circle(plane.z, v, -angles)) < 0).all()
    foot = tried.circle(plane.z, v, np.array([best], np.float32))
    assert np.linalg.norm(foot - plane.z) == pytest.approx(plane.closest, rel=1e-4)


@pytest.mark.parametrize("sections", [2, 5])
@pytest.mark.parametrize("theta", [0.12, 0.3, 0.45])
def test_the_largest_angle_is_found_to_a_hundredth_of_the_distance(theta: float, sections: int) -> None:
    plane = Plane((6, 14, 9), sections=sections)
    _, tried, v = placed(plane, math.tan(0.55))
    for phi, way in ((theta, v), (-theta, -v)):
        talk = plane.converse(SurFree().largest(plane.z, tried, way, phi, plane.case))
        point, angle = talk.result
        assert abs(angle) >= theta
        assert math.copysign(1, angle) == math.copysign(1, phi)
        assert plane.beyond(point[None])[0] > 0
        reach = min(2 * theta, 0.55)
        assert tried.r * (math.cos(angle) - math.cos(reach)) < 0.0101 * tried.r
        np.testing.assert_allclose(point, tried.circle(plane.z, way, np.array([angle], np.float32))[0], atol=1e-5)
        assert talk.rows <= 7 if sections == 2 else talk.rows % 4 == 0


def test_a_direction_is_normal_to_all_that_were_tried_and_of_low_frequencies() -> None:
    rng = np.random.default_rng(0)
    offset = rng.standard_normal((3, 16, 12)).astype(np.float32)
    tried = Tried(offset, 30)
    for number in range(40):
        v = direction(rng, tried, (3, 8, 6), (16, 12))
        assert v is not None
        rows = tried.rows[: tried.used]
        np.testing.assert_allclose(rows @ v, 0, atol=1e-5)
        assert np.linalg.norm(v) == pytest.approx(1, rel=1e-5)
        if number % 3:
            tried.keep(v)
        else:
            phi = 0.4
            u = tried.rows[0].copy()
            turned = tried.r * math.cos(phi) * (math.cos(phi) * u + math.sin(phi) * v)
            tried.turn(turned.reshape(offset.shape).astype(np.float32), v, phi)
        rows = tried.rows[: tried.used]
        np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-4)
    assert tried.used == 31


def test_a_direction_has_low_frequencies_alone_but_for_what_is_taken_off_along_u() -> None:
    offset = np.random.default_rng(1).standard_normal((3, 16, 12)).astype(np.float32)
    tried = Tried(offset, 1)
    v = direction(np.random.default_rng(0), tried, (3, 8, 6), (16, 12))
    assert v is not None
    high = np.ones((3, 16, 12), bool)
    high[:, :8, :6] = False
    of_v, of_u = (dct2(vector.reshape(3, 16, 12))[high] for vector in (v, tried.rows[0]))
    ratio = float(of_v @ of_u / (of_u @ of_u))
    np.testing.assert_allclose(of_v, ratio * of_u, atol=1e-5)
    assert abs(ratio) < 0.3


def test_what_is_kept_of_directions_has_bounds() -> None:
    assert Tried(np.ones((64, 56, 56), np.float32), 100).rows.shape == (2, 64 * 56 * 56)
    assert Tried(np.ones((6, 14, 14), np.float32), 100).rows.shape == (101, 1176)
    assert Tried(np.ones((1, KEPT + 1), np.float32), 100).rows.shape[0] == 1
    alone = Tried(np.ones((1, 1, 1), np.float32), 0)
    assert direction(np.random.default_rng(0), alone, (1, 1, 1), (1, 1)) is None


def test_theta_shrinks_where_both_sides_fail_and_grows_where_one_succeeds() -> None:
    """The angle of a candidate on the circle follows from its distance, which is r·cos θ."""
    plane = Plane((8, 4, 4), distance=3.0)
    talk = walked(plane, 400)
    theta, r, sides, planes = math.radians(30), np.inf, 0, 0
    for ask, answers in zip(talk.asks, talk.answers, strict=True):
        adversarial, distance = bool(answers.adversarial[0]), float(answers.distance.min())
        if ask.phase == "arc":
            assert math.acos(distance / r) == pytest.approx(theta, rel=0.02)
            sides = 0 if adversarial or sides == 1 else 1
            if not sides:
                theta = min(theta / 0.95, math.pi / 4) if adversarial else theta * 0.95
                planes += 1
        if answers.adversarial.any():
            r = min(r, float(answers.distance[answers.adversarial].min()))
    assert planes > 100


def test_both_sides_of_several_planes_are_asked_together_where_round_trips_are_dear() -> None:
    plane = Plane((8, 4, 4), distance=3.0, sections=8)
    talk = walked(plane, 2500)
    assert {len(ask.points) for ask, _ in talk.of("arc")} == {6}
    assert len(talk.asks) < 0.2 * 2500
    assert talk.closest < 1.05 * plane.closest


def test_in_one_dimension_it_ends_at_the_boundary() -> None:
    plane = Plane((1, 1, 1))
    talk = walked(plane, 1000)
    assert talk.ended
    assert talk.closest == pytest.approx(plane.closest, rel=0.01)


def test_in_a_box_it_stays_there_and_goes_on() -> None:
    plane = Plane((8, 4, 4), distance=3.0, box=(-2.0, 2.0))
    plane.z[:] = np.clip(plane.z, -2, 2)
    talk = walked(plane, 1500)
    assert all((np.abs(answers.arrived) <= 2).all() for answers in talk.answers)
    assert talk.closest < 1.2 * plane.closest


def test_rows_that_are_not_answered_are_no_success() -> None:
    plane = Plane((8, 4, 4), distance=3.0)
    rng = np.random.default_rng(0)

    def some(number: int, ask: Ask) -> np.ndarray:
        return np.array([ask.phase == "start" or rng.random() < 0.7 for _ in ask.points])

    talk = plane.converse(SurFree().perturb(plane.z, plane.case), rows=2500, answered=some)
    assert talk.closest < 1.1 * plane.closest


@pytest.mark.parametrize(
    ("codec", "within"), [("identity", 1.03), ("float16", 1.03), ("uniform8/channel", 1.2), ("uniform4/channel", 1.75)]
)
def test_it_comes_near_the_closed_form_on_every_wire(codec: str, within: float) -> None:
    """On a grid rounding moves a point by step/√12 along the normal, more than a plane has to give once the normal is near: a
    point that rounding favoured is hard to beat."""
    ratios = []
    for seed in range(4):
        plane = Plane((8, 4, 4), codec=codec, distance=3.0, seed=seed)
        ratios.append(walked(plane, 1500).closest / plane.closest)
    assert min(ratios) > 0.99
    assert np.median(ratios) < within


def test_it_reaches_the_closed_form_of_a_linear_tail(tmp_path: Path) -> None:
    # two classes: with more, it may stay at the second nearest plane
    assert fallen(SurFree(), "l2", tmp_path, within=1.02, budget=1000, classes=2) == 8
