"""An attack's whole conversation by hand: every ask, answered by a function, with no session that stops it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from tails import spec

from adversary.attacks import Answers, Attack, Case
from adversary.space import WireSpace
from adversary.verdict import Rows, judge
from splitcore.codec import fit
from splitcore.latent import F32
from splitcore.threat import BALLS, Norm


class Turn(NamedTuple):
    phase: str
    points: F32
    """[k, *shape], as asked"""
    arrived: F32
    """[k, *shape]"""
    loss: F32
    """[k]"""


def case_of(
    z: F32, norm: Norm, eps: float, codec_name: str = "identity", *, budget: int, label: int = 0,
    target: int | None = None, seed: int = 0, box: tuple[float, float] | None = None
) -> Case:  # fmt: skip
    """What a session would tell an attack on z [*shape] as it arrives. eps is absolute."""
    codec = fit(codec_name, spec(z.shape))
    space = WireSpace(codec.encode(z[None])[0], codec, 1.0)
    lo, hi = space.box("codec" if box is None else box)
    ball = BALLS[norm](space.centre, eps, lo, hi, space.grid)
    rng = np.random.default_rng(seed)
    return Case(ball=ball, space=space, budget=budget, rng=rng, label=label, target=target)


def converse(
    attack: Attack, case: Case, scores: Callable[[F32], F32], *, unanswered: Collection[int] = (), to_success: bool = False
) -> list[Turn]:
    """Until `case.budget` rows are asked, or the attack ends, or `to_success` the first candidate is adversarial.

    `scores` gives logits [k, classes] of what arrived. `unanswered`: numbers of the rows, from 0, that get no answer.
    """
    codec, z = case.space.codec, case.space.centre
    own = case.label if case.target is None else case.target
    search = attack.perturb(z, case)
    turns: list[Turn] = []
    rows, answers = 0, None
    while rows < case.budget:
        try:
            ask = next(search) if answers is None else search.send(answers)
        except StopIteration:
            break
        points = ask.points[: case.budget - rows]
        assert points.dtype == np.float32
        assert points.shape[1:] == z.shape
        k = len(points)
        arrived = codec.snap(points.copy())
        said = scores(arrived)
        answered = np.array([rows + row not in unanswered for row in range(k)])
        verdict = judge(
            Rows(answered, np.where(answered, said.argmax(axis=1), -1), said, ~answered),
            np.full(k, own), targeted=case.target is not None,
        )  # fmt: skip
        answers = Answers(
            verdict.loss, verdict.adversarial, arrived, case.ball.distance(arrived), answered, ~answered, verdict.log_p
        )
        turns.append(Turn(ask.phase, points, arrived, verdict.loss))
        rows += k
        if to_success and verdict.adversarial.any():
            break
    search.close()
    return turns


def slope(w: F32, offset: float = 0.0) -> Callable[[F32], F32]:
    """Logits of two classes whose margin is w·x + offset, linear in x."""

    def scores(points: F32) -> F32:
        margin = points.reshape(len(points), -1) @ w.reshape(-1) + np.float32(offset)
        return np.stack([margin, np.zeros_like(margin)], axis=1)

    return scores
