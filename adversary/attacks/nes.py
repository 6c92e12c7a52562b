"""NES: the gradient of the loss by antithetic Gaussian probes, then projected momentum steps.

Ilyas, Engstrom, Athalye, Lin, "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018, algorithm 1 and
section 3.1; learning rate, momentum and plateau rule are the authors' published settings.

Departures: the authors assume pixels in [0, 1] and eps = 0.05, so σ and the rates are given here as fractions of eps:
0.001/0.05 and 0.01/0.05. On a quantised wire σ is raised to the quantiser's step, below which a probe arrives unchanged. The
loss is the margin unless `objective` says cross-entropy, the authors': that follows the sum of all other classes, and just
beyond the nearest boundary stops at a point which is best for them together and adversarial for none. The point that a step led
to is asked together with the probes around it, one round trip an iteration; the authors ask it apart and do not count it. The
paper is linf alone: in l2 the step goes along the momentum, normalised, and σ is a fraction of eps/√d. Half a pair that came
back alone still counts, as far as it is above or below the mean. The paper's variants for partial information and for labels
alone are left out: where labels are all there is, the attacks made for them need fewer queries.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search
from adversary.attacks.draw import gaussian
from adversary.attacks.estimate import Objective, Within, centred, lowered, steepest, unit, widest
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NES:
    """Steps along an estimated gradient: along its sign in linf."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    kind: Literal["nes"] = "nes"
    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 50
    """n: probes of one estimate, half of them mirrored"""
    sigma: Annotated[float, Field(gt=0)] = 0.02
    """σ in units of eps; in l2 of eps/√d"""
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    """η: first step in units of eps"""
    min_learning_rate: Annotated[float, Field(gt=0)] = 0.001
    """in units of eps"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    plateau: Annotated[int, Field(ge=1)] = 5
    """η is halved when the probes' mean loss is no lower than so many steps ago"""
    objective: Objective = "margin"
    """the loss; ours"""

    def perturb(self, z: F32, case: Case) -> Search:
        ball, left = case.ball, case.budget
        within = Within(ball)
        sigma = np.float32(max(self.sigma * unit(ball), case.space.probe))
        rate, most = self.learning_rate, min(self.samples, widest(z.size)) // 2
        m: F32 = np.zeros_like(z)
        x = z
        recent: list[float] = []
        while left > 0:
            new = int(x is not z)  # the clean point's label is known
            pairs = min(most, (left - new - 1) // 2)  # the last row is for the last step
            if pairs < 1:
                break
            u = gaussian(case.rng, pairs, z.shape)
            u *= sigma
            points = np.empty((new + 2 * pairs, *z.shape), np.float32)
            points[:new] = x
            np.add(x, u, out=points[new : new + pairs])
            np.subtract(x, u, out=points[new + pairs :])
            answers = yield Ask("probe", within.box(points))
            left -= len(points)
            loss = lowered(answers, case, self.objective)[new:]
            above, usable = centred(loss)
            if not usable:
                continue
            # algorithm 1: g = Σ (f(x + σu) - f(x - σu))·u / (n·σ), of σu
            g = (above[:pairs] - above[pairs:]) @ u.reshape(pairs, -1)
            g *= np.float32(1 - self.momentum) / (sigma * sigma * np.float32(usable))
            m *= np.float32(self.momentum)
            m += g.reshape(z.shape)
            recent.append(float(loss[np.isfinite(loss)].mean()))
            if len(recent) > self.plateau and recent[-1] >= recent[-1 - self.plateau]:
                rate, recent = max(rate / 2, self.min_learning_rate), []
            x = ball.project((x - np.float32(rate * ball.eps) * steepest(m, ball.norm))[None])[0]
        if left > 0 and x is not z:
            yield Ask("step", x[None])
        return None
