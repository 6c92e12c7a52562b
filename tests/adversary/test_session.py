"""A session's conversation, written as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tails import identity, wire_spaces

from adversary.attacks.base import Ask, Case, Search
from adversary.attacks.noise import Noise
from adversary.attacks.rays import RayS
from adversary.session import Rows, Session
from splitcore.codec import fit
from splitcore.errors import ScenarioError
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm, ThreatModel

CODEC = identity((2, 1, 1))


class Walk:
    """Asks for the clean point moved by each of `steps` rows, and keeps what it is answered."""

    kind = "walk"
    feedback: Feedback = "scores"
    norms: tuple[Norm, ...] = ("linf", "l2")

    def __init__(self, *steps: Sequence[float], blind: float | None = None) -> None:
        self.steps = steps
        self.blind = blind
        self.heard: list[list[float]] = []

    def perturb(self, z: F32, case: Case) -> Search:
        for number, step in enumerate(self.steps):
            points = np.stack([z + np.float32(offset) for offset in step])
            answers = yield Ask(f"step {number}", points)
            self.heard.append(answers.loss.tolist())
        return None if self.blind is None else z + np.float32(self.blind)


def begun(attack: Walk, **threat: object) -> Session:
    space = wire_spaces(CODEC, np.zeros((1, 2, 1, 1), np.float32))[0]
    model = ThreatModel(**{"norm": "linf", "eps": 1.0, "eps_unit": "absolute", "budget": 10, **threat})  # type: ignore[arg-type]
    session = Session("run/phone/0", space, attack, model, rng=np.random.default_rng(0))  # type: ignore[arg-type]
    session.begin()
    return session


def answer(session: Session, *labels: int | None) -> None:
    """Sends what is asked and answers it: label 0 with a margin of 2, another label with -2, None with nothing."""
    session.place(session.space.snap(session.asked.points))
    session.count(session.space.encode(session.asked.points))
    assert len(session.asked.points) == len(labels)
    scores = np.zeros((len(labels), 3), np.float32)
    for row, label in enumerate(labels):
        scores[row, label or 0] = 2.0
    answered = np.array([label is not None for label in labels])
    session.tell(Rows(answered, np.array([label or 0 for label in labels]), scores, np.zeros(len(labels), bool)))


def test_the_clean_frame_is_asked_first_and_counted() -> None:
    session = begun(Walk([0.5]))
    assert session.asked.phase == "clean"
    answer(session, 0)
    assert (session.outcome.label, session.outcome.queries, session.asked.phase) == (0, 1, "step 0")


def test_the_first_success_ends_it_and_is_the_payload_that_was_sent() -> None:
    session = begun(Walk([0.25, 0.5, 0.75], [0.1]))
    answer(session, 0)
    answer(session, 0, 2, 2)
    outcome = session.outcome
    assert (outcome.success, outcome.first_success, outcome.queries, outcome.predicted) == (True, 3, 4, 2)
    assert outcome.payload == np.full(2, 0.5, "<f4").tobytes()
    assert outcome.distance == 0.5


def test_an_adversarial_latent_outside_the_ball_is_no_success() -> None:
    session = begun(Walk([1.5], [0.5]))
    answer(session, 0)
    answer(session, 1)
    assert not session.finished
    answer(session, 0)
    assert (session.outcome.success, session.outcome.reason) == (False, "exhausted")


def test_an_ask_that_would_overshoot_the_budget_is_cut_and_may_still_succeed() -> None:
    session = begun(Walk([0.1] * 20), budget=4)
    answer(session, 0)
    assert len(session.asked.points) == 3
    answer(session, 0, 0, 1)
    assert (session.outcome.success, session.outcome.queries, session.outcome.first_success) == (True, 4, 4)


def test_a_spent_budget_ends_it() -> None:
    session = begun(Walk([0.1] * 20, [0.2]), budget=4)
    answer(session, 0)
    answer(session, 0, 0, 0)
    assert (session.outcome.reason, session.outcome.queries, session.outcome.payload) == ("budget", 4, None)


def test_a_budget_of_one_is_spent_on_the_clean_frame() -> None:
    session = begun(Walk([0.1]), budget=1)
    answer(session, 0)
    assert (session.outcome.reason, session.outcome.queries) == ("budget", 1)


def test_a_row_without_an_answer_has_no_loss_and_is_no_success() -> None:
    walk = Walk([0.1, 0.2], [0.3])
    session = begun(walk)
    answer(session, 0)
    answer(session, None, 0)
    assert walk.heard == [[np.inf, 2.0]]
    assert not session.finished


def test_a_targeted_attack_wants_its_class_and_no_other() -> None:
    walk = Walk([0.1, 0.2], [0.3])
    session = begun(walk, target=2)
    answer(session, 0)
    answer(session, 1, 0)
    assert not session.finished
    assert walk.heard == [[2.0, 2.0]]
    answer(session, 2)
    assert session.outcome.success


def test_a_frame_that_is_the_target_already_needs_no_attack() -> None:
    session = begun(Walk([0.1]), target=1)
    answer(session, 1)
    assert (session.outcome.success, session.outcome.reason, session.outcome.queries) == (False, "exhausted", 1)


def test_a_clean_query_without_an_answer_is_an_error_that_says_so() -> None:
    session = begun(Walk([0.1]))
    answer(session, None)
    assert session.outcome.reason == "error"
    assert "clean query" in (session.outcome.error or "")


def test_an_answer_after_the_deadline_changes_nothing() -> None:
    session = begun(Walk([0.1]))
    session.count([b""])
    session.end("deadline")
    session.tell(Rows(np.array([True]), np.array([1]), None, np.array([False])))
    assert (session.outcome.reason, session.outcome.success, session.outcome.queries) == ("deadline", False, 1)


def test_a_blind_attack_asks_nothing() -> None:
    space = wire_spaces(CODEC, np.zeros((1, 2, 1, 1), np.float32))[0]
    model = ThreatModel(norm="linf", eps=1.0, eps_unit="absolute")
    session = Session("run/phone/0", space, Noise(), model, rng=np.random.default_rng(0))
    session.begin()
    assert (session.outcome.reason, session.outcome.queries, session.outcome.success) == ("blind", 0, False)
    moved = np.frombuffer(session.outcome.payload or b"", "<f4")
    assert 0 < np.abs(moved).max() <= 1


def test_a_norm_that_an_attack_does_not_have_is_refused() -> None:
    space = wire_spaces(CODEC, np.zeros((1, 2, 1, 1), np.float32))[0]
    with pytest.raises(ScenarioError, match="rays has norms linf, got l2"):
        Session("f", space, RayS(), ThreatModel(norm="l2"), rng=np.random.default_rng(0))


def test_an_attack_that_needs_scores_says_so_to_a_server_that_gives_labels() -> None:
    session = begun(Walk([0.1]))
    session.place(session.space.snap(session.asked.points))
    session.count([b""])
    session.tell(Rows(np.array([True]), np.array([0]), None, np.array([False])))
    assert session.outcome.reason == "error"
    assert "needs scores, the server gives labels" in (session.outcome.error or "")


def test_an_eps_below_one_step_of_the_wire_is_refused_with_what_to_say() -> None:
    codec = fit("uniform4/tensor", CODEC.latent)
    space = wire_spaces(codec, np.zeros((1, 2, 1, 1), np.float32))[0]
    model = ThreatModel(norm="linf", eps=0.5, eps_unit="codec_steps")
    with pytest.raises(ScenarioError, match=r"below one step of uniform4/tensor .* say at least 1 codec_steps"):
        Session("f", space, Noise(), model, rng=np.random.default_rng(0))
