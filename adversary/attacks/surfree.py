"""SurFree: along arcs that cross the boundary at the nearest point it has in a random plane; no gradient, no surrogate.

Maho, Furon, Le Merrer, "SurFree: a fast surrogate-free black-box attack", CVPR 2021, l2. With the clean point z, the boundary
point x = z + r·u, and a unit vector v normal to u, the candidates are z + r·cos φ·(u·cos φ + v·sin φ), on the circle whose
diameter goes from z to x. Where the boundary is flat it crosses that circle at x and, by Thales, at the foot of the
perpendicular from z, which is its nearest point in the plane of u and v; the arc between is adversarial. So the largest
adversarial φ is the best.

Departures: the band of low frequencies that v is drawn from has four a side where the map has, and vectors and tokens have no
frequencies: it is all of them. A direction that was tried is turned with u, so that all tried ones stay normal to it; there are
never more of them than the band has dimensions, nor than take a mebibyte. On a quantiser's grid the walk goes over the points
as they were asked, and φ has no floor there: small turns that do not arrive one by one arrive together. Where round trips are
dear both sides of several planes are asked together.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Answers, Ask, Case, Search
from adversary.attacks.boundary import Step, find_adversarial, section_search, to_boundary
from adversary.attacks.coarse import plane, side
from adversary.attacks.dct import smooth
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm

LEAST = 1e-3
"""radians: a smaller φ shortens the offset by less than float32 tells"""
MOST = math.pi / 4
"""radians: twice this is the angle at which an arc ends, at z"""
KEPT = 1 << 18
"""numbers kept of directions that were tried, at most"""
FRESH = 0.05
"""of a direction that must be left, normal to the tried ones, for it to be a new one"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SurFree:
    """Turn towards the clean point in one random plane after the other."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    kind: Literal["surfree"] = "surfree"
    theta: Annotated[float, Field(gt=0, le=45)] = 30.0
    """θ_max: the angle that is asked first, in degrees"""
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """ρ: what θ_max shrinks by where neither side is adversarial, and grows by where one is"""
    orthogonal: Annotated[int, Field(ge=1)] = 100
    """directions tried last to which a new one is made normal"""
    bisections: Annotated[int, Field(ge=0)] = 7
    """of φ between θ_max and twice as much, at most"""
    gamma: Annotated[float, Field(gt=0)] = 0.01
    """the bisection ends when no more than this, as a fraction of the distance, is to be won by it"""
    band: Annotated[float, Field(gt=0, le=1)] = 0.5
    """share of the frequencies along each axis that directions are made of, the lowest ones"""
    smallest: Annotated[int, Field(ge=1)] = 4
    """frequencies along an axis that the band keeps in any case"""

    def perturb(self, z: F32, case: Case) -> Search:
        x = yield from find_adversarial(z, case)
        if x is None:
            return None
        x = yield from to_boundary(z, x, case, theta=0.001)
        C, H, W = plane(z.shape)
        corner = C, side(H, self.band, self.smallest), side(W, self.band, self.smallest)
        tried = Tried(x - z, min(self.orthogonal, math.prod(corner) - 1))
        theta = math.radians(self.theta)
        for _ in range(case.budget):
            drawn = [direction(case.rng, tried, corner, (H, W)) for _ in range(max(1, (case.sections - 1) // 2))]
            planes = [v for v in drawn if v is not None]
            if not planes:
                return None  # the space has no other dimension, or the point is the clean one
            vs = np.stack(planes)
            sides, answers = yield from self.sides(z, tried, vs, theta, case)
            won = answers.adversarial.reshape(-1, len(vs)).any(axis=0)
            if won.any():
                first = int(answers.adversarial.argmax())
                v = vs[first % len(vs)]
                x, phi = yield from self.largest(z, tried, v, sides[first], case)
                tried.turn(x - z, v, phi)
            for v in vs[~won]:
                # those drawn together are not normal to each other
                tried.keep(v if len(vs) == 1 else tried.normal(v))
            theta = min(max(theta * self.rho ** (int(np.count_nonzero(~won)) - int(np.count_nonzero(won))), LEAST), MOST)
        return None

    def sides(self, z: F32, tried: Tried, vs: F32, theta: float, case: Case) -> Step[tuple[list[float], Answers]]:
        """(angles, answers): each of vs [n, d] asked at ±theta; at once where round trips are dear, else one side first."""
        n = len(vs)
        for angles in [[theta] * n + [-theta] * n] if case.sections > 2 else [[theta] * n, [-theta] * n]:
            both = np.concatenate([vs] * (len(angles) // n))
            answers = yield Ask("arc", case.ball.boxed(tried.circle(z, both, np.array(angles, np.float32))))
            if answers.adversarial.any():
                break
        return angles, answers

    def largest(self, z: F32, tried: Tried, v: F32, phi: float, case: Case) -> Step[tuple[F32, float]]:
        """(point [*shape], angle): the largest adversarial angle between phi, which is, and twice as much."""

        def place(position: F32) -> F32:
            return case.ball.boxed(tried.circle(z, v, np.float32(phi) * (np.float32(2) - position)))

        # a cosine falls by no more than sin 2φ a radian
        worth = self.gamma / (abs(phi) * max(math.sin(2 * abs(phi)), 1e-9))
        tolerance = max(0.5**self.bisections, worth)
        _, _, position = yield from section_search(place, z, case, tolerance=tolerance, phase="bisect")
        return place(np.array([position], np.float32))[0], phi * (2 - position)


class Tried:
    """u, and directions that were tried, all orthonormal: the rows in use of `rows` [1 + window, d]."""

    def __init__(self, offset: F32, window: int) -> None:
        self.window = max(0, min(window, KEPT // offset.size))
        self.rows = np.zeros((1 + self.window, offset.size), np.float32)
        self.used, self.next = 1, 1
        self.r = 0.0
        """distance of the boundary point"""
        self.aim(offset)

    def aim(self, offset: F32) -> None:
        self.r = float(np.linalg.norm(offset))
        self.rows[0] = offset.reshape(-1) / np.float32(max(self.r, 1e-30))

    def circle(self, z: F32, v: F32, angles: F32) -> F32:
        """Candidates [k, *shape] at the angles [k] on the circles in the planes of u and v, [k, d] or one [d] for all."""
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        offsets: F32 = (np.float32(self.r) * cos) * (cos * self.rows[0] + sin * v)
        return z + offsets.reshape(-1, *z.shape)

    def normal(self, v: F32) -> F32 | None:
        """v [d] less what it has of u and of those tried, unit; None where next to nothing is left."""
        rows = self.rows[: self.used]
        beside: F32 = np.subtract(v, (rows @ v) @ rows)
        beside -= (self.rows[0] @ beside) * self.rows[0]  # once more: at the box's border u turns otherwise than v did
        left = math.sqrt(beside @ beside)
        if left <= FRESH * math.sqrt(v @ v):
            return None
        beside /= np.float32(left)
        return beside

    def keep(self, v: F32 | None) -> None:
        """One more that was tried, normal to all; the oldest goes where there is no room."""
        if self.window and v is not None:
            self.rows[self.next] = v
            self.used = max(self.used, self.next + 1)
            self.next = self.next % self.window + 1

    def turn(self, offset: F32, v: F32, phi: float) -> None:
        """u turned by φ towards v; v with it, normal to the new u."""
        beside = np.float32(math.cos(phi)) * v - np.float32(math.sin(phi)) * self.rows[0]
        self.aim(offset)
        self.keep(beside)

    def forget(self) -> None:
        self.used, self.next = 1, 1


def direction(rng: np.random.Generator, tried: Tried, corner: tuple[int, int, int], sides: tuple[int, int]) -> F32 | None:
    """A unit v [d] normal to u and all tried: -1, 0 or 1 at every frequency of the corner [C, h, w], each as likely.

    When the tried ones leave nothing of the band they are forgotten; None where even u leaves nothing.
    """
    for attempt in range(8):
        spectrum = rng.integers(-1, 2, corner, np.int8).astype(np.float32)
        v = tried.normal(smooth(spectrum, *sides).reshape(-1)) if spectrum.any() else None
        if v is not None:
            return v
        if attempt % 2:
            tried.forget()
    return None
