"""How an attack is written: for one latent, as the paper's loop, as a generator that asks and is answered.

    answers = yield Ask("search", candidates)        # candidates [k, *shape]
    answers.loss, answers.adversarial, ...           # [k] each

The session around it counts, encodes, judges, and stops at the first success inside the ball. The attack claims nothing. What
it returns is a candidate to send on unasked (blind attacks), or None.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from adversary.space import Space
from splitcore.errors import ScenarioError
from splitcore.latent import F32
from splitcore.threat import Ball, Feedback, Norm

POOLS = "say `pool: {kind: recording, run: ...}`, what an earlier record pass wrote, or `pool: {kind: artefact}`, an insider's"


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
    """[k]: the margin log p_y - max log p_j, the lower the better for the adversary, below 0 when adversarial; +inf where no
    score came back"""
    adversarial: NDArray[np.bool_]
    """[k]: the criterion holds"""
    arrived: F32
    """[k, *shape]: the candidates as they arrived"""
    distance: F32
    """[k]: of those from the centre, in the ball's norm"""
    answered: NDArray[np.bool_]
    """[k]: False where the query was rejected by a detector, refused, or timed out"""
    rejected: NDArray[np.bool_]
    """[k]: True where a detector rejected the query"""
    log_p: F32 | None = None
    """[k, classes]: log-probabilities, 0 where not answered; None for attacks that see labels alone"""


@dataclass(frozen=True, slots=True)
class Pool:
    """Other latents that the adversary has seen: start points, targets. Fixed before the first query."""

    points: F32
    """[n, *shape], in the space's own values"""
    labels: NDArray[np.int64]
    """[n], as the server answered them"""
    scores: F32 | None = None
    """[n, classes], as the server answered them, rows of NaN where it gave labels alone; None: it gave no scores"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What an attack is told of the one latent that it searches around."""

    ball: Ball
    space: Space
    budget: int
    """rows that may be asked"""
    rng: np.random.Generator
    """this latent's own stream"""
    label: int = -1
    """y: what the server answers for the clean latent; -1 for blind attacks, which have not asked"""
    target: int | None = None
    """the class that is wanted; None: any other"""
    sections: int = 2
    """parts a section search cuts its interval into each round: 2 is bisection, the fewest rows; more spare round trips"""
    pool: Pool | None = None


Search: TypeAlias = Generator[Ask, Answers, F32 | None]


class Attack(Protocol):
    """A frozen dataclass of settings; `kind` names it in scenarios."""

    @property
    def kind(self) -> str: ...

    feedback: ClassVar[Feedback]
    norms: ClassVar[tuple[Norm, ...]]

    def perturb(self, z: F32, case: Case) -> Search:
        """Searches around z [*shape] with at most `case.budget` rows asked."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a learner is told of the campaign to come, which is not one latent's alone."""

    norm: Norm
    eps: float
    """absolute; at point `input` in units of std that of the pool's images on average. A frame's own radius is its ball's"""
    lo: F32
    hi: F32
    """the box, broadcastable to a point; infinite where there is none"""
    snap: Callable[[F32], F32]
    """candidates [k, *shape] as they arrive"""
    classes: int
    target: int | None = None
    """the class that is wanted; None: any other"""
    seed: int = 0


class Learner(Attack, Protocol):
    """An attack that learns from what was recorded, once, before the first frame. It asks nothing then."""

    def learn_from(self, pool: Pool, about: About) -> Learned:
        """The attack that knows: a function of `pool`, `about` and these settings alone. Raises ScenarioError."""
        ...


class Learned(Attack, Protocol):
    """What came of learning. It is pickled where several processes attack."""

    @property
    def learned(self) -> Mapping[str, Any]:
        """What it was made from, what that cost and how well it went, for the report: plain numbers and text."""
        ...


def taught(attack: Attack, pool: Pool | None, about: Callable[[], About] | None = None) -> Attack:
    """A learner after its lesson, any other attack as it is. Raises ScenarioError where there is nothing to learn from."""
    if not learns(attack):
        return attack
    if pool is None or about is None:
        raise ScenarioError(f"attack {attack.kind} learns from other latents, got no pool: {POOLS}")
    return attack.learn_from(pool, about())


def learns(attack: object) -> TypeGuard[Learner]:
    return callable(getattr(attack, "learn_from", None))


def as_map(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Any shape as [C, H, W]: vectors are [n, 1, 1], tokens [t, d] are [t, d, 1]."""
    channels, *rest = shape
    height = rest[0] if rest else 1
    width = 1
    for n in rest[1:]:
        width *= n
    return channels, height, width
