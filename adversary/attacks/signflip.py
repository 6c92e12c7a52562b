"""SignFlip: shrink the perturbation by a little, turn a few of its signs, keep either iff it stays adversarial.

Chen, Zhang, Hu, Wu, "Boosting Decision-based Black-box Adversarial Attacks with Random Sign Flip", ECCV 2020, algorithm 1: two
queries an iteration, linf alone. The constants are the authors' published settings.

Departures: the first step α is 0.004 of the latent's range, where they mean pixels in [0, 1], and is kept between the smallest
change that arrives and half of the radius; a candidate without a single turned sign would be asked in vain, so one coordinate
turns then; on a quantiser's grid all candidates carry one dither, so that a radius between two of its values is felt; where
round trips are dear several draws of each kind are asked together.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Answers, Ask, Case, Search
from adversary.attacks.boundary import boxed, dithering, find_adversarial, finest, shrink_to_boundary
from adversary.attacks.coarse import plane, side, stretch
from adversary.attacks.draw import signs
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm

WINDOW = 10
"""iterations after which α and p are adapted"""
OFTEN, SELDOM = 0.7, 0.3
"""shares of them that succeed, beyond which α or p is too timid or too bold"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SignFlip:
    """A random walk over the corners of a ball that shrinks."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["signflip"] = "signflip"
    alpha: Annotated[float, Field(gt=0)] = 0.004
    """α: the first step of the radius, as a fraction of the latent's range"""
    alpha_factor: Annotated[float, Field(gt=1)] = 1.5
    flip: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """p: the first probability that a coordinate's sign turns, each coordinate's own from then on"""
    flip_step: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """what p changes by when too many or too few flips succeed"""
    flip_memory: Annotated[float, Field(ge=0, lt=1)] = 0.0001
    """what p falls by for the coordinates that turned when a flip succeeds, and rises by for the others"""
    flip_least: Annotated[float, Field(gt=0, lt=1)] = 0.0001
    flip_most: Annotated[float, Field(gt=0, lt=1)] = 0.01
    reduction: Annotated[float, Field(ge=1)] = 1.0
    """signs are drawn on maps whose sides are shorter by this factor; more than the authors' default 1 is for large images"""

    def perturb(self, z: F32, case: Case) -> Search:
        rng = case.rng
        x = yield from find_adversarial(z, case)
        if x is None:
            return None
        x = yield from shrink_to_boundary(z, x, case, theta=0.001)
        C, H, W = plane(z.shape)
        coarse = C, side(H, 1 / self.reduction, 1), side(W, 1 / self.reduction, 1)
        dither = dithering(z, case)
        start = z if dither is None else z + dither
        delta = (x - z).reshape(C, H, W)
        radius = float(np.abs(delta).max())
        least = finest(z, case) / math.sqrt(z.size)
        alpha = max(self.alpha * case.space.scale.range, least)
        p = np.full(coarse, self.flip, np.float32)
        shrunk, turned, at_once = Share(), Share(), case.sections - 1
        for _ in range(case.budget):
            # the projection step: signs of size α are added at random, and the ball is made smaller by α
            step = min(alpha, radius / 2)
            bound = np.float32(radius - step)
            smaller = np.float32(step) * stretch(signs(rng, (at_once, *coarse)), H, W)
            smaller += delta
            np.minimum(np.maximum(smaller, -bound, out=smaller), bound, out=smaller)
            answers = yield Ask("project", boxed(start + smaller.reshape(-1, *z.shape), case))
            if (first := shrunk.note(answers)) is not None:
                delta, radius = smaller[first], float(bound)
            # the random sign flip step
            s = flips(rng, p, at_once)
            turning = np.where(stretch(s, H, W) < 0, -delta, delta)
            answers = yield Ask("flip", boxed(start + turning.reshape(-1, *z.shape), case))
            if (first := turned.note(answers)) is not None:
                delta = turning[first]
                p += np.float32(self.flip_memory) * s[first]
                self.limit(p)
            if shrunk.asked >= WINDOW:
                alpha = max(alpha * self.alpha_factor ** shrunk.verdict(), least)
            if turned.asked >= WINDOW:
                p += np.float32(self.flip_step * turned.verdict())
                self.limit(p)
        return None

    def limit(self, p: F32) -> None:
        np.minimum(np.maximum(p, np.float32(self.flip_least), out=p), np.float32(self.flip_most), out=p)


class Share:
    """How many of the last few were accepted."""

    def __init__(self) -> None:
        self.asked = self.accepted = 0

    def note(self, answers: Answers) -> int | None:
        """The first that is accepted, or None."""
        self.asked += int(np.count_nonzero(answers.answered))
        accepted = int(np.count_nonzero(answers.adversarial))
        self.accepted += accepted
        return int(answers.adversarial.argmax()) if accepted else None

    def verdict(self) -> int:
        """1 after too many successes, -1 after too few, 0 else; and counts afresh."""
        share = self.accepted / self.asked
        self.asked = self.accepted = 0
        return (share > OFTEN) - (share < SELDOM)


def flips(rng: np.random.Generator, p: F32, k: int) -> F32:
    """-1 with probability p [*shape] each, else 1, [k, *shape]; at least one -1 in each of the k."""
    turn = rng.random((k, *p.shape), np.float32) < p
    for each in turn.reshape(k, -1):
        if not each.any():
            each[rng.integers(each.size)] = True
    return np.where(turn, np.float32(-1), np.float32(1))
