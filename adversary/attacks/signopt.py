"""Sign-OPT: the direction whose boundary is nearest, by the signs of how that distance changes.

Cheng, Singh, Chen, Chen, Liu, Hsieh, "Sign-OPT: A Query-Efficient Hard-label Adversarial Attack", ICLR 2020, algorithm 1, and
its linf variant. g(θ) is the distance at which the latent turns adversarial in the direction θ.

Departures. All k signs of an estimate go out in one ask. Where the paper's line search measures g for one step size after the
other, a fan of sizes is asked together at the radius to beat, and those that beat it are narrowed down together to the one
with the smallest g. Probes lie on the sphere's tangent, not on the sphere: for a small β that is the same, and for one raised
to the quantiser's step there is no curvature to mistake for a slope. The mean of the signs is taken off, as HopSkipJump does,
since a radius found by bisection is a little too large for all of them. g is known to a part of what a probe moves along the
normal, where the authors take β/500. An estimate that no step came of is added to the next one. First directions are Gaussian
in units of the latent's deviation, or lead to latents of the pool. For linf a ray is an offset cut at the radius in every
coordinate: it ends in the corners, where the nearest point of a flat boundary is; its probes are free, a corner has no tangent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search
from adversary.attacks.boundary import MAX_ROUNDS, Spent, Step, boxed, dithering, finest, narrowed, pull, starts, stretch
from adversary.attacks.draw import gaussian
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm, norms, per_row

FAN = np.exp2(np.arange(3, -6, -1, dtype=np.float32))
"""step sizes asked together, in units of the last one that helped, the largest first"""
NEAR = 0.9
"""of the radius to beat, asked first: most steps shorten it by less than a tenth"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SignOPT:
    """Turn the ray towards where its boundary comes nearer."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")

    kind: Literal["sign-opt"] = "sign-opt"
    probes: Annotated[int, Field(ge=2)] = 200
    """k: signs of one estimate; the authors' default"""
    beta: Annotated[float, Field(gt=0)] = 0.001
    """β: length of a probe, in units of g; the authors' default"""
    min_beta: Annotated[float, Field(gt=0)] = 1e-8
    """where β stops shrinking; the authors end the attack there"""
    alpha: Annotated[float, Field(gt=0)] = 0.2
    """α: first step, in units of g; the authors' default"""
    min_alpha: Annotated[float, Field(gt=0)] = 1e-4
    """below such a step α starts over and β is divided by ten; the authors' default"""
    directions: Annotated[int, Field(ge=1)] = 10
    """first directions asked, of which the best is taken; the authors take 100, which is much of a small budget"""

    def perturb(self, z: F32, case: Case) -> Search:
        l2, root = case.ball.norm == "l2", math.sqrt(z.size)
        grain = finest(z, case)
        rays = Rays(z, case, dithering(z, case))
        spent = Spent()
        found = yield from spent.on(starts(z, case, self.directions))
        if found is None:
            return None
        offsets = found - z
        g = float(case.ball.lengths(offsets).min())
        moves = max(self.beta * (g / root if l2 else g), grain)
        best, g = yield from spent.on(rays.nearest(rays.through(offsets), g, self.tolerance(moves, z.size, case)))
        x = rays.end(rays.through(offsets)[best], g)
        alpha, beta, walk = self.alpha, self.beta, spent.rows
        slope: F32 = np.zeros_like(z)
        while True:
            g = float(case.ball.distance(x[None])[0])
            moves = max(beta * (g / root if l2 else g), grain)
            count = spent.affordable(self.probes, walk, case.budget)
            slope = slope + (yield from spent.on(self.slope(x, x - z, moves, count, case)))
            before = spent.rows
            fan = rays.fan(x - z, slope, alpha * g)
            if fan is None:
                continue
            size, nearer = yield from spent.on(rays.shortest(fan, g, self.tolerance(moves, z.size, case)))
            walk = spent.rows - before
            if size is not None:
                x, slope = rays.end(fan[size], nearer), np.zeros_like(z)
                alpha *= float(FAN[size])
                continue
            alpha *= float(FAN[-1])
            if alpha < self.min_alpha:
                alpha, beta = self.alpha, max(beta / 10, self.min_beta)

    def slope(self, x: F32, offset: F32, moves: float, count: int, case: Case) -> Step[F32]:
        """-∇g up to a positive factor [*shape] at the boundary point x = z + offset, from `count` labels."""
        points = gaussian(case.rng, count, x.shape)
        flat = points.reshape(count, -1)
        length = np.float32(moves * math.sqrt(x.size))
        if case.ball.norm == "l2" and x.size > 1:
            squares = np.einsum("ij,ij->i", flat, flat)
            theta = offset.reshape(-1) / np.float32(max(float(norms(offset[None])[0]), 1e-30))
            along = flat @ theta
            scale = length / np.sqrt(np.maximum(squares - along * along, np.float32(1e-6) * squares + np.float32(1e-30)))
            flat *= scale[:, None]
            flat -= np.multiply.outer(along * scale, theta)
        else:
            stretch(points, float(length))
        points += x
        answers = yield Ask("probe", boxed(points, case))
        return pull(answers, x) / length

    @staticmethod
    def tolerance(moves: float, d: int, case: Case) -> float:
        """Of g: half of what a probe moves along the normal, where all of a corner's coordinates move at once for linf."""
        return moves / 2 if case.ball.norm == "l2" else moves / (2 * math.sqrt(d))


@plain_dataclass(frozen=True, slots=True)
class Rays:
    """Rays from z [*shape]: unit directions for l2; for linf offsets, which are cut at the radius in every coordinate."""

    z: F32
    case: Case
    dither: F32 | None
    """one for all radii and directions, so that g stays a function"""

    def through(self, offsets: F32) -> F32:
        """The rays [n, *shape] through z + offsets [n, *shape]."""
        if self.case.ball.norm == "linf":
            return offsets
        units: F32 = offsets / per_row(np.maximum(norms(offsets), np.float32(1e-30)), offsets)
        return units

    def ends(self, rays: F32, radii: F32) -> F32:
        """Points [m·n, *shape] of rays [n, *shape] at the radii [m], within the box."""
        r = radii.reshape(-1, *([1] * rays.ndim))
        points: F32 = r * rays if self.case.ball.norm == "l2" else np.clip(rays, -r, r)
        points += self.z
        return boxed(points.reshape(-1, *self.z.shape), self.case)

    def end(self, ray: F32, radius: float) -> F32:
        point: F32 = self.ends(ray[None], np.array([radius], np.float32))[0]
        return point

    def fan(self, offset: F32, slope: F32, size: float) -> F32 | None:
        """Rays [len(FAN), *shape] turned from `offset` along `slope` by FAN times `size`; None where there is no slope."""
        length = float(norms(slope[None])[0])
        if not length > 0:
            return None
        # for l2 of length 1, for linf of mean square 1: a noisy sign of every coordinate counts as little as its slope does
        unit = 1.0 if self.case.ball.norm == "l2" else math.sqrt(slope.size)
        v = slope * np.float32(unit / length)
        turned: F32 = per_row(np.float32(size) * FAN, offset[None]) * v
        turned += offset
        turned += self.z
        turned = boxed(turned, self.case)
        turned -= self.z
        return self.through(turned)

    def shortest(self, rays: F32, g: float, tolerance: float) -> Step[tuple[int | None, float]]:
        """(index, g) of the ray with the smallest g; (None, g) where none has its boundary within g."""
        hits = (yield self.ask("line", rays, np.array([g], np.float32))).adversarial
        if not hits.any():
            return None, g
        left = np.flatnonzero(hits)
        best, g = yield from self.nearest(rays[left], g, tolerance, first=NEAR)
        return int(left[best]), g

    def nearest(self, rays: F32, high: float, tolerance: float, first: float | None = None) -> Step[tuple[int, float]]:
        """(index, g) of the ray [n, *shape] with the smallest g, one of them adversarial at `high`; `first`: where to begin.

        All that may still be the nearest are asked at each radius, so that the search takes as many rounds as that of one.
        """
        left, low = np.arange(len(rays)), 0.0
        for _ in range(MAX_ROUNDS):
            if high - low <= tolerance:
                break
            m = max(1, (self.case.sections - 1) // len(left))
            at = low + (high - low) * (np.arange(1, m + 1) / (m + 1) if first is None else np.array([first]))
            first = None
            answers = yield self.ask("boundary", rays[left], at.astype(np.float32))
            hits = answers.adversarial.reshape(len(at), -1)
            answered = np.logical_and.reduce(answers.answered.reshape(len(at), -1), axis=1)
            low, high, at_high = narrowed(at, np.logical_or.reduce(hits, axis=1), answered, low, high)
            if at_high is not None:
                left = left[hits[at_high]]
            elif not answered.any():
                first = float(self.case.rng.uniform(0.3, 0.7))
        return int(left[0]), high

    def ask(self, phase: str, rays: F32, radii: F32) -> Ask:
        points = self.ends(rays, radii)
        if self.dither is not None:
            points += self.dither
        return Ask(phase, points)
