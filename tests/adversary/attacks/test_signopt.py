"""Sign-OPT as a conversation about a flat boundary, and against the closed form of a linear tail."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from flat import fallen
from plane import Plane

from adversary.attacks import Ask, Pool
from adversary.attacks.signopt import FAN, Rays, SignOPT
from splitcore.latent import F32
from splitcore.threat import Norm

SHAPE = (6, 7, 5)
D = 210


def rays_at(plane: Plane, n: int, seed: int = 7) -> F32:
    """Offsets [n, *shape] that all lead through the plane, at different distances."""
    noise = np.random.default_rng(seed).standard_normal((n, *plane.z.shape)).astype(np.float32)
    along = np.linspace(1.5, 6, n) - (noise * plane.n).reshape(n, -1).sum(axis=1)
    offsets: F32 = (noise + along.reshape(-1, 1, 1, 1) * plane.n).astype(np.float32)
    return offsets


def g_of(plane: Plane, ray: F32) -> float:
    """The closed form in l2, by bisection in linf."""
    if plane.case.ball.norm == "l2":
        return plane.distance / float((ray * plane.n).sum() / np.linalg.norm(ray))
    low, high = 0.0, float(np.abs(ray).max())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if (np.clip(ray, -middle, middle) * plane.n).sum() > plane.distance else (middle, high)
    return high


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_all_signs_of_an_estimate_are_asked_at_once(norm: Norm) -> None:
    plane = Plane(SHAPE, norm=norm, budget=10_000)
    talk = plane.converse(SignOPT(probes=70).perturb(plane.z, plane.case), rows=1500)
    assert talk.phases[:6] == ["start", "boundary", "probe", "line", "boundary", "probe"]
    assert {len(ask.points) for ask, _ in talk.of("probe")} == {70}


def test_probes_lie_on_the_tangent_at_beta_times_the_distance() -> None:
    plane = Plane(SHAPE)
    offset = rays_at(plane, 1)[0]
    x = plane.z + offset
    distance = float(np.linalg.norm(offset))
    [ask] = plane.converse(SignOPT().slope(x, offset, 0.01 * distance / math.sqrt(D), 50, plane.case)).asks
    u = (ask.points - x).reshape(50, -1)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 0.01 * distance, rtol=1e-3)
    np.testing.assert_allclose(u @ offset.ravel() / distance, 0, atol=1e-5 * distance)


def test_the_slope_points_to_where_the_boundary_comes_nearer_even_where_that_is_hardly_sideways() -> None:
    """Signs across the tangent tell its direction however small the slope: the cosine is that of √(2k/πd)."""
    plane = Plane(SHAPE)
    k = 400
    tangent = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    tangent -= float((tangent * plane.n).sum()) * plane.n
    tangent /= np.float32(np.linalg.norm(tangent))
    for angle in (0.1, 1.2):
        theta = math.cos(angle) * plane.n + math.sin(angle) * tangent
        g = 1 / math.cos(angle)
        offset = (np.float32(g * (1 + 1e-6)) * theta).astype(np.float32)
        estimate = plane.converse(SignOPT().slope(plane.z + offset, offset, 0.02, k, plane.case)).result
        nearer = plane.n - math.cos(angle) * theta
        cosine = (estimate * nearer).sum() / np.linalg.norm(estimate) / np.linalg.norm(nearer)
        signal = math.sqrt(2 * k / (math.pi * D))
        assert cosine == pytest.approx(signal / math.sqrt(1 + signal**2), abs=0.08)


@pytest.mark.parametrize("sections", [2, 6, 40])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_nearest_of_many_rays_is_found_as_if_each_had_been_searched(norm: Norm, sections: int) -> None:
    plane = Plane(SHAPE, norm=norm, sections=sections)
    offsets = rays_at(plane, 8)
    rays = Rays(plane.z, plane.case, None)
    alone = [g_of(plane, offset) for offset in offsets]
    start = float(plane.case.ball.lengths(offsets).max())
    talk = plane.converse(rays.nearest(rays.through(offsets), start, 1e-5))
    best, g = talk.result
    assert best == int(np.argmin(alone))
    assert g == pytest.approx(min(alone), rel=1e-4)
    separately = 8 * math.log2(start / 1e-5)
    assert talk.rows < 0.5 * separately or sections > 2


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_fan_comes_to_the_size_with_the_smallest_g_and_to_none_where_all_are_farther(norm: Norm) -> None:
    plane = Plane(SHAPE, norm=norm)
    rays = Rays(plane.z, plane.case, None)
    offset = rays_at(plane, 1)[0]
    g = g_of(plane, offset)
    x = rays.end(rays.through(offset[None])[0], g)
    fan = rays.fan(x - plane.z, plane.n, 0.3 * g)
    assert fan is not None
    alone = [g_of(plane, ray) for ray in fan]
    size, nearer = plane.converse(rays.shortest(fan, g, 1e-5)).result
    assert size == int(np.argmin(alone))
    assert nearer == pytest.approx(min(alone), rel=1e-4)
    assert nearer < g
    back = rays.fan(x - plane.z, -plane.n, 0.3 * g)
    assert back is not None
    talk = plane.converse(rays.shortest(back, g, 1e-5))
    assert talk.result == (None, g)
    assert talk.rows == len(FAN)
    assert rays.fan(x - plane.z, np.zeros_like(plane.z), g) is None


def test_rows_that_are_not_answered_make_no_step_and_no_boundary() -> None:
    plane = Plane(SHAPE, budget=3000)
    rng = np.random.default_rng(0)

    def some(number: int, ask: Ask) -> np.ndarray:
        return rng.random(len(ask.points)) < 0.7

    talk = plane.converse(SignOPT().perturb(plane.z, plane.case), rows=3000, answered=some)
    assert talk.closest < 1.25 * plane.closest

    def silent(number: int, ask: Ask) -> np.ndarray:
        return np.full(len(ask.points), ask.phase != "probe")

    assert plane.converse(SignOPT().perturb(plane.z, plane.case), rows=3000, answered=silent).rows > 2500


def test_first_directions_lead_to_the_pool_where_there_is_one() -> None:
    base = Plane(SHAPE)
    points = (base.z + rays_at(base, 6)).astype(np.float32)
    plane = Plane(SHAPE, pool=Pool(points=points, labels=np.ones(6, np.int64)))
    talk = plane.converse(SignOPT().perturb(plane.z, plane.case), rows=100)
    assert talk.phases[:2] == ["start", "boundary"]
    np.testing.assert_array_equal(np.sort(talk.asks[0].points.ravel()), np.sort(points.ravel()))


def test_on_a_quantised_wire_probes_are_no_smaller_than_a_step() -> None:
    plane = Plane((6, 14, 14), codec="uniform4/tensor", distance=6.0, budget=3000)
    talk = plane.converse(SignOPT().perturb(plane.z, plane.case), rows=3000)
    for _, answers in talk.of("probe"):
        x = np.median(answers.arrived, axis=0)
        assert (answers.arrived != x).mean() > 0.3
        assert 0.02 < answers.adversarial.mean() < 0.98


@pytest.mark.parametrize("codec", ["identity", "float16", "uniform8/channel"])
@pytest.mark.parametrize(("norm", "within"), [("l2", 1.05), ("linf", 1.2)])
def test_it_comes_near_the_closed_form_on_every_wire(norm: Norm, within: float, codec: str) -> None:
    ratios = []
    for seed in range(5):
        plane = Plane((8, 4, 4), norm=norm, codec=codec, distance=3.0, seed=seed, budget=4000)
        ratios.append(plane.converse(SignOPT().perturb(plane.z, plane.case), rows=4000).closest / plane.closest)
    assert min(ratios) > 0.99
    assert np.median(ratios) < within


@pytest.mark.parametrize(("norm", "within"), [("l2", 1.03), ("linf", 1.2)])
def test_it_reaches_the_closed_form_of_a_linear_tail(norm: Norm, within: float, tmp_path: Path) -> None:
    assert fallen(SignOPT(), norm, tmp_path, within=within, budget=4000) >= 7
