"""HopSkipJump: the boundary's normal from labels alone, a step along it, back to the boundary.

Chen, Jordan, Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", IEEE S&P 2020, algorithm 2, l2 and linf.

Departures: the first probe radius takes a tenth of the latent's range where the paper takes a tenth of the pixels'; probes are
never smaller than the quantiser's step in each coordinate, and the estimate weighs what arrived of them, not what was asked;
directions are Gaussian for linf too, where the paper draws them from a cube: only their sum along the normal matters, and that
is Gaussian either way; where round trips are dear several step sizes are asked together; the last estimate takes what the
budget leaves; every loop is bounded, since on a quantised wire a boundary point may stop being adversarial.
"""

from __future__ import annotations

import math
from itertools import count
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search
from adversary.attacks.boundary import (
    Spent,
    Step,
    boxed,
    direction,
    find_adversarial,
    finest,
    pull,
    shrink_to_boundary,
    stretch,
    to_boundary,
)
from adversary.attacks.draw import gaussian
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm

MAX_HALVINGS = 16


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HopSkipJump:
    """Walk along the decision boundary towards the clean point."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    kind: Literal["hopskipjump"] = "hopskipjump"
    initial_probes: Annotated[int, Field(ge=2)] = 100
    """B_0: probes of the first estimate; B_t = B_0·√t (section 4.C)"""
    max_probes: Annotated[int, Field(ge=2)] = 10_000
    gamma: Annotated[float, Field(gt=0)] = 1.0
    """γ: the boundary is searched to θ = γ/(d·√d) of the segment for l2, γ/d² of the radius for linf (appendix of the paper)"""

    def perturb(self, z: F32, case: Case) -> Search:
        ball, d = case.ball, z.size
        if ball.norm == "l2":
            theta, per_theta, project = self.gamma / d**1.5, math.sqrt(d), to_boundary
        else:
            theta, per_theta, project = self.gamma / d**2, float(d), shrink_to_boundary
        spent = Spent()
        x = yield from spent.on(find_adversarial(z, case))
        if x is None:
            return None
        x = yield from spent.on(project(z, x, case, theta=theta))
        walk = spent.rows
        for t in count(1):
            distance = float(ball.distance(x[None])[0])
            # section 4.C: δ_t = √d·θ·distance, or d·θ·distance for linf
            delta = 0.1 * case.space.scale.range if t == 1 else per_theta * theta * distance
            delta = max(delta, finest(z, case) * math.sqrt(d))
            probes = min(math.ceil(self.initial_probes * math.sqrt(t)), self.max_probes)
            probes = spent.affordable(probes, walk, case.budget)
            v = yield from spent.on(self.normal(x, delta, probes, case))
            before = spent.rows
            if v is not None:
                x = yield from spent.on(self.step(x, v, distance / math.sqrt(t), case))
                x = yield from spent.on(project(z, x, case, theta=theta))
                walk = spent.rows - before
        return None

    def normal(self, x: F32, delta: float, probes: int, case: Case) -> Step[F32 | None]:
        """The `direction` into the adversarial side at the boundary point x [*shape] (eqs. 9, 16); None: no answer."""
        points = gaussian(case.rng, probes, x.shape)
        stretch(points, delta)
        points += x
        answers = yield Ask("probe", boxed(points, case))
        return direction(pull(answers, x), case.ball.norm)

    @staticmethod
    def step(x: F32, v: F32, size: float, case: Case) -> Step[F32]:
        """The farthest adversarial point x + ξ·v, ξ = size, size/2, ... (section 4.B); x where there is none.

        On a quantiser's grid ξ starts no smaller than what moves a tenth of the coordinates by a step: less is no step at all.
        """
        if case.space.probe:
            size = max(size, 0.51 * case.space.probe / max(float(np.quantile(np.abs(v), 0.9)), 1e-6))
        sizes = np.float32(size) * np.exp2(-np.arange(MAX_HALVINGS, dtype=np.float32))
        for first in range(0, MAX_HALVINGS, case.sections - 1):
            some = sizes[first : first + case.sections - 1]
            answers = yield Ask("step", boxed(x + some.reshape(-1, *([1] * x.ndim)) * v, case))
            if answers.adversarial.any():
                reached: F32 = answers.arrived[answers.adversarial.argmax()]
                return reached
        return x
