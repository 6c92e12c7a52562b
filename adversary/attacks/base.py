"""How an attack is written: for one latent, as the paper's loop, as a generator that asks and is answered.

    answers = yield Ask("search", candidates)        # candidates [k, *shape]
    answers.loss, answers.adversarial, ...           # [k] each

The session around it counts, encodes, judges, and stops at the first success inside the ball. The attack claims nothing. What
it returns is a candidate to send on unasked (blind attacks), or None.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adversary.space import Space
from splitcore.latent import F32
from splitcore.threat import Ball, Feedback, Norm


class Ask(NamedTuple):
    """Candidates to be asked in one round."""

    phase: str
    """what they are for; the ledger and the report count by it"""
    points: F32
    """[k, *shape]"""


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back for one Ask, row by row."""

    loss: F32
    """[k], the lower the better for the adversary, below 0 when adversarial; +inf where no score came back"""
    adversarial: NDArray[np.bool_]
    """[k]: the criterion holds"""
    arrived: F32
    """[k, *shape]: the candidates as they arrived"""
    distance: F32
    """[k]: of those from the centre, in the ball's norm"""
    answered: NDArray[np.bool_]
    """[k]: False where the query was rejected or lost"""


Search: TypeAlias = Generator[Ask, Answers, F32 | None]


class Attack(Protocol):
    """A frozen dataclass of settings; `kind` names it in scenarios."""

    @property
    def kind(self) -> str: ...

    feedback: ClassVar[Feedback]
    norms: ClassVar[tuple[Norm, ...]]

    def perturb(self, z: F32, *, ball: Ball, space: Space, budget: int, rng: np.random.Generator) -> Search:
        """Searches around z [*shape] with at most `budget` rows asked."""
        ...


def as_map(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Any shape as [C, H, W]: vectors are [n, 1, 1], tokens [t, d] are [t, d, 1]."""
    channels, *rest = shape
    height = rest[0] if rest else 1
    width = 1
    for n in rest[1:]:
        width *= n
    return channels, height, width
