"""SimBA: steps along one basis vector after the other, kept where the label's probability falls.

Guo, Gardner, You, Wilson, Weinberger, "Simple Black-box Adversarial Attacks", ICML 2019, algorithm 1, with the basis of
coordinates ("pixels") or of cosines of low frequency (section 3).

Departures: the paper's search has no ball; here a step that would leave it is projected back, and after the last basis vector
the search goes round again, where the paper ends, with half the step if the round kept nothing. The paper's step is 0.2 for
pixels in [0, 1]; here it is a fraction of eps, raised to the quantiser's step in the coordinate that it moves most. In linf
that coordinate goes from one side of the ball to the other: along coordinates the search is among corners. Where float32 has
no smaller probability left (it rounds to 1) the margin decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Answers, Ask, Case, Search
from adversary.attacks.dct import matrix, planes
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Ball, Feedback, Norm

At = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SimBA:
    """Keep a step along a basis vector iff the label's probability falls."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    kind: Literal["simba"] = "simba"
    basis: Literal["pixel", "dct"] = "dct"
    """coordinates, or cosines of each map, low frequencies first"""
    step: Annotated[float, Field(gt=0, le=1)] = 0.2
    """ε in units of eps, l2 alone"""
    frequencies: Annotated[float, Field(gt=0, le=1)] = 0.125
    """r: the share of each axis' frequencies tried first, then ever a quarter of it more; the authors' 28 and 7 of 224"""
    both_signs: bool = False
    """ask for both signs at once: one round of 2 queries in place of one or two of 1"""

    def perturb(self, z: F32, case: Case) -> Search:
        shape = planes(z.shape)
        sides = ((-1, 1),) if self.both_signs else ((-1,), (1,))
        x, [best] = z, self.keys((yield Ask("init", z[None])), case)
        asked, share = True, 1.0
        while asked:  # a round in which nothing can move is the last
            asked = kept = False
            for at, q, largest in self.directions(case.rng, shape):
                step = self.size(largest, share, case) * q
                for signs in sides:
                    ahead = [point for sign in signs if moves(point := moved(x, shape, at, sign * step, z, case.ball), x)]
                    if not ahead:
                        continue
                    asked = True
                    answers = yield Ask("search", np.stack(ahead) if len(ahead) > 1 else ahead[0][None])
                    key, row = min(zip(self.keys(answers, case), range(len(ahead)), strict=True))
                    if key < best:
                        x, best, kept = answers.arrived[row], key, True
                        break
            if not kept:
                share /= 2
        return None

    def size(self, largest: float, share: float, case: Case) -> np.float32:
        """How far to step along a basis vector whose largest coordinate is `largest`: so much of ε."""
        if case.ball.norm == "linf":
            return np.float32(share * 2 * case.ball.eps / largest)  # 2: from either corner to the other
        return np.float32(max(share * self.step * case.ball.eps, case.space.probe / largest))

    @staticmethod
    def keys(answers: Answers, case: Case) -> list[tuple[float, float]]:
        """What is to fall, of each row: log p_y, or minus the target's, then the margin."""
        assert answers.log_p is not None
        log_p = answers.log_p[:, case.label] if case.target is None else -answers.log_p[:, case.target]
        loss = answers.loss.tolist()  # infinite where there was no answer
        return [(math.inf if high == math.inf else low, high) for low, high in zip(log_p.tolist(), loss, strict=True)]

    def directions(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> Iterator[tuple[At, F32, float]]:
        """Every basis vector of `shape` once, in random order: where it is not 0, what it is there, its largest coordinate."""
        _, H, W = shape
        if self.basis == "pixel":
            one = np.ones((), np.float32)
            for at in places(rng.permutation(math.prod(shape)), shape):
                yield at, one, 1.0
            return
        rows, columns = matrix(H), matrix(W)
        heights, widths = np.abs(rows).max(axis=1).tolist(), np.abs(columns).max(axis=1).tolist()
        share = np.maximum(np.arange(H)[:, None] / H, np.arange(W) / W)
        band = np.maximum(np.floor(4 * (share / self.frequencies - 1)) + 1, 0)
        for c, k, m in places(np.argsort((band + rng.random(shape)).ravel()), shape):
            yield (c,), rows[k][:, None] * columns[m], heights[k] * widths[m]


def moved(x: F32, shape: tuple[int, int, int], at: At, step: F32, z: F32, ball: Ball) -> F32:
    """x [*shape] a step along one basis vector further, back in the ball around z."""
    ahead = x.copy()
    ahead.reshape(shape)[at] += step
    if ball.norm == "l2":
        nu = ahead - z
        length2, radius2 = np.vdot(nu, nu), np.float32(ball.eps**2)
        if length2 > radius2:
            ahead = z + nu * np.sqrt(radius2 / length2)
        return ball.boxed(ahead)
    return ball.project(ahead)


def moves(point: F32, x: F32) -> bool:
    return point.tobytes() != x.tobytes()


def places(order: NDArray[np.intp], shape: tuple[int, int, int]) -> Iterator[tuple[int, int, int]]:
    """Flat indices of [C, H, W] as (c, y, x)."""
    c, y, x = np.unravel_index(order, shape)
    return zip(c.tolist(), y.tolist(), x.tolist(), strict=True)
