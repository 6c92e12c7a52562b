"""What decision-based attacks share: a first adversarial point, and the boundary between it and the clean one.

A search for the boundary cuts its interval into `case.sections` parts a round: two are bisection, the fewest rows; more need
fewer round trips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from adversary.attacks.base import Answers, Ask, Case
from adversary.attacks.draw import gaussian
from splitcore.latent import F32
from splitcore.threat import Norm, norms, per_row

MAX_ROUNDS = 40
"""no search for a boundary takes more: float32 has no finer interval, whatever the tolerance asks for"""
DOUBLINGS = 12
"""of the noise that a first adversarial point is looked for in"""

T = TypeVar("T")
Step: TypeAlias = Generator[Ask, Answers, T]
"""a part of a search: asks, is answered, and comes to a T"""


class Spent:
    """Counts the rows of the parts of a search that pass through it, so that an attack can plan with what is left."""

    def __init__(self) -> None:
        self.rows = 0

    def on(self, part: Step[T]) -> Step[T]:
        try:
            ask = next(part)
            while True:
                self.rows += len(ask.points)
                ask = part.send((yield ask))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def affordable(self, wanted: int, walk: int, budget: int) -> int:
        """Rows for the next estimate: `wanted`, or all that leave `walk` rows to use it, where another could not follow."""
        left = budget - self.rows - walk
        return wanted if left >= 1.5 * wanted + walk else max(2, left)


def find_adversarial(z: F32, case: Case, *, at_once: int = 5) -> Step[F32 | None]:
    """The nearest adversarial point of the first round around z [*shape] that has one; None where none has (`starts`)."""
    found = yield from starts(z, case, at_once)
    if found is None:
        return None
    closest: F32 = found[norms(found - z).argmin()]
    return closest


def starts(z: F32, case: Case, at_once: int) -> Step[F32 | None]:
    """All adversarial points of the first round around z [*shape] that has one, as they arrived, [n, *shape]; or None.

    First the nearest of the pool that were answered as wanted, where there is a pool. Image code draws from the unit cube
    then; a latent has no such range, so the noise is Gaussian with one to 2048 times the latent's own standard deviation,
    within the box; a round tries as many sizes as a section search has points.
    """
    seen = known(z, case, at_once)
    if seen is not None:
        answers = yield Ask("start", seen)
        if answers.adversarial.any():
            known_ones: F32 = answers.arrived[answers.adversarial]
            return known_ones
    sizes = np.float32(case.space.scale.std) * np.exp2(np.arange(DOUBLINGS, dtype=np.float32))
    for first in range(0, DOUBLINGS, case.sections - 1):
        scales = np.repeat(sizes[first : first + case.sections - 1], at_once)
        noise = gaussian(case.rng, len(scales), z.shape)
        noise *= per_row(scales, noise)
        noise += z
        answers = yield Ask("start", boxed(noise, case))
        hits = answers.adversarial
        if hits.any():
            smallest: F32 = answers.arrived[hits & (scales == scales[hits.argmax()])]
            return smallest
    return None


def known(z: F32, case: Case, k: int) -> F32 | None:
    """The k points of the pool nearest to z that were answered as wanted, [k, *shape]; None where there is none."""
    if case.pool is None:
        return None
    wanted = case.pool.labels != case.label if case.target is None else case.pool.labels == case.target
    if not wanted.any():
        return None
    points = case.pool.points[wanted]
    order = np.argsort(norms(points - z), kind="stable")
    chosen: F32 = points[order[:k]]
    return chosen


def nearest(answers: Answers) -> F32 | None:
    """The nearest adversarial candidate, as it arrived; None where none is."""
    if not answers.adversarial.any():
        return None
    found: F32 = answers.arrived[np.where(answers.adversarial, answers.distance, np.inf).argmin()]
    return found


def to_boundary(z: F32, x: F32, case: Case, *, theta: float) -> Step[F32]:
    """The adversarial end of the segment from z to the adversarial x [*shape], within `theta` of the boundary.

    Chen et al. 2020, algorithm 1 (BIN-SEARCH). `theta` is a fraction of the segment; it never gets so small that the step
    between its ends is shorter than the smallest probe that arrives. On a quantiser's grid the points are dithered: those in
    between have some coordinates rounded up and others down, where all would otherwise turn at once.
    """
    offset = x - z
    length = float(np.sqrt(np.vdot(offset, offset)))
    dither = dithering(z, case)

    def place(at: F32) -> F32:
        points: F32 = at.reshape(-1, *([1] * z.ndim)) * offset
        points += z
        if dither is not None:
            points += dither
        return points

    found, _, _ = yield from section_search(place, x, case, tolerance=max(theta, finest(z, case) / length if length else 1.0))
    return found


def shrink_to_boundary(z: F32, x: F32, case: Case, *, theta: float) -> Step[F32]:
    """The smallest linf ball around z such that the point of it nearest to x [*shape] is adversarial: that point.

    Chen et al. 2020, algorithm 1 with the projection for linf: x with every coordinate cut at a radius. `theta`
    is a fraction of the first radius, and is floored and dithered as in `to_boundary`: one step of the radius moves √d
    times as far along a boundary's normal as one coordinate does.
    """
    offset = x - z
    radius = float(np.abs(offset).max(initial=0))
    dither = dithering(z, case)

    def place(at: F32) -> F32:
        cut = (at * np.float32(radius)).reshape(-1, *([1] * z.ndim))
        points: F32 = np.clip(offset, -cut, cut)
        points += z
        if dither is not None:
            points += dither
        return points

    floor = finest(z, case) / (radius * z.size**0.5) if radius else 1.0
    found, _, _ = yield from section_search(place, x, case, tolerance=max(theta, floor))
    return found


def section_search(
    place: Callable[[F32], F32], found: F32, case: Case, *,
    low: float = 0.0, high: float = 1.0, tolerance: float, phase: str = "boundary",
) -> Step[tuple[F32, float, float]]:  # fmt: skip
    """(the last adversarial point [*shape], low, high): the boundary lies between `low` and `high`, and they are near.

    `place` puts positions [m] in (low, high), rising, to points [m, *shape]; `high` is adversarial and `found` its point, `low`
    is not. A row that was not answered is no evidence: where none of a round was, the next round asks elsewhere.
    """
    parts = np.arange(1, case.sections) / case.sections
    cuts = parts
    for _ in range(MAX_ROUNDS):
        if high - low <= tolerance:
            break
        at = low + (high - low) * cuts
        answers = yield Ask(phase, place(at.astype(np.float32)))
        low, high, first = narrowed(at, answers.adversarial, answers.answered, low, high)
        if first is not None:
            found = answers.arrived[first]
        cuts = parts if answers.answered.any() else parts * case.rng.uniform(0.5, 1.0)
    return found, low, high


def narrowed(
    at: NDArray[np.float64], adversarial: NDArray[np.bool_], answered: NDArray[np.bool_], low: float, high: float
) -> tuple[float, float, int | None]:
    """(low, high, index of the new high or None) after positions `at` [m], rising, were asked."""
    hits = np.flatnonzero(adversarial)
    first = int(hits[0]) if len(hits) else None
    misses = np.flatnonzero(answered[:first])
    return (
        float(at[misses[-1]]) if len(misses) else low,
        high if first is None else float(at[first]),
        first,
    )


def stretch(points: F32, length: float) -> None:
    """Makes each of `points` [k, *shape] so long, in place."""
    lengths = norms(points)
    np.maximum(lengths, np.float32(1e-30), out=lengths)
    points *= per_row(np.float32(length) / lengths, points)


def pull(answers: Answers, x: F32) -> F32:
    """The sum [*shape] of the ways from x to the probes as they arrived, by their votes: into the adversarial side."""
    moved = (answers.arrived - x).reshape(len(answers.arrived), -1)
    total: F32 = votes(answers) @ moved
    return total.reshape(x.shape)


def votes(answers: Answers) -> NDArray[np.float32]:
    """[k]: 1 for adversarial, -1 for not, less their mean; 0 for what was not answered.

    Chen et al. 2020, equation 16. Where all that was answered agrees it stays ±1: nothing is left but the probes' own mean.
    """
    known = answers.answered.astype(np.float32)
    phi = known * (answers.adversarial * np.float32(2) - np.float32(1))
    mean = float(phi.sum()) / max(float(known.sum()), 1.0)
    if abs(mean) < 1:
        phi -= np.float32(mean) * known
    return phi


def direction(v: F32, norm: Norm) -> F32 | None:
    """The step of length 1 in the norm that goes farthest along v [*shape]: v/‖v‖ or its signs; None where v is 0."""
    length = float(np.sqrt(np.vdot(v, v)))
    if not length > 0:
        return None
    return v / np.float32(length) if norm == "l2" else np.sign(v)


def boxed(points: F32, case: Case) -> F32:
    """`points` [k, *shape], cut at the box in place, but for what the wire cuts itself: they are the caller's own."""
    if wire_boxes(case):
        return points
    ball = case.ball
    if ball.lo.size == ball.hi.size == 1:
        return np.clip(points, ball.lo, ball.hi, out=points)
    # flat and bound by bound is seven times faster than a clip whose bounds broadcast over the map
    flat = points.reshape(len(points), -1)
    for cut, bound in ((np.maximum, ball.lo), (np.minimum, ball.hi)):
        cut(flat, np.broadcast_to(bound, points.shape[1:]).reshape(-1), out=flat)
    return points


def wire_boxes(case: Case) -> bool:
    """Whatever is sent arrives within the box: the box is no narrower than the space's own."""
    return bool((case.ball.lo <= case.space.lo).all() and (case.ball.hi >= case.space.hi).all())


def finest(z: F32, case: Case) -> float:
    """The smallest change of one coordinate of z [*shape] that arrives: the quantiser's step, or what a float codec keeps."""
    codec = case.space.codec
    # only float32 has no bounds; float16 has no step either, and eleven bits
    relative = 1e-6 if codec.step.any() or np.isinf(codec.hi).all() else 2**-10
    flat = z.reshape(-1)
    return max(case.space.probe, relative * math.sqrt(np.vdot(flat, flat) / z.size), 1e-30)


def dithering(z: F32, case: Case) -> F32 | None:
    """Less than half a quantiser's step to each side, uniform, [*shape]; None where there is no grid.

    Points on the grid stay where they are with it; those between two values go to either, in proportion. Without it,
    coordinates that differ by the same number of steps are all rounded up at the same moment, and there is nothing between.
    """
    grid = np.asarray(case.space.grid, np.float32)
    if not grid.any():
        return None
    noise = case.rng.random(z.shape, np.float32)
    noise -= np.float32(0.5)
    noise *= np.float32(0.98) * grid
    return noise
