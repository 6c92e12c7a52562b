"""RayS: the nearest boundary along a direction of ±1 in every coordinate, found by flipping ever smaller blocks of signs.

Chen and Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack", KDD 2020, algorithms 1 to 3. It has no
parameter to tune. Blocks are runs of the flattened latent in C, H, W order, so a block of a latent is a run of channels.

Departures: radii are in linf, where the paper measures the l2 length of the same ray; the first ray is searched from one
standard deviation of the latent, where the paper counts in pixels; the fast check and the bisection stop at a quantiser's
step; when the blocks have shrunk to one coordinate the search starts over with the whole, where the paper goes on in vain.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Answers, Ask, Search
from adversary.space import Space
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Ball, Feedback, Norm

Radius = Generator[Ask, Answers, float]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RayS:
    """Keep a flip of signs iff it brings the boundary nearer."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["rays"] = "rays"
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.005
    """of the bisection, as a fraction of the radius it starts from"""

    def perturb(self, z: F32, *, ball: Ball, space: Space, budget: int, rng: np.random.Generator) -> Search:
        d = z.size
        signs = np.ones(d, np.float32)
        radius = yield from self.first_radius(z, signs, ball, space)
        while True:
            for level in range(math.ceil(math.log2(max(2, d))) + 1):
                length = -(-d // 2**level)
                for start in range(0, d, length):
                    flipped = signs.copy()
                    flipped[start : start + length] *= -1
                    nearer = yield from self.nearer(z, flipped, radius, ball, space)
                    if nearer < radius:
                        signs, radius = flipped, nearer

    def first_radius(self, z: F32, signs: F32, ball: Ball, space: Space) -> Radius:
        """Where the first ray becomes adversarial, doubling from one standard deviation; the last tried where it never does."""
        radius = space.scale.std
        for _ in range(12):
            if (yield from self.adversarial(z, signs, radius, ball)):
                return (yield from self.bisect(z, signs, radius / 2, radius, ball, space))
            radius *= 2
        return radius

    def nearer(self, z: F32, signs: F32, radius: float, ball: Ball, space: Space) -> Radius:
        """The radius along `signs`, or `radius` where it is no nearer: one query tells (algorithm 2's fast check)."""
        if not (yield from self.adversarial(z, signs, radius, ball)):
            return radius
        return (yield from self.bisect(z, signs, 0.0, radius, ball, space))

    def bisect(self, z: F32, signs: F32, low: float, high: float, ball: Ball, space: Space) -> Radius:
        """The adversarial end of [low, high], which holds one, to the tolerance or a quantiser's step."""
        tolerance = max(self.tolerance * high, space.probe)
        while high - low > tolerance:
            middle = (low + high) / 2
            if (yield from self.adversarial(z, signs, middle, ball)):
                high = middle
            else:
                low = middle
        return high

    @staticmethod
    def adversarial(z: F32, signs: F32, radius: float, ball: Ball) -> Generator[Ask, Answers, bool]:
        point = ball.boxed(z + np.float32(radius) * signs.reshape(z.shape))
        answers = yield Ask("ray", point[None])
        return bool(answers.adversarial[0])
