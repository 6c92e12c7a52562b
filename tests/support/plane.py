"""A flat boundary around one latent, and conversations with a search about it, ask by ask."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from tails import spec, wire_spaces

from adversary.attacks import Answers, Ask, Case, Pool
from splitcore.codec import fit
from splitcore.latent import F32
from splitcore.threat import BALLS, Norm

T = TypeVar("T")


class Plane:
    """Adversarial is what lies farther than `distance` (l2) from the latent z [*shape] along the unit normal n [*shape]."""

    def __init__(
        self, shape: tuple[int, ...], *, norm: Norm = "l2", codec: str = "identity", distance: float = 1.0, seed: int = 0,
        budget: int = 1000, sections: int = 2, pool: Pool | None = None, box: tuple[float, float] | None = None,
        target: int | None = None,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        self.codec = fit(codec, spec(shape))
        self.z = self.codec.snap(rng.standard_normal((1, *shape)).astype(np.float32))[0]
        n = rng.standard_normal(shape).astype(np.float32)
        self.n = n / np.float32(np.linalg.norm(n))
        self.distance = distance
        [space] = wire_spaces(self.codec, self.z[None])
        lo, hi = (space.lo, space.hi) if box is None else (np.full(1, bound, np.float32) for bound in box)
        ball = BALLS[norm](space.centre, 1e-9, lo, hi, space.grid)
        self.case = Case(
            ball=ball, space=space, budget=budget, rng=np.random.default_rng(seed + 1), label=0, target=target,
            sections=sections, pool=pool,
        )  # fmt: skip
        self.closest = distance if norm == "l2" else distance / float(np.abs(self.n).sum())
        """the closed form: the least distance of an adversarial point, in the norm"""

    def beyond(self, points: F32) -> NDArray[np.float64]:
        """[k]: how far each of [k, *shape] lies on the adversarial side."""
        offsets = (points.astype(np.float64) - self.z).reshape(len(points), -1)
        beyond: NDArray[np.float64] = offsets @ self.n.ravel().astype(np.float64) - self.distance
        return beyond

    def answer(self, ask: Ask, answered: NDArray[np.bool_] | None = None) -> Answers:
        """What a server behind the codec says; nothing about rows that are not `answered`."""
        arrived = self.codec.snap(np.ascontiguousarray(ask.points))
        assert np.isfinite(ask.points).all()
        assert ask.points.dtype == np.float32
        told = np.ones(len(arrived), bool) if answered is None else answered
        beyond = self.beyond(arrived)
        loss = np.where(told, -beyond, np.inf).astype(np.float32)
        return Answers(loss, (beyond > 0) & told, arrived, self.case.ball.distance(arrived), told, ~told)

    def converse(
        self, search: Generator[Ask, Answers, T], *, rows: int = 100_000,
        answered: Callable[[int, Ask], NDArray[np.bool_] | None] = lambda number, ask: None,
    ) -> Conversation[T]:  # fmt: skip
        """All asks and answers until the search ends or `rows` were asked. `answered` says which rows of an ask were."""
        talk: Conversation[T] = Conversation()
        try:
            ask = next(search)
            while talk.rows + len(ask.points) <= rows:
                answers = self.answer(ask, answered(len(talk.asks), ask))
                talk.asks.append(ask)
                talk.answers.append(answers)
                ask = search.send(answers)
        except StopIteration as stop:
            talk.result, talk.ended = stop.value, True
        return talk


class Conversation(Generic[T]):
    """What was asked and answered."""

    def __init__(self) -> None:
        self.asks: list[Ask] = []
        self.answers: list[Answers] = []
        self.result: Any = None
        self.ended = False

    @property
    def rows(self) -> int:
        return sum(len(ask.points) for ask in self.asks)

    @property
    def phases(self) -> list[str]:
        """In order, each run of equal ones once."""
        names = [ask.phase for ask in self.asks]
        return [name for name, before in zip(names, [None, *names], strict=False) if name != before]

    def of(self, phase: str) -> list[tuple[Ask, Answers]]:
        return [(ask, answers) for ask, answers in zip(self.asks, self.answers, strict=True) if ask.phase == phase]

    @property
    def closest(self) -> float:
        """The least distance of an adversarial point."""
        return min(float(answers.distance[answers.adversarial].min(initial=np.inf)) for answers in self.answers)
