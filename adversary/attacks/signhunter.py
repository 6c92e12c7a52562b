"""SignHunter: the signs of the gradient, by flipping ever smaller blocks of them.

Al-Dujaili and O'Reilly, "Sign Bits Are All You Need for Black-Box Attacks", ICLR 2020, algorithms 1 and 2. It has no
parameter to tune and knows nothing of images: blocks are runs of the flattened latent in C, H, W order.

Departures: a level has blocks of ⌈d/2^h⌉ coordinates, as d need be no power of two. After the last level the paper starts over
with the same blocks; here the coordinates are put in random order first. In l2 every coordinate moves by eps/√d, as in the
paper; where that is less than the quantiser's step, and would be rounded away, as many coordinates as the ball has room for
move by one step, drawn at random.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, LinfBall, Norm


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SignHunter:
    """Keep a flip of a block of signs iff it lowers the margin."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    kind: Literal["signhunter"] = "signhunter"

    def perturb(self, z: F32, case: Case) -> Search:
        low, high = corners(z, case)
        bits = np.flatnonzero(low != high)  # the others cannot move
        if not len(bits):
            return None
        best, opposite = high, low  # s = +1 everywhere
        [best_loss] = (yield Ask("init", best.reshape(1, *z.shape))).loss
        while True:
            for h in range(math.ceil(math.log2(len(bits))) + 1):
                length = -(-len(bits) // 2**h)
                for i in range(0, len(bits), length):
                    block = bits[i : i + length]
                    candidate = best.copy()
                    candidate[block] = opposite[block]
                    [loss] = (yield Ask("flip", candidate.reshape(1, *z.shape))).loss
                    if loss < best_loss:
                        opposite[block] = best[block]
                        best, best_loss = candidate, loss
            case.rng.shuffle(bits)


def corners(z: F32, case: Case) -> tuple[F32, F32]:
    """What the signs -1 and +1 make of each coordinate of z, two flat arrays [d]."""
    ball, d = case.ball, z.size
    if isinstance(ball, LinfBall):
        return ball.low.flatten(), ball.high.flatten()
    moving, by = d, ball.eps / math.sqrt(d)
    if by < case.space.probe:
        by = min(case.space.probe, ball.eps)
        moving = math.floor((ball.eps / by) ** 2)
    step = np.zeros(d, np.float32)
    step[case.rng.permutation(d)[:moving]] = by
    return ball.boxed(z - step.reshape(z.shape)).flatten(), ball.boxed(z + step.reshape(z.shape)).flatten()
