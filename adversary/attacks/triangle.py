"""Triangle: the clean point, an adversarial one and the next make a triangle, whose sides follow from two angles.

Wang, Zhang, Tong, Gong, He, Li, Liu, "Triangle Attack: A Query-efficient Decision-based Adversarial Attack", ECCV 2022,
algorithm 1, l2. With the clean point z, the adversarial x = z + D·u, and a unit vector v normal to u, a candidate has the
angle β at z and sees z and x under the angle α: by the law of sines it lies at

    z + D·sin(α + β)/sin α·(u·cos β + v·sin β),

nearer than x iff 2α + β > π (section 3.3). v is drawn from low frequencies. No gradient is estimated, no boundary searched.

Departures: the paper's block of frequencies is a tenth of a side of 224; a latent's side is short, so the block has four places
a side where the map has, and vectors and tokens, which have no frequencies, are drawn from whole. The transform is orthonormal,
so that angles are the latent's own. The first adversarial point is brought to the boundary. On a quantiser's grid the walk goes
over the points as they were asked. Where round trips are dear both sides of several planes are asked together, and several β.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search
from adversary.attacks.boundary import Step, find_adversarial, to_boundary
from adversary.attacks.coarse import plane, side
from adversary.attacks.dct import smooth
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Triangle:
    """Search β in one random plane after the other; α learns how bold to be."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    kind: Literal["triangle"] = "triangle"
    gain: Annotated[float, Field(ge=0)] = 0.1
    """γ: what α grows by, in radians, when a candidate of the bisection is adversarial; the authors'"""
    loss: Annotated[float, Field(ge=0)] = 0.005
    """λ: what α falls by when one is not; the authors'"""
    spread: Annotated[float, Field(ge=0, lt=1.5)] = 0.1
    """τ: α stays within π/2 ± τ; the authors'"""
    margin: Annotated[float, Field(gt=0, lt=1)] = math.pi / 16
    """by which the first β of a plane is larger, in radians, than the least that makes a candidate nearer; the authors'. Where
    the boundary's normal is nearer to the line than this, they find nothing any more: a smaller one goes on"""
    bisections: Annotated[int, Field(ge=0)] = 2
    """N: of β, in each plane; the authors'"""
    block: Annotated[float, Field(gt=0, le=1)] = 0.1
    """share of the frequencies along each axis that directions are drawn from, the lowest ones; the authors'"""
    smallest: Annotated[int, Field(ge=1)] = 4
    """frequencies along an axis that the block keeps in any case"""
    coordinates: Annotated[int, Field(ge=1)] = 1
    """frequencies of each channel that a direction is made of; the authors'"""

    def perturb(self, z: F32, case: Case) -> Search:
        x = yield from find_adversarial(z, case)
        if x is None:
            return None
        x = yield from to_boundary(z, x, case, theta=0.001)
        alpha = math.pi / 2
        for _ in range(case.budget):
            line = Line(z, x)
            drawn = [self.direction(line, case.rng) for _ in range(max(1, (case.sections - 1) // 2))]
            normals = [v for v in drawn if v is not None]
            if not normals:
                return None  # the space has no other dimension, or the point is the clean one
            x, alpha = yield from self.walk(line, np.stack(normals), x, alpha, case)
        return None

    def direction(self, line: Line, rng: np.random.Generator) -> F32 | None:
        """A unit vector [d] of low frequencies, normal to the line; None where none of those is."""
        C, H, W = plane(line.z.shape)
        h, w = side(H, self.block, self.smallest), side(W, self.block, self.smallest)
        for _ in range(8):
            spectrum = np.zeros((C, h * w), np.float32)
            for _ in range(self.coordinates):
                spectrum[np.arange(C), rng.integers(0, h * w, C)] = rng.standard_normal(C, np.float32)
            v = smooth(spectrum.reshape(C, h, w), H, W).reshape(-1)
            length = math.sqrt(v @ v)
            v -= (line.u @ v) * line.u
            left = math.sqrt(v @ v)
            if left > 1e-3 * length and line.D > 0:
                v /= np.float32(left)
                return v
        return None

    def walk(self, line: Line, vs: F32, x: F32, alpha: float, case: Case) -> Step[tuple[F32, float]]:
        """(the nearest point [*shape] found adversarial in the planes of vs [n, d], or x; α as it learned from the answers)."""
        together = case.sections > 2
        low = first_beta(alpha, self.margin)
        for sides in [np.concatenate([vs, -vs])] if together else [vs, -vs]:
            points = case.ball.boxed(line.points(alpha, [low], sides))
            answers = yield Ask("plane", points)
            if answers.adversarial.any():
                break
            for _ in range(np.count_nonzero(answers.answered)):
                alpha = self.adapted(alpha, won=False)
        else:
            return x, alpha
        row = int(answers.adversarial.argmax())
        x, v = points[row], sides[row]
        [distance] = case.ball.distance(x[None])
        high = min(math.pi - alpha, math.pi / 2)
        parts = np.arange(1, case.sections) / case.sections
        for _ in range(math.ceil(self.bisections / math.log2(case.sections))):
            betas = low + (high - low) * parts
            for sides in [np.stack([v, -v])] if together else [v[None], -v[None]]:
                points = case.ball.boxed(line.points(alpha, betas, sides))
                answers = yield Ask("bisect", points)
                hits = np.flatnonzero(answers.adversarial)
                if len(hits):
                    break
            if len(hits):
                # α has changed: a larger β is not always nearer
                distances = case.ball.distance(points[hits])
                if distances.min() < distance:
                    x, distance = points[hits[distances.argmin()]], distances.min()
                boldest = int(hits[(hits % len(betas)).argmax()])
                v, at = sides[boldest // len(betas)], boldest % len(betas)
                low, high = float(betas[at]), (float(betas[at + 1]) if at + 1 < len(betas) else high)
                alpha = self.adapted(alpha, won=True)
            elif answers.answered.any():
                high = float(betas[0])
                alpha = self.adapted(alpha, won=False)
        return x, alpha

    def adapted(self, alpha: float, *, won: bool) -> float:
        return min(max(alpha + (self.gain if won else -self.loss), math.pi / 2 - self.spread), math.pi / 2 + self.spread)


class Line:
    """From the clean point z [*shape] along the unit vector u [d] to x, at the distance D."""

    def __init__(self, z: F32, x: F32) -> None:
        offset = (x - z).reshape(-1)
        self.z, self.D = z, math.sqrt(offset @ offset)
        self.u = offset / np.float32(max(self.D, 1e-30))

    def points(self, alpha: float, betas: Sequence[float] | NDArray[np.float64], normals: F32) -> F32:
        """The candidates [n·len(betas), *shape] for each of the unit vectors `normals` [n, d], in order."""
        beta = np.asarray(betas)
        far = self.D * np.sin(alpha + beta) / math.sin(alpha)
        along, beside = (far * np.cos(beta)).astype(np.float32), (far * np.sin(beta)).astype(np.float32)
        points: F32 = self.z + (along[:, None] * self.u + beside[:, None] * normals[:, None]).reshape(-1, *self.z.shape)
        return points


def first_beta(alpha: float, margin: float) -> float:
    """The smallest β that makes a candidate nearer, π - 2α where α is acute, and a margin."""
    return max(math.pi - 2 * alpha, 0.0) + min(margin, alpha / 2)
