"""What decision-based attacks share, on a flat boundary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from plane import Plane

from adversary.attacks import Answers, Ask, Pool
from adversary.attacks.boundary import (
    Spent,
    boxed,
    direction,
    dithering,
    find_adversarial,
    finest,
    narrowed,
    pull,
    shrink_to_boundary,
    starts,
    to_boundary,
    votes,
)
from splitcore.latent import F32

SHAPE = (6, 7, 5)


def adversarial_point(plane: Plane, seed: int = 5) -> F32:
    """Beyond the plane, in no special direction."""
    noise = np.random.default_rng(seed).standard_normal(plane.z.shape).astype(np.float32)
    noise += (3 - float((noise * plane.n).sum())) * plane.n
    return plane.z + noise


@pytest.mark.parametrize(("sections", "rounds"), [(2, 10), (4, 5), (11, 3), (1025, 1)])
def test_a_section_search_ends_within_theta_after_the_logarithm_of_it_in_rounds(sections: int, rounds: int) -> None:
    plane = Plane(SHAPE, sections=sections)
    x = adversarial_point(plane)
    talk = plane.converse(to_boundary(plane.z, x, plane.case, theta=1 / 1024))
    assert len(talk.asks) == rounds
    assert {len(ask.points) for ask in talk.asks} == {sections - 1}
    # from z, beyond is -1; at x it is 2: a step of θ of the segment is 3/1024
    assert 0 < plane.beyond(talk.result[None])[0] <= 3 / 1024 + 1e-5


def test_the_smallest_ball_that_holds_an_adversarial_cut_of_a_point_is_found() -> None:
    plane = Plane(SHAPE, norm="linf")
    x = adversarial_point(plane)
    found = plane.converse(shrink_to_boundary(plane.z, x, plane.case, theta=1e-5)).result
    assert 0 < plane.beyond(found[None])[0] < 1e-3
    radius = np.abs(found - plane.z).max()
    np.testing.assert_allclose(found - plane.z, np.clip(x - plane.z, -radius, radius), atol=1e-6)


@pytest.mark.parametrize("sections", [2, 8])
@pytest.mark.parametrize("project", [to_boundary, shrink_to_boundary])
def test_what_was_not_answered_is_no_evidence_for_either_side(project: object, sections: int) -> None:
    plane = Plane(SHAPE, sections=sections)
    rng = np.random.default_rng(3)

    def some(number: int, ask: Ask) -> np.ndarray:
        return rng.random(len(ask.points)) < 0.6

    search = project(plane.z, adversarial_point(plane), plane.case, theta=1e-3)  # type: ignore[operator]
    talk = plane.converse(search, answered=some)
    assert talk.ended
    assert 0 < plane.beyond(talk.result[None])[0] < 0.01


def test_a_search_that_nobody_answers_ends_where_it_began() -> None:
    plane = Plane(SHAPE)
    x = adversarial_point(plane)
    talk = plane.converse(to_boundary(plane.z, x, plane.case, theta=1e-3), answered=lambda number, ask: np.zeros(1, bool))
    assert talk.rows == 40
    assert talk.result is x
    # it does not ask the same again, which a detector of repeated queries would reject again
    assert len({ask.points.tobytes() for ask in talk.asks}) > 30


def test_a_tolerance_that_float32_cannot_reach_does_not_make_an_endless_search() -> None:
    plane = Plane(SHAPE)
    assert plane.converse(to_boundary(plane.z, adversarial_point(plane), plane.case, theta=1e-30)).rows <= 40


def test_on_a_coarse_grid_the_boundary_is_found_between_two_steps_of_all_coordinates() -> None:
    """A corner of ±k steps is adversarial, one of ±(k-1) is not: there is a lot between, coordinate by coordinate."""
    plane = Plane((6, 14, 14), norm="linf", codec="uniform4/tensor", distance=8.0)
    step = plane.case.space.probe
    corner = plane.codec.snap((plane.z + 3 * step * np.sign(plane.n))[None])[0]
    assert plane.beyond(corner[None])[0] > 0
    found = plane.converse(shrink_to_boundary(plane.z, corner, plane.case, theta=1e-6)).result
    beyond = plane.beyond(found[None])[0]
    one_step_of_all = step * float(np.abs(plane.n).sum())
    assert 0 < beyond < 0.05 * one_step_of_all
    steps = np.rint(np.abs(found - plane.z) / step)
    inside = np.abs(corner - plane.z) > 2.5 * step  # what the codec's range did not cut
    assert len(np.unique(steps[inside])) == 2


def test_dithering_leaves_what_lies_on_the_grid_and_splits_what_lies_between() -> None:
    plane = Plane((6, 14, 14), codec="uniform4/tensor")
    dither = dithering(plane.z, plane.case)
    assert dither is not None
    np.testing.assert_array_equal(plane.codec.snap((plane.z + dither)[None])[0], plane.z)
    step = np.float32(plane.case.space.probe)
    inside = np.abs(plane.z) < 3
    moved = plane.codec.snap((plane.z + 0.25 * step + dither)[None])[0] > plane.z
    assert 0.2 < moved[inside].mean() < 0.3
    assert dithering(plane.z, Plane(SHAPE).case) is None


def test_the_pool_comes_first_and_the_nearest_of_the_wanted_class_is_taken() -> None:
    base = Plane(SHAPE)
    near, nearer, own = (base.z + scale * base.n for scale in (3.0, 2.0, 1.5))
    points = np.stack([near, own, nearer]).astype(np.float32)
    plane = Plane(SHAPE, pool=Pool(points=points, labels=np.array([1, 0, 1])))
    talk = plane.converse(find_adversarial(plane.z, plane.case))
    assert len(talk.asks) == 1
    np.testing.assert_array_equal(talk.result, nearer.astype(np.float32))
    wanted = Plane(SHAPE, target=2, pool=Pool(points=points, labels=np.array([2, 0, 1])))
    np.testing.assert_array_equal(wanted.converse(find_adversarial(wanted.z, wanted.case)).asks[0].points, points[:1])


def test_without_a_pool_noise_grows_twofold_until_one_is_adversarial() -> None:
    plane = Plane(SHAPE, distance=7.0)
    talk = plane.converse(starts(plane.z, plane.case, 4))
    sizes = [float((ask.points - plane.z).std()) for ask in talk.asks]
    assert sizes == pytest.approx([2.0**i for i in range(len(sizes))], rel=0.2)
    assert not any(answers.adversarial.any() for answers in talk.answers[:-1])
    assert len(talk.result) == talk.answers[-1].adversarial.sum() > 0
    # where round trips are dear several sizes go together, and the smallest that has an adversarial point counts
    wide = Plane(SHAPE, distance=7.0, sections=5)
    talk = wide.converse(starts(wide.z, wide.case, 4))
    assert [len(ask.points) for ask in talk.asks[:1]] == [16]
    rows = talk.answers[-1].adversarial.reshape(-1, 4)
    assert len(talk.result) == rows[rows.any(axis=1)][0].sum()


def test_an_attack_without_an_adversarial_point_gives_up_after_twelve_sizes() -> None:
    plane = Plane(SHAPE, distance=1e9)
    talk = plane.converse(find_adversarial(plane.z, plane.case))
    assert talk.result is None
    assert talk.rows == 60


def told(adversarial: list[int], answered: list[int], arrived: F32 | None = None) -> Answers:
    k = len(adversarial)
    points = np.zeros((k, 1), np.float32) if arrived is None else arrived
    known = np.array(answered, bool)
    return Answers(np.zeros(k, np.float32), np.array(adversarial, bool), points, np.zeros(k, np.float32), known, ~known)


def test_votes_are_signs_less_their_mean_and_nothing_where_nothing_was_answered() -> None:
    np.testing.assert_allclose(votes(told([1, 1, 1, 0], [1, 1, 1, 1])), [0.5, 0.5, 0.5, -1.5])
    np.testing.assert_allclose(votes(told([1, 0, 0, 0], [1, 1, 0, 0])), [1, -1, 0, 0])
    # one mind: no mean is taken off, or nothing would be left; what was not answered does not break it
    np.testing.assert_allclose(votes(told([1, 1, 0], [1, 1, 0])), [1, 1, 0])
    np.testing.assert_allclose(votes(told([0, 0, 0], [1, 1, 0])), [-1, -1, 0])
    np.testing.assert_allclose(votes(told([0, 0], [0, 0])), [0, 0])


def test_the_pull_is_the_sum_of_the_ways_to_the_probes_as_they_arrived() -> None:
    x = np.array([1.0, 2.0], np.float32)
    arrived = x + np.array([[1, 0], [0, 1], [5, 5]], np.float32)
    np.testing.assert_allclose(pull(told([1, 0, 0], [1, 1, 0], arrived), x), [1, -1])
    np.testing.assert_allclose(pull(told([0, 0, 0], [1, 1, 0], arrived), x), [-1, -1])


def test_the_direction_of_a_norm_goes_farthest_along_a_normal() -> None:
    v = np.array([3.0, -4.0], np.float32)
    np.testing.assert_allclose(direction(v, "l2"), [0.6, -0.8])  # type: ignore[arg-type]
    np.testing.assert_allclose(direction(v, "linf"), [1, -1])  # type: ignore[arg-type]
    assert direction(np.zeros(2, np.float32), "l2") is None


def test_a_box_cuts_as_the_balls_own_and_one_that_the_wire_has_anyway_does_nothing() -> None:
    plane = Plane(SHAPE, box=(-0.5, 0.7))
    points = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)
    np.testing.assert_array_equal(boxed(points.copy(), plane.case), np.clip(points, np.float32(-0.5), np.float32(0.7)))
    plane.case.ball.lo = np.linspace(-1, -0.5, 6, dtype=np.float32).reshape(6, 1, 1)
    np.testing.assert_array_equal(boxed(points.copy(), plane.case), plane.case.ball.boxed(points))
    for codec in ("identity", "uniform8/channel"):
        np.testing.assert_array_equal(boxed(points.copy() * 9, Plane(SHAPE, codec=codec).case), points * 9)


@pytest.mark.parametrize("codec", ["identity", "float16", "uniform8/channel", "uniform4/tensor+zstd"])
def test_a_probe_of_the_finest_size_arrives_and_one_much_finer_does_not(codec: str) -> None:
    plane = Plane((6, 14, 14), codec=codec)
    noise = np.random.default_rng(0).standard_normal(plane.z.shape).astype(np.float32)
    size = np.float32(finest(plane.z, plane.case))

    def share_moved(probe: np.float32) -> float:
        return float((plane.codec.snap((plane.z + probe * noise)[None])[0] != plane.z).mean())

    assert share_moved(size) > 0.5
    assert share_moved(size / 100) < 0.1


def test_rows_are_counted_as_they_pass_and_the_last_estimate_takes_what_is_left() -> None:
    plane = Plane(SHAPE)
    spent = Spent()
    talk = plane.converse(spent.on(to_boundary(plane.z, adversarial_point(plane), plane.case, theta=1e-3)))
    assert spent.rows == talk.rows == math.ceil(math.log2(1000))
    assert talk.result is not None
    spent.rows = 500
    assert spent.affordable(100, 20, 1000) == 100
    assert spent.affordable(100, 20, 660) == 140  # after 100 there would be 40 left: no room for another and its walk
    assert spent.affordable(100, 20, 560) == 40
    assert spent.affordable(100, 20, 510) == 2


def test_a_round_narrows_the_interval_to_its_first_hit_and_the_last_miss_before_it() -> None:
    at = np.array([0.25, 0.5, 0.75])

    def after(adversarial: list[int], answered: list[int]) -> tuple[float, float, int | None]:
        return narrowed(at, np.array(adversarial, bool), np.array(answered, bool), 0.0, 1.0)

    assert after([0, 0, 0], [1, 1, 1]) == (0.75, 1.0, None)
    assert after([0, 1, 0], [1, 1, 1]) == (0.25, 0.5, 1)
    assert after([1, 1, 1], [1, 1, 1]) == (0.0, 0.25, 0)
    assert after([0, 0, 1], [1, 0, 1]) == (0.25, 0.75, 2)
    assert after([0, 0, 0], [1, 0, 0]) == (0.25, 1.0, None)
    assert after([0, 0, 0], [0, 0, 0]) == (0.0, 1.0, None)
