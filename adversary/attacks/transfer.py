"""Transfer: gradient steps on a surrogate, and what they come to is sent to the server unasked.

Dong, Liao, Pang, Su, Zhu, Hu, Li, "Boosting Adversarial Attacks with Momentum", CVPR 2018, algorithm 1 (MI-FGSM), and in l2 its
step along g/‖g‖₂. With `momentum: 0, random_start: true` it is projected gradient descent: Madry, Makelov, Schmidt, Tsipras,
Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018; a `step` of 2.5/steps is theirs. That what
fools a surrogate fools the model it was trained after: Papernot et al., AsiaCCS 2017.

Departures: the label that is left is the surrogate's own, since nobody asks the server. Targeted steps lead towards the target.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import About, Case, Pool, Search
from adversary.attacks.surrogate import Differentiable, SurrogateTraining
from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm, norms, per_row

TINY = np.float32(1e-30)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Transfer:
    """A few gradient steps on a surrogate for every frame."""

    feedback: ClassVar[Feedback] = "none"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    kind: Literal["transfer"] = "transfer"
    steps: Annotated[int, Field(ge=1, le=10_000)] = 10
    """T, the paper's"""
    step: Annotated[float, Field(gt=0)] | None = None
    """α in units of eps; None: the paper's 1/T"""
    momentum: Annotated[float, Field(ge=0)] = 1.0
    """μ, the paper's"""
    random_start: bool = False
    """begin at a uniform point of the ball, as PGD does"""
    surrogate: SurrogateTraining = Field(default_factory=SurrogateTraining)

    def learn_from(self, pool: Pool, about: About) -> TaughtTransfer:
        net, said = self.surrogate.trained(pool, about)
        return TaughtTransfer(self, net, said)

    def perturb(self, z: F32, case: Case) -> Search:
        yield from ()
        raise ScenarioError("attack transfer has learned nothing: call `learn_from` with a pool first")

    def descend(self, z: F32, case: Case, net: Differentiable) -> F32:
        """Where the steps from z [*shape] end, in the ball."""
        ball, eps = case.ball, np.float32(case.ball.eps)
        alpha = eps * np.float32(1 / self.steps if self.step is None else self.step)
        label = int(net.logits(z[None])[0].argmax()) if case.target is None else case.target
        alpha = alpha if case.target is None else -alpha
        x: F32 = ball.sample(case.rng, 1) if self.random_start else z[None]
        g = np.zeros_like(x)
        for _ in range(self.steps):
            _, gradient = net.loss_gradient(x, np.array([label]))
            # eq. 6; the mean of |gradient| in place of its sum, which scales g alone
            g = np.float32(self.momentum) * g + gradient / np.maximum(np.abs(gradient).mean(), TINY)
            ahead = np.sign(g) if ball.norm == "linf" else g / per_row(np.maximum(norms(g), TINY), g)
            x = ball.project(x + alpha * ahead)
        found: F32 = x[0]
        return found


@plain_dataclass(frozen=True)
class TaughtTransfer:
    """The same with its surrogate."""

    feedback: ClassVar[Feedback] = Transfer.feedback
    norms: ClassVar[tuple[Norm, ...]] = Transfer.norms

    settings: Transfer
    net: Differentiable
    learned: dict[str, Any] = field(default_factory=dict)
    kind: str = "transfer"

    def perturb(self, z: F32, case: Case) -> Search:
        yield from ()
        return self.settings.descend(z, case, self.net)
