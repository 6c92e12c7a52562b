"""NES: the gradient of the loss by antithetic Gaussian probes, then projected momentum steps of its sign.

Ilyas, Engstrom, Athalye, Lin, "Black-box Adversarial Attacks with Limited Queries and Information", ICML 2018, algorithm 1 and
section 3.1; learning rate, momentum and plateau rule are the authors' published settings. They assume pixels in [0, 1] and
eps = 0.05, so σ and the rates are given here as fractions of eps: 0.001/0.05 and 0.01/0.05. On a quantised wire σ is raised to
the quantiser's step, below which a probe arrives unchanged.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Search
from adversary.space import Space
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Ball, Feedback, Norm


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NES:
    """Sign steps along an estimated gradient."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["nes"] = "nes"
    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 50
    """n: probes of one estimate, half of them mirrored"""
    sigma: Annotated[float, Field(gt=0)] = 0.02
    """σ in units of eps"""
    learning_rate: Annotated[float, Field(gt=0)] = 0.2
    """first step in units of eps"""
    min_learning_rate: Annotated[float, Field(gt=0)] = 0.001
    """in units of eps"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    plateau: Annotated[int, Field(ge=1)] = 5
    """the rate is halved when the loss is no lower than so many steps ago"""

    def perturb(self, z: F32, *, ball: Ball, space: Space, budget: int, rng: np.random.Generator) -> Search:
        eps = np.float32(ball.eps)
        sigma = np.float32(max(self.sigma * ball.eps, space.probe))
        rate = self.learning_rate
        m: F32 = np.zeros_like(z)
        x = z
        recent: list[float] = []
        for _ in range(0, budget, self.samples + 1):
            u = rng.standard_normal((self.samples // 2, *z.shape), np.float32)
            u = np.concatenate([u, -u])
            answers = yield Ask("probe", x + sigma * u)
            usable = np.isfinite(answers.loss)
            if usable.any():
                # eq. 3 with the losses centred, which changes no expectation and spares variance where pairs are broken
                centred = np.where(usable, answers.loss - answers.loss[usable].mean(), np.float32(0)).astype(np.float32)
                g: F32 = np.tensordot(centred, u, axes=1) / (sigma * np.float32(self.samples))
                m = np.float32(self.momentum) * m + np.float32(1 - self.momentum) * g
            ahead = np.asarray(x - np.float32(rate) * eps * np.sign(m), np.float32)
            x = ball.project(ahead[None])[0]
            [loss] = (yield Ask("step", x[None])).loss
            recent.append(float(loss))
            if len(recent) > self.plateau and recent[-1] >= recent[-1 - self.plateau]:
                rate, recent = max(rate / 2, self.min_learning_rate), []
        return None
