"""Square: random search over windows of ±eps.

Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack via random search",
ECCV 2020, algorithms 1 and 2 (linf).

Departure for latents: the paper's window spans all (three) channels. With many channels that would redraw everything at a
place, so above `whole_channels` the window is a block of channels too, of p·C·H·W coordinates in all; so 1x1 maps work.
On maps that are not square a window may fill the shorter side; the paper has square maps alone.
On maps that are not square a window may fill the shorter side, where the paper has square maps alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Search, as_map
from adversary.space import Space
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Ball, Feedback, Norm

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""the paper's schedule: p is halved after these iterations of 10,000 (section 3.2)"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Square:
    """Keep a window of random signs iff it lowers the margin."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["square"] = "square"
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.05
    """p: fraction of the coordinates that the first windows change; the authors' 0.05 for images, 0.8 for robust models"""
    whole_channels: Annotated[int, Field(ge=0)] = 4
    """with at most so many channels a window spans them all, as in the paper"""

    def perturb(self, z: F32, *, ball: Ball, space: Space, budget: int, rng: np.random.Generator) -> Search:
        C, H, W = as_map(z.shape)
        eps = np.float32(ball.eps)
        delta = np.broadcast_to(eps * signs(rng, (C, 1, W)), (C, H, W)).copy()  # vertical stripes (section 3.3)
        best = ball.project((z + delta.reshape(z.shape))[None])
        [best_loss] = (yield Ask("init", best)).loss
        for i in range(1, budget):
            c, s = self.window(self.p(i, budget), C, H, W)
            # algorithm 2: a window of side s, one sign per channel in it; drawn again while it changes nothing
            for _ in range(100):
                at = rng.random(3)
                window = (span(at[0], c, C), span(at[1], min(s, H), H), span(at[2], min(s, W), W))
                fresh = eps * signs(rng, (c, 1, 1))
                if (delta[window] != fresh).any():
                    break
            proposal = delta.copy()
            proposal[window] = fresh
            candidate = ball.project((z + proposal.reshape(z.shape))[None])
            [loss] = (yield Ask("search", candidate)).loss
            if loss < best_loss:
                delta, best_loss = proposal, loss
        return None

    def p(self, i: int, n: int) -> float:
        """The fraction changed at iteration i of n: the paper's schedule, stretched to the budget."""
        return self.p_init / float(1 << bisect_left(HALVINGS, i * 10_000 / n))

    def window(self, p: float, C: int, H: int, W: int) -> tuple[int, int]:
        """(channels, side): side round(√(p·H·W)), at least 1 and below the longer side, cut at the shorter one."""
        s = max(1, min(round(math.sqrt(p * H * W)), max(H, W) - 1))
        if self.whole_channels >= C:
            return C, s
        return max(1, min(round(p * C * H * W / (min(s, H) * min(s, W))), C)), s


def signs(rng: np.random.Generator, shape: tuple[int, int, int]) -> F32:
    """±1, each with probability a half."""
    C, H, W = shape
    bits = np.frombuffer(rng.bytes(C * H * W), np.int8) & 1
    return bits.astype(np.float32).reshape(shape) * np.float32(2) - np.float32(1)


def span(u: float, length: int, of: int) -> slice:
    """`length` neighbours of 0..of-1, the first of them uniform by u in [0, 1)."""
    first = int(u * (of - length + 1))
    return slice(first, first + length)
