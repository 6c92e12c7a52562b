"""RayS as a conversation about a flat boundary, and against the closed form."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from flat import fallen
from plane import Conversation, Plane

from adversary.attacks import Ask, Pool
from adversary.attacks.rays import Line, RayS, blocks
from splitcore.latent import F32


def walked(plane: Plane, rows: int, attack: RayS | None = None) -> Conversation[F32 | None]:
    return plane.converse((attack or RayS()).perturb(plane.z, plane.case), rows=rows)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 128, 1176])
def test_blocks_halve_down_to_single_coordinates_and_start_over(d: int) -> None:
    levels: list[list[tuple[int, int]]] = []
    for start, end in islice(blocks(d), 4 * d + 40):
        if start == 0:
            levels.append([])
        levels[-1].append((start, end))
    assert levels[0] == [(0, d)]
    first = next(n for n, level in enumerate(levels) if all(end - start == 1 for start, end in level))
    for n, level in enumerate(levels[: first + 1]):
        assert [start for start, _ in level[1:]] == [end for _, end in level[:-1]]
        assert level[-1][1] == d
        assert level[0] == (0, -(-d // 2**n))
    assert levels[first + 1] == [(0, d)]


def test_all_candidates_lie_at_corners_and_the_radius_never_grows() -> None:
    plane = Plane((8, 4, 4), norm="linf")
    talk = walked(plane, 600)
    radii = []
    for ask, _ in talk.of("check"):
        offsets = np.abs(ask.points - plane.z)
        radii.append(offsets.max())
        np.testing.assert_allclose(offsets, radii[-1], rtol=1e-3)
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(radii))
    assert radii[-1] < 0.5 * radii[0]


def test_a_check_turns_one_block_of_the_best_ray_which_follows_only_what_was_adversarial() -> None:
    plane = Plane((8, 4, 4), norm="linf")
    best, asked, followed = np.ones(128), np.ones(128), 0
    adversarial = False
    for (ask, answers), (start, end) in zip(walked(plane, 300).of("check"), blocks(128), strict=False):
        ray = np.sign(ask.points[0] - plane.z).ravel()
        ray[start:end] *= -1
        if not np.array_equal(ray, best):
            assert adversarial
            np.testing.assert_array_equal(ray, asked)
            followed += 1
        best, asked, adversarial = ray, ray.copy(), bool(answers.adversarial[0])
        asked[start:end] *= -1
    assert followed > 5


def test_on_a_flat_boundary_one_pass_over_the_coordinates_finds_the_normals_signs() -> None:
    for seed in range(3):
        plane = Plane((8, 4, 4), norm="linf", seed=seed)
        talk = walked(plane, 2000, RayS(tolerance=1e-4))
        assert talk.closest == pytest.approx(plane.closest, rel=0.02)


def test_more_sections_and_checks_at_once_need_fewer_rounds() -> None:
    few, many = (Plane((8, 4, 4), norm="linf", sections=sections) for sections in (2, 9))
    slow, fast = walked(few, 3000), walked(many, 3000)
    assert len(fast.asks) < 0.3 * len(slow.asks)
    assert len(fast.of("check")[0][0].points) == 8
    assert fast.closest == pytest.approx(slow.closest, rel=0.1)


@pytest.mark.parametrize("sections", [2, 3, 9])
def test_the_radius_is_found_to_the_tolerance(sections: int) -> None:
    plane = Plane((8, 4, 4), norm="linf", sections=sections)
    line = Line(plane.z, plane.case, "CHW")
    talk = plane.converse(RayS(tolerance=0.01).radius(line, np.sign(plane.n).ravel(), 0.0, 5 * plane.closest, plane.case))
    assert plane.closest < talk.result < plane.closest * 1.051


def test_in_the_order_hwc_a_half_is_half_of_the_rows() -> None:
    plane = Plane((6, 8, 4), norm="linf")
    line = Line(plane.z, plane.case, "HWC")
    np.testing.assert_array_equal(line.points(line.flat(plane.z)[None])[0], plane.z)
    talk = walked(plane, 40, RayS(order="HWC"))
    first, second = (np.sign(ask.points[0] - plane.z) for ask, _ in talk.of("check")[:2])
    assert (first == -1).all()
    whole = -1 if talk.of("check")[0][1].adversarial[0] else 1
    assert (second[:, :4] == -whole).all()
    assert (second[:, 4:] == whole).all()


def test_a_first_ray_that_leads_nowhere_is_followed_to_the_box_and_turned() -> None:
    plane = Plane((3, 4, 4), norm="linf", box=(-3.0, 3.0))
    plane.n[:] = -np.abs(plane.n)
    talk = walked(plane, 400)
    last, answers = talk.of("start")[-1]
    assert (last.points == 3).all()
    assert not answers.adversarial[0]
    assert talk.of("check")[0][1].adversarial[0]
    assert talk.closest == pytest.approx(plane.closest, rel=0.05)


def test_without_a_box_or_an_adversary_it_goes_on_and_stays_finite() -> None:
    plane = Plane((3, 4, 4), norm="linf", distance=1e6)
    assert walked(plane, 200).rows == 200


def test_targeted_the_first_ray_points_to_the_wanted_latent() -> None:
    rng = np.random.default_rng(5)
    points = rng.standard_normal((3, 8, 4, 4)).astype(np.float32)
    pool = Pool(points, np.array([1, 2, 1]))
    plane = Plane((8, 4, 4), norm="linf", pool=pool, target=2)
    first = walked(plane, 3).asks[0].points[0]
    np.testing.assert_array_equal(np.sign(first - plane.z), np.sign(points[1] - plane.z))


def test_a_check_that_is_not_answered_is_no_success() -> None:
    plane = Plane((8, 4, 4), norm="linf")
    rng = np.random.default_rng(0)

    def some(number: int, ask: Ask) -> np.ndarray:
        return np.array([ask.phase != "check" or rng.random() < 0.7 for _ in ask.points])

    talk = plane.converse(RayS().perturb(plane.z, plane.case), rows=2500, answered=some)
    assert talk.closest == pytest.approx(plane.closest, rel=0.05)


@pytest.mark.parametrize("codec", ["float16", "uniform8/channel", "uniform4/channel"])
def test_on_a_grid_a_radius_between_two_values_is_felt(codec: str) -> None:
    for seed in range(3):
        plane = Plane((8, 4, 4), norm="linf", codec=codec, seed=seed)
        step = plane.case.space.probe
        assert walked(plane, 2000).closest <= max(
            1.05 * plane.closest, (np.ceil(plane.closest / max(step, 1e-9)) + 1.01) * step
        )


def test_it_reaches_the_closed_form_of_a_linear_tail(tmp_path: Path) -> None:
    """In linf, the least eps that turns class y into j on z·W is (f_y - f_j) / ‖w_y - w_j‖₁."""
    assert fallen(RayS(), "linf", tmp_path, within=1.1, budget=2000) >= 7
