"""Triangle: its geometry, a conversation about a flat boundary, and the closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from plane import Conversation, Plane

from adversary.attacks import Ask
from adversary.attacks.dct import dct2, idct2
from adversary.attacks.triangle import Line, Triangle, first_beta
from splitcore.latent import F32


def walked(plane: Plane, rows: int, attack: Triangle | None = None) -> Conversation[F32 | None]:
    return plane.converse((attack or Triangle()).perturb(plane.z, plane.case), rows=rows)


def line_and_normal(seed: int = 0, shape: tuple[int, ...] = (6, 9, 5)) -> tuple[Line, F32, F32]:
    rng = np.random.default_rng(seed)
    z, x = rng.standard_normal((2, *shape)).astype(np.float32)
    line = Line(z, x)
    v = Triangle().direction(line, rng)
    assert v is not None
    return line, x, v


def smooth_normal(seed: int) -> F32:
    """A unit normal [3, 16, 12] of the frequencies that directions are drawn from."""
    low = np.zeros((3, 16, 12), np.float32)
    low[:, :4, :4] = np.random.default_rng(seed).standard_normal((3, 4, 4))
    n = idct2(low)
    return n / np.float32(np.linalg.norm(n))


def angle(a: F32, b: F32) -> float:
    return math.acos(float(np.vdot(a, b)) / float(np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("alpha", [math.pi / 2 - 0.1, math.pi / 2, math.pi / 2 + 0.1, 1.0])
@pytest.mark.parametrize("beta", [0.15, 0.6, 1.2])
def test_a_candidate_has_the_angles_and_the_distance_that_the_paper_gives_it(alpha: float, beta: float) -> None:
    line, x, v = line_and_normal()
    for point in line.points(alpha, [beta], np.stack([v, -v])):
        assert angle(point - line.z, x - line.z) == pytest.approx(beta, abs=1e-3)
        assert angle(line.z - point, x - point) == pytest.approx(alpha, abs=1e-3)
        distance = np.linalg.norm(point - line.z)
        assert distance == pytest.approx(np.linalg.norm(x - line.z) * math.sin(alpha + beta) / math.sin(alpha), rel=1e-4)
        assert (distance < line.D) == (2 * alpha + beta > math.pi)


@pytest.mark.parametrize("alpha", np.linspace(math.pi / 2 - 0.1, math.pi / 2 + 0.1, 9))
def test_the_first_candidate_of_a_plane_is_always_nearer(alpha: float) -> None:
    line, _, v = line_and_normal()
    beta = first_beta(alpha, math.pi / 16)
    assert 2 * alpha + beta > math.pi
    assert beta == pytest.approx(max(math.pi - 2 * alpha, 0) + math.pi / 16)
    [near] = line.points(alpha, [beta], v[None])
    assert np.linalg.norm(near - line.z) < line.D
    assert first_beta(0.2, math.pi / 16) == pytest.approx(math.pi - 0.4 + 0.1)


def test_a_direction_is_unit_and_normal_and_has_one_low_frequency_of_each_channel() -> None:
    rng = np.random.default_rng(0)
    z = np.zeros((5, 40, 30), np.float32)
    x = z.copy()
    x[0, 0, 0] = 1.0
    line = Line(z, x)
    v = Triangle(block=0.2).direction(line, rng)
    assert v is not None
    assert np.linalg.norm(v) == pytest.approx(1, rel=1e-5)
    assert abs(float(v @ line.u)) < 1e-6
    spectrum = np.abs(dct2(v.reshape(5, 40, 30)))
    for channel in spectrum[1:]:
        assert (channel > 1e-4).sum() == 1
        i, j = np.unravel_index(channel.argmax(), channel.shape)
        assert i < 8
        assert j < 6


@pytest.mark.parametrize("shape", [(256, 1, 1), (40,), (6, 10)])
def test_vectors_and_tokens_are_drawn_from_in_full(shape: tuple[int, ...]) -> None:
    plane = Plane(shape, distance=3.0)
    line = Line(plane.z, plane.z + plane.n)
    rng = np.random.default_rng(0)
    drawn = np.stack([Triangle().direction(line, rng) for _ in range(20)])
    assert np.linalg.matrix_rank(drawn, tol=1e-3) == 20
    assert (np.abs(drawn) > 1e-4).mean() > 0.9
    assert walked(plane, 600).closest < 0.6 * walked(plane, 20).closest


def test_it_mirrors_after_a_failure_and_alpha_falls_with_each() -> None:
    """The answers by hand: nothing is adversarial any more, so α falls by λ a query until it is π/2 - τ."""
    plane = Plane((8, 4, 4))
    x = plane.z + plane.n
    line = Line(plane.z, x)
    rng = np.random.default_rng(0)
    attack = Triangle(loss=0.01, spread=0.055)
    v = attack.direction(line, rng)
    assert v is not None
    alphas = [math.pi / 2]
    for _ in range(4):
        search = attack.walk(line, v[None], x, alphas[-1], plane.case)
        ahead = next(search)
        mirrored = search.send(plane.answer(ahead))
        beta = first_beta(alphas[-1], attack.margin)
        np.testing.assert_allclose(ahead.points, line.points(alphas[-1], [beta], v[None]), atol=1e-6)
        np.testing.assert_allclose(mirrored.points, line.points(alphas[-1] - 0.01, [beta], -v[None]), atol=1e-2)
        with pytest.raises(StopIteration) as ended:
            search.send(plane.answer(mirrored))
        kept, alpha = ended.value.value
        assert kept is x
        alphas.append(alpha)
    np.testing.assert_allclose(np.array(alphas) - math.pi / 2, [0, -0.02, -0.04, -0.055, -0.055], atol=1e-9)


def test_n_bisections_of_beta_follow_a_success_and_alpha_grows_with_theirs() -> None:
    plane = Plane((8, 4, 4), distance=1.0)
    far = plane.z + 5 * plane.n + np.roll(plane.n, 3) * 5
    line = Line(plane.z, far)
    n = plane.n.ravel() - (plane.n.ravel() @ line.u) * line.u
    v = n / np.float32(np.linalg.norm(n))
    attack = Triangle(bisections=3, gain=0.02, loss=0.005)
    talk = plane.converse(attack.walk(line, v[None], far, math.pi / 2, plane.case))
    x, alpha = talk.result
    expected, low, high = math.pi / 2, math.pi / 16, math.pi / 2
    asked = iter(talk.of("bisect"))
    for _ in range(3):
        middle = (low + high) / 2
        ask, answers = next(asked)
        np.testing.assert_allclose(ask.points, line.points(expected, [middle], v[None]), atol=1e-4)
        won = bool(answers.adversarial[0])
        if not won:
            _, answers = next(asked)
            won = bool(answers.adversarial[0])
        low, high = (middle, high) if won else (low, middle)
        expected += 0.02 if won else -0.005
    assert next(asked, None) is None
    assert alpha == pytest.approx(expected)
    assert np.linalg.norm(x - plane.z) == pytest.approx(talk.closest, rel=1e-5)
    assert talk.closest < 0.8 * line.D


def test_both_sides_of_several_planes_are_asked_together_where_round_trips_are_dear() -> None:
    plane = Plane((8, 4, 4), distance=3.0, sections=8)
    talk = walked(plane, 2000)
    assert {len(ask.points) for ask, _ in talk.of("plane")} == {6}
    assert {len(ask.points) for ask, _ in talk.of("bisect")} == {14}
    assert len(talk.asks) < 400
    assert talk.closest < 1.8 * plane.closest


def test_in_one_dimension_it_ends_at_the_boundary() -> None:
    plane = Plane((1, 1, 1))
    talk = walked(plane, 1000)
    assert talk.ended
    assert talk.closest == pytest.approx(plane.closest, rel=0.01)


def test_in_a_box_it_stays_there_and_goes_on() -> None:
    plane = Plane((8, 4, 4), distance=3.0, box=(-2.0, 2.0))
    plane.z[:] = np.clip(plane.z, -2, 2)
    talk = walked(plane, 1000)
    assert all((np.abs(answers.arrived) <= 2).all() for answers in talk.answers)
    assert talk.closest < 1.8 * plane.closest


def test_rows_that_are_not_answered_leave_alpha_as_it_is() -> None:
    plane = Plane((8, 4, 4), distance=3.0)

    def none(number: int, ask: Ask) -> np.ndarray:
        return np.full(len(ask.points), ask.phase not in ("plane", "bisect"))

    talk = plane.converse(Triangle().perturb(plane.z, plane.case), rows=300, answered=none)
    assert talk.rows == 300
    distances = [float(np.linalg.norm(ask.points[0] - plane.z)) for ask, _ in talk.of("plane")]
    assert np.ptp(distances) < 1e-3 * distances[0]


@pytest.mark.parametrize("codec", ["identity", "float16", "uniform8/channel"])
def test_where_the_boundary_is_smooth_it_comes_as_near_as_its_margin_lets_it(codec: str) -> None:
    """The least angle that the paper tries is π/16, so it finds little once the normal is that near; a smaller margin does."""
    ratios: dict[float, list[float]] = {math.pi / 16: [], math.pi / 64: []}
    for margin, found in ratios.items():
        for seed in range(3):
            plane = Plane((3, 16, 12), codec=codec, distance=3.0, seed=seed)
            plane.n = smooth_normal(seed)
            found.append(walked(plane, 1200, Triangle(margin=margin)).closest / plane.closest)
    assert np.median(ratios[math.pi / 16]) < 1.4
    assert np.median(ratios[math.pi / 64]) < 1.15


def test_on_a_coarse_grid_it_goes_on_below_half_a_step_a_coordinate() -> None:
    for seed in range(3):
        plane = Plane((3, 16, 12), codec="uniform4/channel", distance=3.0, seed=seed)
        plane.n = smooth_normal(seed)
        talk = walked(plane, 1500)
        assert talk.closest < 0.5 * plane.case.space.probe * math.sqrt(576)
        assert talk.closest < 0.6 * min(float(answers.distance.min()) for _, answers in talk.of("start"))
