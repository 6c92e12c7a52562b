"""ZOO: the derivative of every coordinate by two queries, a batch of coordinates at a time.

Chen, Zhang, Sharma, Yi, Hsieh, "ZOO: Zeroth Order Optimization Based Black-box Attacks to Deep Neural Networks without Training
Substitute Models", AISec 2017, algorithms 1 to 3; batch and decays are the authors' published settings.

Departures: the ball is given. So there is no tanh, no search for c, and every iterate is projected; in l2 c is what puts the
optimum on the sphere where the loss is linear, by the derivatives seen so far, and in linf the distance is not in the
objective. In l2 the default is Newton's step: as the distance is a parabola, it moves coordinates in proportion to their
derivatives, where ADAM's first steps, all of one size, would spend the ball on those that matter little. Coordinates come in
sweeps, each once before any comes again. The authors' h of 1e-4 is lost in float32 and on a quantised wire, and their rates
are pixels': both are fractions of eps here, h never below the quantiser's step. Derivatives are taken over the distance between
the probes as they arrived, so a coordinate at its bound is probed to one side. The coarse-to-fine grids and the sampling of
coordinates by importance, which the paper has for ImageNet alone, are left out.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search
from adversary.attacks.estimate import unit, widest
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm

Solver = Literal["adam", "newton"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ZOO:
    """Descent by coordinates."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    kind: Literal["zoo"] = "zoo"
    solver: Solver | None = None
    """None: newton in l2, adam in linf; the authors prefer adam"""
    coordinates: Annotated[int, Field(ge=1)] = 128
    """B: coordinates of one round, two probes each"""
    h: Annotated[float, Field(gt=0)] = 0.5
    """h: distance of a probe in units of eps, in l2 of eps/√d; ours"""
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """η: for adam its step in the units of h, for newton a fraction of the full step; ours, where few rounds are to do"""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999

    def perturb(self, z: F32, case: Case) -> Search:
        ball, rng, left, d = case.ball, case.rng, case.budget, z.size
        solver = self.solver or ("newton" if ball.norm == "l2" else "adam")
        scale = np.float32(unit(ball))  # one of the units that all below is in
        h = np.float32(max(self.h, case.space.probe / float(scale))) * scale
        lo, hi = (np.broadcast_to(bound, z.shape).reshape(d) for bound in (ball.lo, ball.hi))
        seen, adam = np.zeros(d, np.float32), Adam(d, self.beta1, self.beta2)
        rest, most = np.empty(0, np.int64), min(self.coordinates, widest(d) // 2)
        x, centre = z, z.reshape(d)
        while left > 0:
            new = int(x is not z or solver == "newton")
            if not len(rest):
                rest = rng.permutation(d)
            k = min(most, len(rest), (left - new - 1) // 2)  # the last row is for the last step
            if k < 1:
                break
            i, rest = rest[:k], rest[k:]
            here = x.reshape(d)
            points = np.empty((new + 2 * k, d), np.float32)
            points[:] = here
            row, twice = np.arange(new, new + 2 * k), np.concatenate([i, i])
            points[row, twice] = np.concatenate([np.minimum(here[i] + h, hi[i]), np.maximum(here[i] - h, lo[i])])
            answers = yield Ask("probe", points.reshape(-1, *z.shape))
            left -= len(points)
            arrived = answers.arrived.reshape(-1, d)
            at = np.split(arrived[row, twice] / scale, 2)
            f = np.split(answers.loss[new:], 2)
            use = np.isfinite(f[0]) & np.isfinite(f[1]) & (at[0] > at[1])
            i, (above, below), (f_above, f_below) = i[use], (one[use] for one in at), (one[use] for one in f)
            g = (f_above - f_below) / (above - below)  # eq. 6
            seen[i] = g
            pull = np.float32(0)
            if ball.norm == "l2":
                # of ‖x - z‖² + c·f, divided by c: where f is linear it is least at distance eps for this
                pull = np.float32(math.sqrt(np.vdot(seen, seen) / d))
                g += pull * (here[i] - centre[i]) / scale
            if solver == "adam":
                delta = adam.step(i, g)
            else:
                bent = curvature(above, arrived[0, i] / scale, below, f_above, answers.loss[0], f_below)
                delta = newton(g, bent + pull)
            ahead = here.copy()
            ahead[i] -= np.float32(self.learning_rate) * scale * delta
            x = ball.project(ahead.reshape(1, *z.shape))[0]
        if left > 0 and x is not z:
            yield Ask("step", x[None])
        return None


class Adam:
    """Algorithm 2: moments of each coordinate's derivative, and how often it was seen."""

    def __init__(self, d: int, beta1: float, beta2: float) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.M, self.v, self.T = np.zeros((3, d), np.float32)

    def step(self, i: NDArray[np.int64], g: F32) -> F32:
        """δ* [k], to be subtracted, in units of η, of coordinates i [k] with derivatives g [k]."""
        self.T[i] += 1
        self.M[i] = self.beta1 * self.M[i] + (1 - self.beta1) * g
        self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g * g
        mean = self.M[i] / (1 - self.beta1 ** self.T[i])
        square = self.v[i] / (1 - self.beta2 ** self.T[i])
        delta: F32 = np.divide(mean, np.sqrt(square) + np.float32(1e-8), dtype=np.float32)
        return delta


def newton(g: F32, bent: F32) -> F32:
    """Algorithm 3: δ* [k], to be subtracted, for derivatives g and bent [k]; where it is not bent upwards one unit downhill,
    as far as ADAM's, where the paper goes by the derivative, in units of its own."""
    upwards = bent > 0
    delta: F32 = np.where(upwards, g / np.where(upwards, bent, np.float32(1)), np.sign(g))
    return delta


def curvature(above: F32, middle: F32, below: F32, f_above: F32, f_middle: np.float32, f_below: F32) -> F32:
    """Second derivatives [k] by three values each, at places [k] that need not be evenly spaced (eq. 7); 0 where unknown."""
    up, down = above - middle, middle - below
    known = (up > 0) & (down > 0) & np.isfinite(f_middle)
    up, down = np.where(known, up, np.float32(1)), np.where(known, down, np.float32(1))
    middle_f = f_middle if np.isfinite(f_middle) else np.float32(0)
    slopes = (f_above - middle_f) / up - (middle_f - f_below) / down
    bent: F32 = np.where(known, 2 * slopes / (up + down), np.float32(0)).astype(np.float32, copy=False)
    return bent
