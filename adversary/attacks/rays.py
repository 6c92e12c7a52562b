"""RayS: the nearest boundary along a direction of ±1 in every coordinate, found by flipping ever smaller blocks of signs.

Chen and Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack", KDD 2020, algorithms 2 (the radius of a
direction, with the fast check) and 3 (the hierarchy of blocks). It has no parameter to tune.

Departures: radii are in linf, where the paper measures the l2 length of the same ray, and are found to a fraction of
themselves, where it asks for 1e-3; the first ray is searched outwards from one standard deviation of the latent, where the
paper counts in pixels; on a quantiser's grid the rays are dithered, so that a radius between two of its values is felt; when
the blocks have shrunk to one coordinate it starts over with the whole, where the paper goes on in vain; where round trips are
dear several flips are checked together, and those after the first that helps are forgotten. Targeted, which the paper is not,
the first ray points to the pool's nearest wanted latent, where there is a pool.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search, as_map
from adversary.attacks.boundary import DOUBLINGS, Step, dithering, finest, known, section_search
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm

Order = Literal["CHW", "HWC"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RayS:
    """Keep a flip of signs iff it brings the boundary nearer."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["rays"] = "rays"
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.005
    """of a radius, as a fraction of it"""
    order: Order = "CHW"
    """in which a block is a run: `CHW` (the authors', as it lies in memory), where the larger blocks are whole channels, or
    `HWC`, where they are bands of rows through all channels"""

    def perturb(self, z: F32, case: Case) -> Search:
        line = Line(z, case, self.order)
        signs = np.ones(z.size, np.float32)
        if case.target is not None and (seen := known(z, case, 1)) is not None:
            signs = np.where(line.flat(seen[0]) < line.flat(z), np.float32(-1), np.float32(1))
        radius = yield from self.first_radius(line, signs, case)
        ahead, behind = line.at(signs, radius), line.at(-signs, radius)
        upcoming, at_once = blocks(z.size), case.sections - 1
        waiting: deque[tuple[int, int]] = deque()
        while True:
            while len(waiting) < at_once:
                waiting.append(next(upcoming))
            flipped = np.empty((at_once, z.size), np.float32)
            flipped[:] = ahead
            for row, (start, end) in enumerate(waiting):
                flipped[row, start:end] = behind[start:end]
            # algorithm 2's fast check: one query tells that the boundary is no nearer this way
            answers = yield Ask("check", line.points(flipped))
            if not answers.adversarial.any():
                waiting.clear()
                continue
            for _ in range(int(answers.adversarial.argmax()) + 1):
                start, end = waiting.popleft()
            turned = signs.copy()
            turned[start:end] *= -1
            nearer = yield from self.radius(line, turned, 0.0, radius, case)
            if nearer < radius:
                signs, radius = turned, nearer
                ahead, behind = line.at(signs, radius), line.at(-signs, radius)

    def first_radius(self, line: Line, signs: F32, case: Case) -> Step[float]:
        """Where the first ray becomes adversarial; where it never does, the last radius tried, as good as infinite.

        Doubled from one standard deviation of the latent, until all of the ray's coordinates are at the box's border.
        """
        below, radius = 0.0, min(case.space.scale.std, line.far)
        for _ in range(DOUBLINGS):
            answers = yield Ask("start", line.points(line.at(signs, radius)[None]))
            if answers.adversarial[0]:
                return (yield from self.radius(line, signs, below, radius, case))
            if radius == line.far:
                break
            below, radius = radius, min(2 * radius, line.far)
        return radius

    def radius(self, line: Line, signs: F32, low: float, high: float, case: Case) -> Step[float]:
        """The adversarial end of [low, high], whose `high` is adversarial (algorithm 2's bisection)."""

        def place(at: F32) -> F32:
            return line.points(line.at(signs, at[:, None]))

        # one step of the radius moves √d times as far along a boundary's normal as one coordinate does
        tolerance = max(self.tolerance * min(high, 8 * case.space.scale.std), line.finest)
        _, _, high = yield from section_search(place, line.z, case, low=low, high=high, tolerance=tolerance)
        return high


class Line:
    """The latent as one line [d], in the order that blocks are cut in."""

    def __init__(self, z: F32, case: Case, order: Order) -> None:
        self.shape, self.map, self.order = z.shape, as_map(z.shape), order
        self.lo = self.flat(np.broadcast_to(case.ball.lo, z.shape))
        self.hi = self.flat(np.broadcast_to(case.ball.hi, z.shape))
        self.far = float(np.maximum(self.hi - self.flat(z), self.flat(z) - self.lo).max())
        """the radius from which on no ray moves any more; infinite without a box"""
        dither = dithering(z, case)
        self.z = self.flat(z if dither is None else z + dither)
        """where all rays start: one dither for all, so that a direction has one radius"""
        self.finest = finest(z, case) / math.sqrt(z.size)

    def flat(self, point: F32) -> F32:
        """A point [*shape] as a line [d]."""
        if self.order == "CHW":
            return point.reshape(-1)
        return point.reshape(self.map).transpose(1, 2, 0).reshape(-1)

    def points(self, lines: F32) -> F32:
        """Lines [k, d] as points [k, *shape]."""
        if self.order == "CHW":
            return lines.reshape(-1, *self.shape)
        C, H, W = self.map
        return lines.reshape(-1, H, W, C).transpose(0, 3, 1, 2).reshape(-1, *self.shape)

    def at(self, signs: F32, radius: float | F32) -> F32:
        """The point [d] on the ray `signs` [d] at a radius, or points [k, d] at radii [k, 1]; within the box."""
        ray: F32 = np.float32(radius) * signs
        ray += self.z
        np.maximum(ray, self.lo, out=ray)
        return np.minimum(ray, self.hi, out=ray)


def blocks(d: int) -> Iterator[tuple[int, int]]:
    """[start, end) of the whole of d, of its halves, quarters, ..., of its single coordinates; and over again, for ever."""
    while True:
        for level in range((d - 1).bit_length() + 1):
            length = -(-d // 2**level)
            for start in range(0, d, length):
                yield start, min(start + length, d)
