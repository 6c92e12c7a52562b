"""SignFlip as a conversation about a flat boundary, and against the closed form."""

from __future__ import annotations

import numpy as np
import pytest
from plane import Conversation, Plane

from adversary.attacks import Ask
from adversary.attacks.signflip import Share, SignFlip, flips
from splitcore.latent import F32


def walked(plane: Plane, rows: int, attack: SignFlip | None = None) -> Conversation[F32 | None]:
    return plane.converse((attack or SignFlip()).perturb(plane.z, plane.case), rows=rows)


def test_a_step_is_kept_iff_it_stays_adversarial() -> None:
    """The accept rule, replayed: the perturbation that each candidate was made from follows from the answers before it."""
    plane = Plane((8, 4, 4), norm="linf")
    talk = walked(plane, 500)
    rounds = [(ask, answers) for ask, answers in zip(talk.asks, talk.answers, strict=True) if ask.phase in ("project", "flip")]
    assert [ask.phase for ask, _ in rounds[:4]] == ["project", "flip", "project", "flip"]
    delta, taken = None, {"project": 0, "flip": 0}
    for ask, answers in rounds:
        offset = ask.points[0] - plane.z
        if delta is not None and ask.phase == "project":
            assert np.abs(offset).max() < np.abs(delta).max()
        if delta is not None and ask.phase == "flip":
            np.testing.assert_allclose(np.abs(offset), np.abs(delta), atol=1e-5)
            assert (np.sign(offset) != np.sign(delta)).any()
        if answers.adversarial[0]:
            delta = offset
            taken[ask.phase] += 1
    assert min(taken.values()) > 20


def test_the_projection_takes_the_same_from_all_that_stand_out() -> None:
    plane = Plane((8, 4, 4), norm="linf", distance=4.0)
    talk = walked(plane, 60, SignFlip(alpha=0.001))
    alpha = 0.001 * plane.case.space.scale.range
    for (project, projected), (flip, _) in zip(talk.of("project"), talk.of("flip"), strict=False):
        if not projected.adversarial[0]:
            continue
        radius = np.abs(project.points[0] - plane.z).max()
        assert np.abs(flip.points[0] - plane.z).max() == pytest.approx(radius, rel=1e-5)
    before, after = (np.abs(ask.points[0] - plane.z).max() for ask, _ in talk.of("project")[:2])
    assert before - after == pytest.approx(alpha, rel=0.01)
    inner = np.abs(talk.of("flip")[0][0].points[0] - plane.z)
    outer = np.abs(talk.of("project")[0][0].points[0] - plane.z)
    assert np.abs(inner - outer).max() <= 2.01 * alpha


def test_steps_grow_after_many_successes_and_shrink_after_many_failures() -> None:
    plane = Plane((8, 4, 4), norm="linf")
    share = Share()
    for accepted, verdict in ((10, 1), (8, 1), (7, 0), (5, 0), (3, 0), (2, -1), (0, -1)):
        for number in range(10):
            said = plane.answer(Ask("flip", (plane.z + plane.n * (2 if number < accepted else 0))[None]))
            assert share.note(said) == (0 if number < accepted else None)
        assert share.asked == 10
        assert share.verdict() == verdict
        assert share.asked == 0


def test_signs_turn_with_their_own_probabilities_and_never_none_of_them() -> None:
    rng = np.random.default_rng(0)
    p = np.array([[0.5, 0.01], [0.2, 0.002]], np.float32)
    turned = (flips(rng, p, 20_000) < 0).mean(axis=0)
    alone = 0.5 * 0.99 * 0.8 * 0.998 / 4  # when none turns by itself, one of the four does
    np.testing.assert_allclose(turned, p + alone, atol=0.01)
    assert (flips(rng, np.full((3, 5), 1e-9, np.float32), 100) < 0).sum(axis=(1, 2)).tolist() == [1] * 100


def test_several_draws_are_asked_together_where_round_trips_are_dear() -> None:
    plane = Plane((8, 4, 4), norm="linf", sections=8)
    talk = walked(plane, 3000)
    assert {len(ask.points) for ask, _ in talk.of("flip")} == {7}
    assert len(talk.asks) < 450
    assert talk.closest < 1.25 * plane.closest


def test_signs_may_be_drawn_on_coarser_maps() -> None:
    """A coarse cell of 4 x 4 turns, but for corners where its neighbours outweigh it; never a coordinate alone."""
    plane = Plane((2, 8, 8), norm="linf", distance=6.0)
    talk = walked(plane, 40, SignFlip(reduction=4))
    (first, projected), (flip, _) = talk.of("project")[0], talk.of("flip")[0]
    assert projected.adversarial[0]
    turned = np.sign(flip.points[0] - plane.z) != np.sign(first.points[0] - plane.z)
    assert 12 <= turned.sum() <= 16


def test_rows_that_are_not_answered_change_nothing() -> None:
    plane = Plane((8, 4, 4), norm="linf")
    rng = np.random.default_rng(0)

    def some(number: int, ask: Ask) -> np.ndarray:
        return np.array([ask.phase not in ("project", "flip") or rng.random() < 0.7 for _ in ask.points])

    def none(number: int, ask: Ask) -> np.ndarray:
        return np.full(len(ask.points), ask.phase not in ("project", "flip"))

    talk = plane.converse(SignFlip().perturb(plane.z, plane.case), rows=3000, answered=some)
    assert talk.closest < 1.2 * plane.closest
    plane = Plane((8, 4, 4), norm="linf")
    silent = plane.converse(SignFlip().perturb(plane.z, plane.case), rows=300, answered=none)
    radii = [float(np.abs(ask.points - plane.z).max()) for ask, _ in silent.of("flip")]
    assert np.ptp(radii) < 1e-5


@pytest.mark.parametrize("codec", ["identity", "float16", "uniform8/channel"])
def test_it_comes_near_the_closed_form_on_every_wire(codec: str) -> None:
    ratios = []
    for seed in range(5):
        plane = Plane((8, 4, 4), norm="linf", codec=codec, distance=3.0, seed=seed)
        ratios.append(walked(plane, 2500).closest / plane.closest)
    assert min(ratios) > 0.99
    assert np.median(ratios) < 1.12


def test_on_a_coarse_grid_it_ends_a_step_from_the_closed_form() -> None:
    for seed in range(3):
        plane = Plane((8, 4, 4), norm="linf", codec="uniform4/channel", distance=6.0, seed=seed)
        step = plane.case.space.probe
        assert walked(plane, 3000).closest <= (np.ceil(plane.closest / step) + 1.01) * step
