"""What decision-based attacks share: a first adversarial point, and the boundary between it and the clean one."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from adversary.attacks.base import Answers, Ask
from adversary.space import Space
from splitcore.latent import F32
from splitcore.threat import Ball

MAX_ROUNDS = 40
"""no search for a boundary takes more: float32 has no finer interval, whatever the tolerance asks for"""


def find_adversarial(
    z: F32, ball: Ball, space: Space, rng: np.random.Generator, *, at_once: int = 5
) -> Generator[Ask, Answers, F32 | None]:
    """The nearest adversarial point of the first round of noise around z [*shape] that has one; None after 12 rounds.

    Image code draws from the unit cube. A latent has no such range, so the noise is Gaussian with one to 2048 times the
    latent's own standard deviation, within the box.
    """
    for doubling in range(12):
        noise = rng.standard_normal((at_once, *z.shape), np.float32)
        answers = yield Ask("start", ball.boxed(z + np.float32(space.scale.std * 2**doubling) * noise))
        if answers.adversarial.any():
            nearest = np.where(answers.adversarial, answers.distance, np.inf).argmin()
            found: F32 = answers.arrived[nearest]
            return found
    return None


def to_boundary(z: F32, x: F32, space: Space, *, theta: float, sections: int = 2) -> Generator[Ask, Answers, F32]:
    """The adversarial end of the segment from z to the adversarial x [*shape], within `theta` of the boundary.

    Chen et al. 2020, algorithm 1 (BIN-SEARCH), with `sections` - 1 points a round instead of one: two sections are
    bisection, the fewest rows; more need fewer round trips. `theta` is a fraction of the segment; it never goes below one
    quantiser's step, where both ends would arrive as the same latent.
    """
    span = float(np.abs(x - z).max())
    if span > 0:
        theta = max(theta, space.probe / span)
    low, high, nearest = 0.0, 1.0, x
    for _ in range(MAX_ROUNDS):
        if high - low <= theta:
            break
        at = low + (high - low) * np.arange(1, sections) / sections
        answers = yield Ask("boundary", z + at.reshape(-1, *([1] * z.ndim)).astype(np.float32) * (x - z))
        hits = np.flatnonzero(answers.adversarial)
        if len(hits):
            first = int(hits[0])
            low, high, nearest = (float(at[first - 1]) if first else low), float(at[first]), answers.arrived[first]
        else:
            low = float(at[-1])
    return nearest
