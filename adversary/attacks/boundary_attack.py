"""Boundary attack: a random walk along the decision boundary that drifts towards the clean point.

Brendel, Rauber, Bethge, "Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box Machine Learning Models", ICLR
2018, algorithm 1 and section 2.2, l2. Step sizes and the factor between them are those of foolbox, by the same authors.

Departures: the walk starts where the line from the first adversarial point to the clean one crosses the boundary; success is
counted over all steps and over shorter windows, since the authors' are made for 25,000 queries; where round trips are dear
several proposals are asked together, and the nearest that is adversarial is taken. Nothing is done for a quantiser's grid:
steps that arrive as no step stay adversarial, so both sizes grow until they do arrive.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search
from adversary.attacks.boundary import boxed, find_adversarial, to_boundary, wire_boxes
from adversary.attacks.draw import gaussian
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm, norms

DRAWN = 32
"""turns that directions are drawn for at once: a draw costs more than its numbers"""
LARGEST, SMALLEST = 0.5, 1e-7
"""of both steps, in units of the distance; the authors stop when ε falls below the smaller"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BoundaryAttack:
    """Step sideways at the same distance, then a little nearer, and keep it iff it is adversarial."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    kind: Literal["boundary"] = "boundary"
    spherical_step: Annotated[float, Field(gt=0, le=LARGEST)] = 0.1
    """δ: first step sideways, in units of the distance; ten times foolbox's, which takes thousands of queries to grow"""
    source_step: Annotated[float, Field(gt=0, le=LARGEST)] = 0.01
    """ε: first step towards the clean point, in units of the distance; foolbox's"""
    adaptation: Annotated[float, Field(gt=1)] = 1.5
    """factor by which both grow and shrink; foolbox's"""
    look_every: Annotated[int, Field(ge=1)] = 10
    """steps between two looks at the sideways step alone; foolbox's"""
    looks: Annotated[int, Field(ge=1)] = 5
    """looks after which δ adapts; foolbox has 100"""
    steps: Annotated[int, Field(ge=1)] = 30
    """steps after which ε adapts; foolbox has 30 of those that come with a look"""

    def perturb(self, z: F32, case: Case) -> Search:
        x = yield from find_adversarial(z, case)
        if x is None:
            return None
        x = yield from to_boundary(z, x, case, theta=1e-3)
        free = wire_boxes(case)
        offset, distance = seen_from(z, x)
        delta, epsilon = self.spherical_step, self.source_step
        sideways, nearer = Share(self.looks), Share(self.steps)
        for turn in range(case.budget):
            if turn % DRAWN == 0:
                drawn = gaussian(case.rng, DRAWN * (case.sections - 1), z.shape).reshape(DRAWN, case.sections - 1, z.size)
            sphere = around(offset, distance, delta, drawn[turn % DRAWN])
            looks = 1 if turn % self.look_every == 0 else 0
            points = sphere * np.float32(1 - epsilon)
            k = len(points)
            if looks:
                points = np.concatenate([points, sphere[:1]])
            points = points.reshape(-1, *z.shape)
            points += z
            answers = yield Ask("step", points if free else boxed(points, case))
            hits = answers.adversarial
            nearer.add(hits[:k], answers.answered[:k])
            if looks:
                sideways.add(hits[k:], answers.answered[k:])
            if hits.any():
                best = int(np.where(hits, answers.distance, np.inf).argmin())
                if answers.distance[best] < distance:
                    offset, distance = seen_from(z, answers.arrived[best])
            # section 2.2: half of the steps sideways shall stay adversarial, a quarter of those with a step nearer
            factor = self.factor(sideways, 0.2, 0.5)
            delta = min(max(delta * factor, SMALLEST), LARGEST)
            epsilon = min(max(epsilon * factor * self.factor(nearer, 0.1, 0.25), SMALLEST), LARGEST)
        return None

    def factor(self, share: Share, low: float, high: float) -> float:
        """What a step is multiplied by once enough of them were counted."""
        if not share.full:
            return 1.0
        value = share.take()
        return self.adaptation if value > high else 1 / self.adaptation if value < low else 1.0


def seen_from(z: F32, x: F32) -> tuple[F32, float]:
    """(x - z flat [d], its length)."""
    offset = (x - z).reshape(-1)
    return offset, math.sqrt(np.vdot(offset, offset))


def around(offset: F32, distance: float, delta: float, eta: F32) -> F32:
    """Offsets [k, d] as long as `offset` [d], δ times its length from it in the directions eta [k, d], which is used up."""
    eta -= np.multiply.outer(eta @ offset / np.float32(max(distance * distance, 1e-30)), offset)
    length = np.maximum(norms(eta), np.float32(1e-30))
    # a right angle: the sum is √(1 + δ²) times as long
    shrink = 1 / math.sqrt(1 + delta * delta)
    eta *= (np.float32(delta * distance * shrink) / length)[:, None]
    eta += np.float32(shrink) * offset
    return eta


class Share:
    """The share of successes among the last so many answered."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.successes = self.answered = 0

    def add(self, adversarial: NDArray[np.bool_], answered: NDArray[np.bool_]) -> None:
        self.successes += int(np.count_nonzero(adversarial))
        self.answered += int(np.count_nonzero(answered))

    @property
    def full(self) -> bool:
        return self.answered >= self.window

    def take(self) -> float:
        """The share, and starts over."""
        value = self.successes / self.answered
        self.successes = self.answered = 0
        return value
