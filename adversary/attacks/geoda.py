"""GeoDA: take the boundary for a plane, estimate its normal from labels, and walk along it from the clean point.

Rahmati, Moosavi-Dezfooli, Frossard, Dai, "GeoDA: A Geometric Framework for Black-Box Adversarial Attacks", CVPR 2020,
algorithm 1, l2 and linf; normals are estimated among low frequencies and over all iterations so far, and the queries of the
iterations grow by λ^(-2/3) each.

Departures: the probes' size is a fraction of the latent's range where the authors give it in normalised pixels, and no smaller
than the quantiser's step; the walk along the normal is bounded by the distance to beat: where it ends farther out, the boundary
point stays, the estimate grows by the next one, and twice as many frequencies are probed, since a latent need not be smooth;
the same is done where the distance hardly shrinks; maps of few places are probed in full; the mean of the labels is taken off,
as HopSkipJump does.
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
    dithering,
    find_adversarial,
    finest,
    narrowed,
    pull,
    section_search,
    shrink_to_boundary,
    stretch,
    to_boundary,
)
from adversary.attacks.dct import low, planes, smooth
from adversary.attacks.draw import gaussian
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm

ENOUGH = 0.9
"""an iteration that leaves more of the distance has got from its frequencies what there is"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GeoDA:
    """Walk from the clean point along the boundary's estimated normal."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    kind: Literal["geoda"] = "geoda"
    share: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    """of the frequencies along each axis that probes are drawn from: the authors' 75 of 224"""
    whole_below: Annotated[int, Field(ge=1)] = 8
    """maps with a side shorter than this are probed in full"""
    sigma: Annotated[float, Field(gt=0)] = 2e-4
    """σ: root mean square of a probe's coordinates, in units of the latent's range; the authors' figure, for pixels"""
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """λ: iteration t has queries in proportion to λ^(-2t/3); the authors' default"""
    first_probes: Annotated[int, Field(ge=2)] = 50
    """q_0 at least; the authors choose the iterations such that it is 50 to 80"""
    walk: Annotated[int, Field(ge=1)] = 25
    """rows set aside in each iteration for the way back to the boundary; the authors' figure"""

    def perturb(self, z: F32, case: Case) -> Search:
        l2, d = case.ball.norm == "l2", z.size
        sigma = max(self.sigma * case.space.scale.range, finest(z, case))
        # a probe moves by σ along a plane's normal, a corner's coordinates all together by √d times one of them
        tolerance = sigma / 2 if l2 else sigma / (2 * math.sqrt(d))
        spent = Spent()
        x = yield from spent.on(find_adversarial(z, case))
        if x is None:
            return None
        distance = float(case.ball.distance(x[None])[0])
        theta = tolerance / max(distance, tolerance)
        x = yield from spent.on((to_boundary if l2 else shrink_to_boundary)(z, x, case, theta=theta))
        share = self.share if min(planes(z.shape)[1:]) >= self.whole_below else 1.0
        normal: F32 = np.zeros_like(z)
        dither = dithering(z, case)
        queries, walk = self.schedule(case.budget - spent.rows), self.walk
        for t in count():
            distance = float(case.ball.distance(x[None])[0])
            q = spent.affordable(queries[min(t, len(queries) - 1)], walk, case.budget)
            normal = normal + (yield from spent.on(self.estimate(x, sigma, share, q, case)))
            v = direction(normal, case.ball.norm)
            if v is None:
                continue
            before = spent.rows
            found = yield from spent.on(along(z, v, distance, tolerance, dither, case))
            walk = spent.rows - before
            if found is not None:
                x = found
            if float(case.ball.distance(x[None])[0]) > ENOUGH * distance:
                share = min(1.0, 2 * share)
        return None

    def schedule(self, budget: int) -> list[int]:
        """Queries of each iteration, as the paper divides them: as many as leave the first its least, each with `walk` rows."""
        grows = self.rate ** (-2 / 3)
        chosen = [max(2, budget - self.walk)]
        for iterations in range(2, budget // self.walk + 1):
            first = (budget - iterations * self.walk) * (grows - 1) / (grows**iterations - 1)
            if first < self.first_probes:
                break
            chosen = [round(first * grows**t) for t in range(iterations)]
        return chosen

    def estimate(self, x: F32, sigma: float, share: float, q: int, case: Case) -> Step[F32]:
        """The normal's sum over q labels [*shape], which points into the adversarial side at the boundary point x."""
        points = noise(case.rng, q, x.shape, share)
        length = sigma * math.sqrt(x.size)
        stretch(points, length)
        points += x
        answers = yield Ask("probe", boxed(points, case))
        return pull(answers, x) / np.float32(length)


def noise(rng: np.random.Generator, q: int, shape: tuple[int, ...], share: float) -> F32:
    """Gaussian points [q, *shape] of the lowest `share` of the frequencies along each axis."""
    n, H, W = planes(shape)
    h, w = low(H, W, share)
    if (h, w) == (H, W):
        return gaussian(rng, q, shape)
    return smooth(gaussian(rng, q, (n, h, w)), H, W).reshape(q, *shape)


def along(z: F32, v: F32, distance: float, tolerance: float, dither: F32 | None, case: Case) -> Step[F32 | None]:
    """The boundary point on the ray from z along v [*shape], as it arrived; None where it is farther than `distance`."""

    def place(radii: F32) -> F32:
        points = radii.reshape(-1, *([1] * z.ndim)) * v
        points += z
        if dither is not None:
            points += dither
        return boxed(points, case)

    radii = distance * np.arange(1, case.sections) / (case.sections - 1)
    answers = yield Ask("walk", place(radii.astype(np.float32)))
    low, high, first = narrowed(radii, answers.adversarial, answers.answered, 0.0, distance)
    if first is None:
        return None
    found, _, _ = yield from section_search(place, answers.arrived[first], case, low=low, high=high, tolerance=tolerance)
    return found
