"""What estimators of gradients share, beside slow twins."""

from __future__ import annotations

import numpy as np
import pytest
from conversation import case_of, converse, slope
from numpy.typing import NDArray
from tails import clean_latents, identity

from adversary.attacks import Answers, Attack
from adversary.attacks.bandits import Bandits
from adversary.attacks.estimate import MOST_ELEMENTS, Within, centred, lowered, steepest, unit
from adversary.attacks.nattack import NAttack
from adversary.attacks.nes import NES
from adversary.attacks.zoo import ZOO
from adversary.verdict import Rows, judge
from splitcore.latent import F32
from splitcore.threat import Norm


def answers_of(scores: F32, answered: NDArray[np.bool_], own: int, *, targeted: bool = False) -> Answers:
    k = len(scores)
    rows = Rows(answered, np.where(answered, scores.argmax(axis=1), -1), scores, ~answered)
    verdict = judge(rows, np.full(k, own), targeted=targeted)
    nothing = np.zeros((k, 1), np.float32)
    return Answers(verdict.loss, verdict.adversarial, nothing, nothing[:, 0], answered, ~answered, verdict.log_p)


def case(target: int | None = None, label: int = 2):  # type: ignore[no-untyped-def]
    return case_of(clean_latents(identity((4,)), 1)[0], "linf", 0.1, budget=10, label=label, target=target)


@pytest.mark.parametrize("target", [None, 1])
def test_the_cross_entropy_is_the_log_odds_of_the_class(target: int | None) -> None:
    scores = np.random.default_rng(0).normal(0, 3, (40, 6)).astype(np.float32)
    own = 2 if target is None else target
    answers = answers_of(scores, np.ones(40, bool), own, targeted=target is not None)
    p = np.exp(scores.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    odds = np.log(p[:, own] / (1 - p[:, own]))
    assert lowered(answers, case(target), "cross-entropy") == pytest.approx(odds if target is None else -odds, abs=1e-4)
    assert lowered(answers, case(target), "margin") is answers.loss


def test_the_log_odds_of_a_sure_server_do_not_round_to_nothing() -> None:
    """At p_y = 1 - 4e-11 and beyond log p_y is 0 in float32, whatever the others are."""
    scores = np.array([[24, 0, 0], [25, 0, 0], [60, 0, 0], [200, 0, 0]], np.float32)
    answers = answers_of(scores, np.ones(4, bool), 0)
    assert answers.log_p is not None
    assert (answers.log_p[:, 0] == 0).all()
    assert lowered(answers, case(label=0), "cross-entropy") == pytest.approx(scores[:, 0] - np.log(2), rel=1e-5)


def test_a_row_without_an_answer_is_infinite_and_weighs_nothing() -> None:
    scores = np.random.default_rng(0).normal(0, 3, (6, 4)).astype(np.float32)
    answered = np.array([True, False, True, True, False, True])
    for objective in ("margin", "cross-entropy"):
        loss = lowered(answers_of(scores, answered, 2), case(), objective)  # type: ignore[arg-type]
        assert np.isposinf(loss[~answered]).all()
        above, n = centred(loss)
        assert n == 4
        assert (above[~answered] == 0).all()
        assert above[answered] == pytest.approx(loss[answered] - loss[answered].mean(), abs=1e-5)
    nothing, n = centred(np.full(3, np.inf, np.float32))
    assert n == 0
    assert (nothing == 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("box", [None, (-1.0, 1.5), "channels", "half"])
@pytest.mark.parametrize("codec_name", ["identity", "uniform8/channel"])
def test_points_are_brought_into_ball_and_box_as_the_ball_itself_does_it(norm: Norm, box: object, codec_name: str) -> None:
    shape = (3, 4, 5)
    rng = np.random.default_rng(0)
    z = np.clip(clean_latents(identity(shape), 1)[0], -1, 1)
    ball = case_of(z, norm, 0.5 if norm == "linf" else 3.0, codec_name, budget=1).ball
    if box == "channels":
        lo, hi = np.array([-1, -2, -np.inf], np.float32), np.array([1, np.inf, 1.2], np.float32)
        ball = type(ball)(ball.centre, ball.eps, lo.reshape(3, 1, 1), hi.reshape(3, 1, 1), ball.step)
    elif box == "half":
        ball = type(ball)(ball.centre, ball.eps, np.full(1, -1, np.float32), np.full(1, np.inf, np.float32), ball.step)
    elif isinstance(box, tuple):
        ball = type(ball)(ball.centre, ball.eps, *(np.full(1, bound, np.float32) for bound in box), ball.step)
    offsets = rng.normal(0, 1, (30, *shape)).astype(np.float32) * np.logspace(-2, 1, 30, dtype=np.float32).reshape(-1, 1, 1, 1)
    points = ball.centre + offsets
    within = Within(ball)
    brought = offsets.copy()
    assert within.ball(brought) is brought
    assert brought == pytest.approx(ball.project(points), abs=2e-6)
    assert ball.contains(brought).all()
    boxed = points.copy()
    assert within.box(boxed) is boxed
    np.testing.assert_array_equal(boxed, ball.boxed(points))


def test_the_steepest_way_is_the_sign_in_linf_and_the_gradient_itself_in_l2() -> None:
    g = np.random.default_rng(0).normal(0, 1e-3, (3, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(steepest(g, "linf"), np.sign(g))
    assert steepest(g, "l2") == pytest.approx(g / np.linalg.norm(g), rel=1e-5)
    assert (steepest(np.zeros((3, 2), np.float32), "l2") == 0).all()


def test_the_unit_of_an_l2_ball_is_what_one_coordinate_has_when_all_move_alike() -> None:
    z = clean_latents(identity((4, 5, 5)), 1)[0]
    assert unit(case_of(z, "linf", 0.3, budget=1).ball) == 0.3
    assert unit(case_of(z, "l2", 0.3, budget=1).ball) == pytest.approx(0.03)


@pytest.mark.parametrize("attack", [NES(samples=400), NAttack(), ZOO(), Bandits()], ids=lambda attack: str(attack.kind))
def test_no_ask_about_a_large_latent_is_larger_than_memory_for_many_of_them_allows(attack: Attack) -> None:
    z = clean_latents(identity((64, 28, 28)), 1)[0]
    turns = converse(attack, case_of(z, "l2", 10.0, budget=250), slope(np.ones(z.size, np.float32), 100.0))
    assert max(turn.points.size for turn in turns) <= MOST_ELEMENTS + 2 * z.size
    assert sum(len(turn.points) for turn in turns) >= 248
