"""An attack of one's own: a corner of the linf ball, some of its signs turned at random, kept whenever the margin falls."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from adversary.attacks import Ask, Case, Search


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Flips:
    feedback: ClassVar[str] = "scores"  # what it learns from an answer: scores, label, or none
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    kind: Literal["flips"] = "flips"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """share of the coordinates that are turned at once"""
    width: Annotated[int, Field(ge=1)] = 4
    """candidates of one question: they travel together, and each is a query of the budget"""

    def perturb(self, z: np.ndarray, case: Case) -> Search:
        """z [*shape] float32 is the latent; case has the ball, the box, the budget, and this frame's own random stream."""
        ball, rng = case.ball, case.rng
        up, best = rng.random(z.shape) < 0.5, np.float32(np.inf)  # the corner [*shape], and the margin there
        while True:  # the session ends it: at the first success inside the ball, at the budget, at the deadline
            turned = up ^ (rng.random((self.width, *z.shape), np.float32) < self.rate)
            answers = yield Ask("flips", np.where(turned, ball.high, ball.low))  # [width, *shape], answered row by row
            k = int(answers.loss.argmin())  # log p_y - max log p_j, below 0 when the tail is wrong; +inf unanswered
            if answers.loss[k] < best:
                up, best = turned[k], answers.loss[k]
