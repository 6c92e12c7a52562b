"""What the adversary may do: the norm, the budget and its unit, the feedback, the goal, the deadline, the point of attack.

Budgets of latents have no natural unit (pixels have [0, 1]), so eps always says its own. For linf it bounds every
coordinate; for l2 every relative unit is a root mean square over coordinates, so the radius is eps·unit·√d, and `mse` is
the papers' mean squared error, eps·d = radius².
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass

from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError
from splitcore.latent import F32

Norm = Literal["linf", "l2"]
Point = Literal["input", "latent", "wire"]
Feedback = Literal["scores", "label", "none"]
EpsUnit = Literal["absolute", "fraction_of_range", "std", "codec_steps", "mse"]


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class ThreatModel:
    """One line of a scenario: who may change what by how much, and ask how often."""

    point: Point = "wire"
    """`input`: the image before the head; `latent`: the float latent before the codec; `wire`: the latent as the tail
    decodes it, the one that a man in the middle can really change"""
    norm: Norm = "linf"
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    eps_unit: EpsUnit = "std"
    target: Annotated[int, Field(ge=0)] | None = None
    """the class that every frame shall become; None: any wrong one"""
    budget: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """queries for one frame, all of them: the clean one, the search, the last"""
    box: Literal["codec", "calibrated"] | tuple[float, float] = "codec"
    """what values may be sent: all that the codec can carry (unbounded for float codecs), only those within the calibrated
    range of each channel, or only those between two numbers; pixels stay in [0, 1] at point `input`"""
    deadline_ms: Annotated[float, Field(gt=0)] | None = None
    """how long a frame may be held; None: as long as the frame's own deadline allows"""


@dataclass(frozen=True)
class Scale:
    """What the units of eps mean for one kind of point: all in the point's own values."""

    range: float
    std: float
    step: float
    """the quantiser's step; 0 where there is none"""
    elements: int


def absolute_eps(threat: ThreatModel, scale: Scale) -> float:
    """eps as a radius in the point's own values. Raises ScenarioError where the unit has no meaning there."""
    if threat.eps_unit == "mse":
        if threat.norm != "l2":
            raise ScenarioError("eps_unit mse is a mean squared error: expected norm l2, got linf; say absolute or std")
        return math.sqrt(threat.eps * scale.elements)
    unit = {"absolute": 1.0, "fraction_of_range": scale.range, "std": scale.std, "codec_steps": scale.step}[threat.eps_unit]
    if unit <= 0:
        raise ScenarioError(f"eps_unit {threat.eps_unit} has no meaning at point {threat.point} with this codec: say std")
    if threat.norm == "l2" and threat.eps_unit != "absolute":
        unit *= math.sqrt(scale.elements)
    return threat.eps * unit


AT_ONCE = 1 << 20
"""bytes of offsets that are measured at once: more would leave the processor's cache, and want fresh pages"""


class Ball(ABC):
    """All points within `eps` of `centre` [*shape], and within the box [lo, hi] (bounds broadcast; infinite: none)."""

    norm: Norm

    def __init__(self, centre: F32, eps: float, lo: F32, hi: F32, step: float | F32 = 0.0) -> None:
        self.centre = centre
        self.eps = eps
        self.lo, self.hi = lo, hi
        self.step = step
        """of the quantiser behind, broadcastable; 0: none"""
        self.reach = eps * (1 + 1e-5) + 4e-7 * (float(np.abs(centre).max(initial=0)) + eps)
        """eps, and what float32 rounds: how far a point that was put at eps may be measured to lie"""

    @staticmethod
    @abstractmethod
    def lengths(offsets: F32) -> NDArray[np.float32]:
        """The norm of each of [k, *shape], [k]."""

    def distance(self, points: F32) -> NDArray[np.float32]:
        """Of each of [k, *shape] from the centre, [k]."""
        some = max(1, AT_ONCE // max(1, self.centre.nbytes))
        if len(points) <= some:
            return self.lengths(points - self.centre)
        parts = [self.lengths(points[at : at + some] - self.centre) for at in range(0, len(points), some)]
        return np.concatenate(parts)

    @abstractmethod
    def project(self, points: F32) -> F32:
        """The nearest points [k, *shape] of the ball for the norm, then of the box."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, k: int) -> F32:
        """k points [k, *shape], uniform in the ball (before the box)."""

    @abstractmethod
    def pull_back(self, nearest: F32, towards: F32) -> F32:
        """Points [k, *shape] in the ball from ones that rounding put outside, and the same rounded towards the centre.

        As few coordinates as need be are taken from `towards`, so that little of the distance is lost on a coarse grid.
        """

    def contains(self, points: F32) -> NDArray[np.bool_]:
        """[k], up to `reach`."""
        inside: NDArray[np.bool_] = self.distance(points) <= self.reach
        return inside

    def boxed(self, points: F32) -> F32:
        """The nearest points of the box, [k, *shape] or [*shape]."""
        if self._box is None:
            return points
        lo, hi = self._box
        boxed: F32 = np.maximum(points, lo)
        return np.minimum(boxed, hi, out=boxed)

    @cached_property
    def _box(self) -> tuple[F32, F32] | None:
        """The bounds in full, as broadcast ones cost seven times as much; None where there are none."""
        if np.isneginf(self.lo).all() and np.isposinf(self.hi).all():
            return None
        shape = self.centre.shape
        return np.broadcast_to(self.lo, shape).copy(), np.broadcast_to(self.hi, shape).copy()


class LinfBall(Ball):
    """On a quantiser's grid `project` stops at its last value inside the ball, so that rounding does not leave it."""

    norm = "linf"

    def __init__(self, centre: F32, eps: float, lo: F32, hi: F32, step: float | F32 = 0.0) -> None:
        super().__init__(centre, eps, lo, hi, step)
        grid = np.asarray(step, np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.where(grid > 0, np.floor(self.reach / grid) * grid, np.float32(eps)).astype(np.float32)
        self.low, self.high = np.maximum(centre - inside, lo), np.minimum(centre + inside, hi)
        """the corners [*shape]: the smallest and largest values inside ball, box and grid"""

    @staticmethod
    def lengths(offsets: F32) -> NDArray[np.float32]:
        flat = offsets.reshape(len(offsets), -1)
        furthest: NDArray[np.float32] = np.maximum(flat.max(axis=1), -flat.min(axis=1))
        return furthest

    def project(self, points: F32) -> F32:
        return np.clip(points, self.low, self.high)

    def pull_back(self, nearest: F32, towards: F32) -> F32:
        return np.where(np.abs(nearest - self.centre) > self.reach, towards, nearest)

    def sample(self, rng: np.random.Generator, k: int) -> F32:
        noise = rng.random((k, *self.centre.shape), np.float32) * np.float32(2) - np.float32(1)
        return self.boxed(self.centre + np.float32(self.eps) * noise)


class L2Ball(Ball):
    norm = "l2"

    @staticmethod
    def lengths(offsets: F32) -> NDArray[np.float32]:
        return norms(offsets)

    def project(self, points: F32) -> F32:
        offset = points - self.centre
        length = norms(offset)
        shrink = np.minimum(np.float32(1), np.float32(self.eps) / np.maximum(length, np.float32(1e-30)))
        return self.boxed(self.centre + offset * per_row(shrink, offset))

    def pull_back(self, nearest: F32, towards: F32) -> F32:
        pulled = nearest.copy().reshape(len(nearest), -1)
        inner = towards.reshape(len(towards), -1)
        gains = (pulled - self.centre.reshape(-1)) ** 2 - (inner - self.centre.reshape(-1)) ** 2
        excess = norms(nearest - self.centre) ** 2 - np.float32(self.eps) ** 2
        for row, gain in enumerate(gains):
            order = np.argsort(-gain)  # the coordinates that give back most first
            needed = int(np.searchsorted(np.cumsum(gain[order]), excess[row])) + 1
            pulled[row, order[:needed]] = inner[row, order[:needed]]
        return pulled.reshape(nearest.shape)

    def sample(self, rng: np.random.Generator, k: int) -> F32:
        direction = rng.standard_normal((k, *self.centre.shape), np.float32)
        radius = np.float32(self.eps) * rng.random(k, np.float32) ** np.float32(1 / self.centre.size)
        return self.boxed(self.centre + direction * per_row(radius / norms(direction), direction))


BALLS: dict[Norm, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}


def norms(points: F32) -> NDArray[np.float32]:
    """l2 norm of each row of [k, *shape], [k]."""
    flat = points.reshape(len(points), -1)
    lengths: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", flat, flat))
    return lengths


def per_row(values: NDArray[np.float32], like: F32) -> F32:
    """[k] values shaped to broadcast over the rows of `like` [k, *shape]."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))
