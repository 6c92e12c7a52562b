"""The boundary attack as a conversation about a flat boundary, and against the closed form."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from plane import Plane
from tails import LinearTail, attack_all, clean_latents, identity, wire_spaces

from adversary.attacks import Ask
from adversary.attacks.boundary_attack import BoundaryAttack, Share, around
from splitcore.threat import ThreatModel

SHAPE = (6, 7, 5)


@pytest.mark.parametrize("delta", [0.01, 0.5])
def test_a_step_sideways_keeps_the_distance_and_is_as_long_as_it_should_be(delta: float) -> None:
    rng = np.random.default_rng(0)
    offset = rng.standard_normal(210).astype(np.float32)
    distance = float(np.linalg.norm(offset))
    moved = around(offset, distance, delta, rng.standard_normal((20, 210)).astype(np.float32)).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), distance, rtol=1e-5)
    # the tangent of the angle between them is δ
    along = moved @ offset / distance
    np.testing.assert_allclose(np.sqrt(distance**2 - along**2) / along, delta, rtol=1e-3)


def test_every_step_is_one_row_and_every_tenth_looks_sideways_too() -> None:
    plane = Plane(SHAPE, budget=1000)
    talk = plane.converse(BoundaryAttack().perturb(plane.z, plane.case), rows=300)
    assert talk.phases == ["start", "boundary", "step"]
    assert [len(ask.points) for ask, _ in talk.of("step")[:21]] == [2] + [1] * 9 + [2] + [1] * 9 + [2]
    # on its way it never moves to a point that is farther away
    nearest = [
        float(answers.distance[answers.adversarial].min()) for _, answers in talk.of("step") if answers.adversarial.any()
    ]
    first, _ = talk.of("step")[0]
    start = plane.case.ball.distance(first.points)[1]
    assert max(nearest) <= start * 1.001


def test_proposals_are_the_sideways_points_a_source_step_nearer() -> None:
    plane = Plane(SHAPE, budget=1000)
    talk = plane.converse(BoundaryAttack(source_step=0.05).perturb(plane.z, plane.case), rows=100)
    ask, _ = talk.of("step")[0]
    proposal, sideways = ask.points - plane.z
    np.testing.assert_allclose(proposal, 0.95 * sideways, atol=1e-5)


def test_where_round_trips_are_dear_several_proposals_go_together() -> None:
    plane = Plane(SHAPE, budget=1000, sections=6)
    talk = plane.converse(BoundaryAttack().perturb(plane.z, plane.case), rows=900)
    asks = [ask for ask, _ in talk.of("step")]
    assert [len(ask.points) for ask in asks[:3]] == [6, 5, 5]
    assert len(np.unique(asks[1].points.reshape(5, -1), axis=0)) == 5


def test_a_share_counts_what_was_answered_and_starts_over_when_taken() -> None:
    share = Share(4)
    share.add(np.array([True, False, False]), np.array([True, True, False]))
    assert not share.full
    share.add(np.array([True, False]), np.array([True, True]))
    assert share.full
    assert share.take() == 0.5
    assert not share.full


@pytest.mark.parametrize(("said", "grows"), [(True, True), (False, False)])
def test_the_steps_grow_while_they_succeed_and_shrink_while_they_fail(said: bool, grows: bool) -> None:
    """Sideways steps are 0.1 of the distance at first; all succeed far beyond the plane, none where nothing is adversarial."""
    plane = Plane(SHAPE, budget=5000)

    def step(talk_rows: int) -> list[float]:
        search = BoundaryAttack().perturb(plane.z, plane.case)
        ask, sizes = next(search), []
        x = None
        for _ in range(talk_rows):
            answers = plane.answer(ask)
            if ask.phase == "step":
                answers.adversarial[:] = said
                answers.distance[:] = 1e9  # and never nearer, so that the walk stays where it is
                if len(ask.points) == 2 and x is not None:
                    sizes.append(float(np.linalg.norm(ask.points[1] - x) / np.linalg.norm(x - plane.z)))
            elif answers.adversarial.any():
                x = answers.arrived[answers.adversarial.argmax()]
            ask = search.send(answers)
        return sizes

    sizes = step(300)
    assert sizes[0] == pytest.approx(0.1, rel=0.02)
    assert (sizes[-1] > 0.3) if grows else (sizes[-1] < 0.05)


def test_rows_that_are_not_answered_change_no_step() -> None:
    plane = Plane(SHAPE, budget=2000)

    def silent(number: int, ask: Ask) -> np.ndarray:
        return np.full(len(ask.points), ask.phase != "step")

    talk = plane.converse(BoundaryAttack().perturb(plane.z, plane.case), rows=1000, answered=silent)
    sideways = [ask.points[1] - plane.z for ask, _ in talk.of("step") if len(ask.points) == 2]
    turns = [float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairwise(sideways)]
    assert turns[0] == pytest.approx(turns[-1], abs=0.01)


@pytest.mark.parametrize(("codec", "within"), [("identity", 1.05), ("float16", 1.05), ("uniform8/channel", 1.08)])
def test_it_comes_near_the_closed_form_on_every_wire(codec: str, within: float) -> None:
    plane = Plane((8, 4, 4), codec=codec, distance=3.0, budget=2500)
    ratio = plane.converse(BoundaryAttack().perturb(plane.z, plane.case), rows=2500).closest / plane.closest
    assert 0.99 < ratio < within


def test_it_reaches_the_closed_form_of_a_linear_tail(tmp_path: Path) -> None:
    codec = identity((8, 4, 4))
    tail = LinearTail(codec)
    latents = clean_latents(codec, 4)
    spaces = wire_spaces(codec, latents)
    fell = 0
    for number, space in enumerate(spaces):
        nearest = tail.to_boundary(latents[number])
        beyond = ThreatModel(norm="l2", eps=nearest * 1.1, eps_unit="absolute", budget=2000)
        within = ThreatModel(norm="l2", eps=nearest * 0.995, eps_unit="absolute", budget=300)
        fell += attack_all(tail, BoundaryAttack(), beyond, {number: space}, tmp_path / f"{number}a")[number].success
        assert not attack_all(tail, BoundaryAttack(), within, {number: space}, tmp_path / f"{number}b")[number].success
    assert fell >= 3
