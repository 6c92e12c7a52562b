"""Bandits-TD: a gradient that is carried over from step to step, corrected by two queries at a time, on a coarse grid.

Ilyas, Engstrom, Madry, "Prior Convictions: Black-Box Adversarial Attacks with Bandits and Priors", ICLR 2019, algorithms 1-3;
η, δ and the rates are the authors' published settings, the loss is the cross-entropy.

Departures: what the authors measure in pixels of ImageNet is given in units of eps and of gradients here. η is a fraction of
eps, and on a quantised wire never below one step a coordinate. The update of the prior is divided by the gradient's length, as
far as it is known, and multiplied by √n for n tiles, so that its rate depends on neither: with n = 7500 and gradients of
length 1 it is theirs. A tile of their 299x299 images has 6x6 pixels, which would leave nothing of a latent's map: its side is
√side/2.4 here, rounded, 1 below 13 and 2 at 14x14. The step's own point is asked when one of the probes around the last was
adversarial, and at the end; the authors ask it at every step and do not count it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search, as_map
from adversary.attacks.draw import gaussian
from adversary.attacks.estimate import Objective, Within, lowered, steepest, unit
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm, norms, per_row

MEMORY = 100
"""probes that the gradient's length is averaged over; ours"""
AHEAD, AHEAD_ELEMENTS = 32, 1 << 16
"""explorations that are drawn at once, and elements in all of them, at most"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Bandits:
    """Steps along a prior of the gradient that learns from its mistakes."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    kind: Literal["bandits"] = "bandits"
    eta: Annotated[float, Field(gt=0)] | None = None
    """η (ε in algorithm 2): length of a probe in units of eps, in linf of eps·√d; None: 0.002 in l2 and 0.004 in linf, for the
    authors' 0.01 of 5 and 0.1 of 0.05·√d"""
    exploration: Annotated[float, Field(gt=0)] | None = None
    """δ: length of what is added to the prior to explore; None: the authors' 0.01 in l2 and 1 in linf"""
    prior_rate: Annotated[float, Field(gt=0)] | None = None
    """η of algorithm 1, in the units above; None: 0.23 in l2 and 2.3 in linf, for the authors' 0.1 and 100"""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """h: step of the latent in units of eps; None: 0.1 in l2 and 0.2 in linf, for the authors' 0.5 of 5 and 0.01 of 0.05"""
    tile: Annotated[int, Field(ge=1)] | None = None
    """side of a tile; None: by the map's sides"""
    objective: Objective = "cross-entropy"
    """the loss; the authors' cross-entropy"""

    def perturb(self, z: F32, case: Case) -> Search:
        ball, left = case.ball, case.budget
        linf = ball.norm == "linf"
        eta = max((self.eta or (0.004 if linf else 0.002)) * unit(ball), case.space.probe) * math.sqrt(z.size)
        exploration = self.exploration or (1.0 if linf else 0.01)
        prior_rate = self.prior_rate or (2.3 if linf else 0.23)
        rate = np.float32((self.learning_rate or (0.2 if linf else 0.1)) * ball.eps)
        within, tiles = Within(ball), Tiles(z.shape, self.tile)
        n = tiles.size
        draws = explorations(case.rng, tiles, exploration)
        v = np.zeros(tiles.shape, np.float32)  # in linf arctanh of the prior
        x, prior = z, np.zeros_like(z)
        length2, heard, promising = 0.0, 0, False
        while left > 0:
            new = int(promising)
            if left < new + 3:  # the last row is for the last step
                break
            u, whole = next(draws)
            points = np.empty((new + 2, *z.shape), np.float32)
            points[:new] = x
            q = points[new:]
            np.add(prior, whole, out=q[0])
            np.subtract(prior, whole, out=q[1])
            lengths = np.maximum(norms(q), np.float32(1e-20))
            q *= per_row(np.divide(np.float32(eta), lengths, dtype=np.float32), q)  # the authors normalise q too
            q += x
            answers = yield Ask("probe", within.box(points))
            left -= new + 2
            promising = bool(answers.adversarial.any())
            above, below = lowered(answers, case, self.objective)[new:].tolist()
            if not math.isfinite(above - below):
                continue
            # algorithm 2: Δ = (L(x + ηq⁺) - L(x + ηq⁻))/(ηδ)·u
            slope = (above - below) / (2 * eta) * math.sqrt(n)
            heard += 1
            aside = exploration * math.sqrt(z.size / n) / float(lengths.mean())  # how far u turns q
            length2 += ((slope / aside) ** 2 - length2) / min(heard, MEMORY)
            if length2 > 0:
                # algorithm 1: a gradient step in l2; in linf exponentiated gradients, which add up before tanh
                v += np.float32(prior_rate * slope / math.sqrt(length2)) * u
            prior = tiles.whole(np.tanh(v) if linf else v)
            x = ball.project((x - rate * steepest(prior, ball.norm))[None])[0]
        if left > 0 and x is not z:
            yield Ask("step", x[None])
        return None


class Tiles:
    """A coarse grid over the maps of a latent."""

    def __init__(self, shape: tuple[int, ...], side: int | None) -> None:
        C, H, W = as_map(shape)
        side = side or max(1, round(math.sqrt(min(H, W)) / 2.4))
        self.shape = C, -(-H // side), -(-W // side)
        self.size = math.prod(self.shape)
        self._whole = shape
        self._rows, self._columns = np.arange(H)[:, None] // side, np.arange(W) // side

    def whole(self, v: F32) -> F32:
        """Latents [..., *shape] of grids v [..., C, h, w]: each tile is of one value."""
        spread = v if self.size == math.prod(self._whole) else v[..., self._rows, self._columns]
        return spread.reshape(*v.shape[:-3], *self._whole)


def explorations(rng: np.random.Generator, tiles: Tiles, length: float) -> Iterator[tuple[F32, F32]]:
    """Without end, Gaussian u [C, h, w] of about `length`, and the latent of it; some are drawn at once, which is cheaper."""
    k = max(1, min(AHEAD, AHEAD_ELEMENTS // tiles.size))
    while True:
        u = gaussian(rng, k, tiles.shape)
        u *= np.float32(length / math.sqrt(tiles.size))
        yield from zip(u, tiles.whole(u), strict=True)
