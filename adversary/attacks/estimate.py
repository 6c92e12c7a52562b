"""What attacks share that estimate a gradient from scores: the loss, points kept in box or ball in place, the way of a step."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adversary.attacks.base import Answers, Case
from splitcore.latent import F32
from splitcore.threat import Ball, LinfBall, Norm, norms, per_row

MOST_ELEMENTS = 1 << 23
"""of one ask, 32 MiB: many latents are attacked at once"""

Objective = Literal["cross-entropy", "margin"]
"""what is lowered: the class's log-odds, or its margin to the largest other class"""


def lowered(answers: Answers, case: Case, objective: Objective) -> F32:
    """[k]: the lower the better for the adversary; +inf where no score came back.

    The cross-entropy is taken as log-odds, log p_y - log(1 - p_y), targeted as their negative: at every point their gradient
    has the direction of the cross-entropy's, but log p_y itself rounds to 0 in float32 where the server is sure.
    """
    log_p = answers.log_p
    if objective == "margin" or log_p is None:
        return answers.loss
    own = case.label if case.target is None else case.target
    others = log_p.copy()
    others[:, own] = -np.inf
    most = others.max(axis=1)
    others -= most[:, None]
    odds = log_p[:, own] - most - np.log(np.exp(others, out=others).sum(axis=1))
    loss: F32 = np.where(np.isfinite(answers.loss), odds if case.target is None else -odds, np.float32(np.inf))
    return loss


def centred(loss: F32) -> tuple[NDArray[np.float32], int]:
    """(loss [k] less its mean, and 0 where it is infinite: no evidence; how many are finite)."""
    usable = np.isfinite(loss)
    n = int(np.count_nonzero(usable))
    if n == len(loss):
        return loss - loss.mean(), n
    known = np.where(usable, loss, np.float32(0))
    known -= usable * (known.sum() / np.float32(max(n, 1)))
    return known, n


def steepest(g: F32, norm: Norm) -> F32:
    """The direction [*shape] of length 1 in the norm that climbs fastest where the gradient is g [*shape]: in linf its sign."""
    if norm == "linf":
        return np.sign(g)
    return g / np.float32(max(math.sqrt(np.vdot(g, g)), 1e-30))


def unit(ball: Ball) -> float:
    """eps of one coordinate: in l2 that of a point at eps all of whose coordinates moved alike, eps/√d."""
    return ball.eps if ball.norm == "linf" else ball.eps / math.sqrt(ball.centre.size)


def widest(d: int) -> int:
    """Rows of d elements that one ask may have."""
    return max(4, MOST_ELEMENTS // d)


class Within:
    """Brings many points into a ball or its box in place, with bounds as full arrays: broadcast ones cost ten times as much."""

    def __init__(self, ball: Ball) -> None:
        self._ball = ball
        shape = ball.centre.shape
        self._lo = np.ascontiguousarray(np.broadcast_to(ball.lo, shape)) if np.isfinite(ball.lo).any() else None
        self._hi = np.ascontiguousarray(np.broadcast_to(ball.hi, shape)) if np.isfinite(ball.hi).any() else None

    def box(self, points: F32) -> F32:
        """The nearest points of the box to points [k, *shape], which are overwritten."""
        if self._lo is not None:
            np.maximum(points, self._lo, out=points)
        if self._hi is not None:
            np.minimum(points, self._hi, out=points)
        return points

    def ball(self, offsets: F32) -> F32:
        """The points of ball and box nearest to the centre plus `offsets` [k, *shape], which are overwritten."""
        ball = self._ball
        if isinstance(ball, LinfBall):
            offsets += ball.centre
            np.maximum(offsets, ball.low, out=offsets)
            np.minimum(offsets, ball.high, out=offsets)
            return offsets
        eps = np.float32(ball.eps)
        length = norms(offsets)
        if length.max(initial=0) > eps:
            offsets *= per_row(np.divide(eps, np.maximum(length, eps), dtype=np.float32), offsets)
        offsets += ball.centre
        return self.box(offsets)
