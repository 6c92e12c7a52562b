"""HopSkipJump: the boundary's normal from labels alone, a step along it, back to the boundary.

Chen, Jordan, Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", IEEE S&P 2020, algorithm 2, l2.

Departures: the first probe radius takes a tenth of the latent's range where the paper takes a tenth of the pixels'; probes are
never smaller than the quantiser's step in each coordinate; every loop is bounded, since on a quantised wire a boundary point
may stop being adversarial.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Answers, Ask, Search
from adversary.attacks.boundary import find_adversarial, to_boundary
from adversary.space import Space
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Ball, Feedback, Norm, norms, per_row

MAX_HALVINGS = 16


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HopSkipJump:
    """Walk along the decision boundary towards the clean point."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    kind: Literal["hopskipjump"] = "hopskipjump"
    initial_probes: Annotated[int, Field(ge=2)] = 100
    """B_0: probes of the first estimate; B_t = B_0·√t (section 4.C)"""
    max_probes: Annotated[int, Field(ge=2)] = 10_000
    gamma: Annotated[float, Field(gt=0)] = 1.0
    """γ: the boundary is searched to θ = γ/(d·√d) of the segment (appendix of the paper, l2)"""
    sections: Annotated[int, Field(ge=2, le=64)] = 2
    """parts a section search cuts its interval into each round: 2 is bisection, more trade rows for round trips"""

    def perturb(self, z: F32, *, ball: Ball, space: Space, budget: int, rng: np.random.Generator) -> Search:
        d = z.size
        theta = self.gamma / (d * math.sqrt(d))
        x = yield from find_adversarial(z, ball, space, rng)
        if x is None:
            return None
        x = yield from to_boundary(z, x, space, theta=theta, sections=self.sections)
        for t in range(1, budget + 1):
            distance = float(np.linalg.norm(x - z))
            delta = 0.1 * space.scale.range if t == 1 else math.sqrt(d) * theta * distance
            delta = max(delta, space.probe * math.sqrt(d))
            count = min(math.ceil(self.initial_probes * math.sqrt(t)), self.max_probes)
            v = yield from self.normal(x, np.float32(delta), count, ball, rng)
            # geometric progression of the step size, ξ_t = ‖x_t - x*‖/√t (section 4.B)
            step = np.float32(distance / math.sqrt(t))
            for _ in range(MAX_HALVINGS):
                answers = yield Ask("step", ball.boxed(x + step * v)[None])
                if answers.adversarial[0]:
                    x = answers.arrived[0]
                    break
                step /= 2
            x = yield from to_boundary(z, x, space, theta=theta, sections=self.sections)
        return None

    def normal(
        self, x: F32, delta: np.float32, count: int, ball: Ball, rng: np.random.Generator
    ) -> Generator[Ask, Answers, F32]:
        """Unit direction [*shape] into the adversarial side at the boundary point x, from `count` labels (eqs. 9, 16)."""
        u = rng.standard_normal((count, *x.shape), np.float32)
        u /= per_row(norms(u), u)
        probes = ball.boxed(x + delta * u)
        u = (probes - x) / delta  # the box may have moved them
        answers = yield Ask("probe", probes)
        phi = np.where(answers.adversarial, np.float32(1), np.float32(-1))
        phi = np.where(answers.answered, phi, np.float32(0))
        mean = phi.mean()
        # variance reduction by the mean (eq. 16), which is no direction when all probes agree
        weights = phi if abs(mean) == 1 else phi - mean
        v: F32 = np.tensordot(weights.astype(np.float32), u, axes=1)
        length = np.linalg.norm(v)
        return v / length if length > 0 else u[0]
