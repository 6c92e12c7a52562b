"""N-Attack: learns the centre of a Gaussian whose samples, put into the ball, are adversarial.

Li, Li, Wang, Zhang, Gong, "NATTACK: Learning the Distributions of Adversarial Examples for an Improved Black-Box Attack on Deep
Neural Networks", ICML 2019, algorithm 1; the numbers are the authors' published settings.

Departures: the paper searches in arctanh of the pixels, where every sample is in the box. A latent's box may have no bounds,
and at a bound, where all the zeros of a ReLU lie, tanh does not move; so that form is taken only in a finite box with hardly a
coordinate at its bounds. Elsewhere samples are added to the latent itself; what is 0.1 before tanh is eps there (in l2 eps/√d),
about what it comes to in pixels at the authors' eps of 0.031. No spread is below the quantiser's step. The authors spend
120,000 queries and more; with fewer, a population is a twentieth of them at most, and the rate is raised by as much as there
are fewer than 200 populations. The centre starts at the clean latent, not at random, and is asked within every population,
where the authors test it every tenth. The l2 ball is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search
from adversary.attacks.draw import gaussian
from adversary.attacks.estimate import Within, centred, unit, widest
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm

FEWEST = 20
"""populations that a budget is cut into at least; ours"""
UNHURRIED = 200
"""populations that the learning rate is meant for; the authors take 400 to 900"""
FLAT = 0.05
"""slope of tanh, 1 in the middle, below which a coordinate counts as being at its bounds"""
MOST_FLAT = 0.05
"""share of such coordinates up to which the tanh form is taken"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NAttack:
    """A search distribution that moves towards its better samples."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    kind: Literal["nattack"] = "nattack"
    population: Annotated[int, Field(ge=2)] = 300
    """b: samples of one step, as far as the budget holds twenty times as many, and 32 MiB one of them"""
    sigma: Annotated[float, Field(gt=0)] = 0.1
    """σ: of the samples before tanh, the authors'"""
    spread: Annotated[float, Field(gt=0)] = 1.0
    """what σ is in the direct form, in units of eps, in l2 of eps/√d; ours"""
    learning_rate: Annotated[float, Field(gt=0)] = 0.008
    """α, before tanh, the authors'; for 200 populations or more"""

    def perturb(self, z: F32, case: Case) -> Search:
        left = case.budget
        population = min(self.population, max(2, left // FEWEST), widest(z.size))
        # the centre is ν = μ/σ, so that both forms step alike: α/σ² times the mean of Ĵ·ε
        rate = self.learning_rate / self.sigma**2 * max(1.0, UNHURRIED * population / left)
        within, placed = Within(case.ball), self.form(z, case)
        nu = np.zeros_like(z)
        while left > 0:
            b = min(population, left)
            noise = gaussian(case.rng, b, z.shape)
            if left < case.budget:
                noise[0] = 0  # the centre itself, which is known at the start
            answers = yield Ask("population", within.ball(placed(noise + nu)))
            left -= b
            reward, usable = centred(answers.loss)
            deviation = math.sqrt(np.vdot(reward, reward) / max(usable, 1))
            if deviation > 0:
                # μ ← μ - α/(b·σ)·Σ Ĵ·ε, where Ĵ is the loss less its mean, divided by its deviation
                reward *= np.float32(rate / (deviation * usable))
                nu -= (reward @ noise.reshape(b, -1)).reshape(z.shape)
        return None

    def form(self, z: F32, case: Case) -> Callable[[F32], F32]:
        """What makes offsets from z [*shape] of samples [k, *shape] in units of σ, in place."""
        ball, probe = case.ball, case.space.probe
        if np.isfinite(ball.lo).all() and np.isfinite(ball.hi).all():
            middle, half = (ball.hi + ball.lo) / 2, np.broadcast_to((ball.hi - ball.lo) / 2, z.shape).astype(np.float32)
            at: F32 = np.asarray((z - middle) / half, np.float32)
            if np.mean(1 - at * at < FLAT) <= MOST_FLAT:
                return through_tanh(z, at, half, sigma=max(self.sigma, probe / float(half.min())))
        scale = np.float32(max(self.spread * unit(ball), probe))
        return lambda samples: np.multiply(samples, scale, out=samples)


def through_tanh(z: F32, at: F32, half: F32, *, sigma: float) -> Callable[[F32], F32]:
    """As `form`, by z = middle + half·at, at = tanh(w), `at` and `half` [*shape]: middle + half·tanh(w + σ·samples) - z."""
    w = np.arctanh(np.clip(at, -1 + 1e-6, 1 - 1e-6))
    away = half * at

    def placed(samples: F32) -> F32:
        samples *= np.float32(sigma)
        samples += w
        np.tanh(samples, out=samples)
        samples *= half
        samples -= away
        return samples

    return placed
