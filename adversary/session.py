"""One attack on one frame: it counts, encodes, judges, notes the first success, and stops. The attack claims nothing.

A query is one row that is sent. The budget holds all of them: the clean one that tells what label is to be left, the search,
and whatever the attack starts from. An ask that would overshoot the budget is cut to what is left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adversary.attacks.base import Answers, Ask, Attack, Search
from adversary.space import Space
from splitcore.errors import ScenarioError
from splitcore.latent import F32
from splitcore.threat import BALLS, ThreatModel, absolute_eps

Reason = Literal["success", "blind", "budget", "deadline", "exhausted", "full", "error"]
"""why a held frame went on: an adversarial latent, a blind one, or the original because the queries, the time or the attack
ended, because too much was held already, or because something failed"""


@dataclass(frozen=True, slots=True)
class Rows:
    """The tail's answers to k rows. `answered` [k] is False where a row was rejected or lost."""

    answered: NDArray[np.bool_]
    labels: NDArray[np.int64]
    """[k]; -1 where not answered"""
    scores: F32 | None
    """logits [k, classes]; None where the server gives labels, or the threat model looks at no more"""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a session came to."""

    frame: str
    attack: str
    point: str
    success: bool = False
    reason: Reason = "exhausted"
    queries: int = 0
    by_phase: dict[str, int] = field(default_factory=dict)
    first_success: int | None = None
    """number of the query that succeeded, from 1"""
    distance: float | None = None
    """of what is sent on, from the clean point"""
    label: int | None = None
    """of the clean frame, as the server answered"""
    predicted: int | None = None
    """of what is sent on, as the server answered; None when nobody asked"""
    requests: int = 0
    wall_ms: float = 0.0
    error: str | None = None
    payload: bytes | None = None
    """what to send on in place of the original; None: the original"""


class Session:
    """Ask for the next rows, tell their answers, until `finished`."""

    def __init__(
        self, frame: str, space: Space, attack: Attack, threat: ThreatModel, *,
        rng: np.random.Generator, deadline: float = float("inf")
    ) -> None:  # fmt: skip
        if threat.norm not in attack.norms:
            raise ScenarioError(f"attack {attack.kind} has norms {', '.join(attack.norms)}, got {threat.norm}")
        self.frame = frame
        self.space = space
        self.attack = attack
        self.threat = threat
        self.deadline = deadline
        """monotonic seconds"""
        self.ball = BALLS[threat.norm](space.centre, absolute_eps(threat, space.scale), space.lo, space.hi, space.grid)
        steps = np.asarray(space.grid)
        if threat.norm == "linf" and steps.min() > 0 and self.ball.reach < steps.min():
            raise ScenarioError(
                f"eps {threat.eps:g} {threat.eps_unit} is {self.ball.eps:.3g}, below one step of {space.codec.name} "
                f"({steps.min():.3g}): nothing can change on this wire; say at least 1 codec_steps"
            )
        self.finished = False
        self.outcome = Outcome(frame=frame, attack=attack.kind, point=threat.point)
        self._rng = rng
        self._search: Search | None = None
        self._asked: Ask | None = None
        self._arrived: F32 | None = None
        self._distance: NDArray[np.float32] | None = None
        self._payloads: list[bytes] = []
        self._started = time.monotonic()

    def begin(self) -> None:
        """Blind attacks end here, without a query; the others have their first ask ready."""
        if self.attack.feedback == "none":
            self._search = self._perturb(0)
            self._advance(None)
        else:
            self._ask(Ask("clean", self.space.centre[None]))

    @property
    def asked(self) -> Ask:
        """What is to be sent now."""
        assert self._asked is not None
        return self._asked

    def place(self, snapped: F32) -> None:
        """Takes `asked` as it was snapped, [k, *shape], and pulls back in place what rounding took out of the ball."""
        distance = self.ball.distance(snapped)
        outside = distance > self.ball.reach
        if outside.any():
            left = outside & self.ball.contains(self.asked.points)
            if left.any():
                snapped[left] = self.ball.pull_back(snapped[left], self.space.snap_towards(self.asked.points[left]))
                distance[left] = self.ball.distance(snapped[left])
        self._arrived, self._distance = snapped, distance

    def count(self, payloads: list[bytes]) -> None:
        """Who sends a query counts it: called when `asked` goes out as `payloads`, once, whatever comes back.

        What succeeds is sent on as these very bytes.
        """
        self._payloads = payloads
        ask, outcome = self.asked, self.outcome
        outcome.queries += len(ask.points)
        outcome.by_phase[ask.phase] = outcome.by_phase.get(ask.phase, 0) + len(ask.points)

    def tell(self, rows: Rows) -> None:
        """Who receives the answer judges it."""
        if self.finished:
            return  # too late: the frame has gone on
        if self._search is None:
            self._told_clean(rows)
            return
        answers = self._judge(rows)
        inside = answers.adversarial & (answers.distance <= self.ball.reach)
        if inside.any():
            self._succeed(int(inside.argmax()), answers, rows)
        elif self.outcome.queries >= self.threat.budget:
            self.end("budget")
        else:
            self._advance(answers)

    def end(self, reason: Reason, error: str | None = None) -> None:
        """Ends without success, for a reason from outside: the deadline, a failure."""
        if not self.finished:
            self.outcome.reason, self.outcome.error = reason, error
            self._finish()

    def _told_clean(self, rows: Rows) -> None:
        if not rows.answered[0]:
            self.end("error", "the clean query was not answered: nothing to compare with")
            return
        if rows.scores is None and self.attack.feedback == "scores":
            self.end("error", f"attack {self.attack.kind} needs scores, the server gives labels: choose one that needs labels")
            return
        self.outcome.label = int(rows.labels[0])
        if self.outcome.label == self.threat.target:
            # the frame is what the adversary wants it to be already
            self.outcome.predicted = self.outcome.label
            self.end("exhausted")
            return
        left = self.threat.budget - self.outcome.queries
        if left <= 0:
            self.end("budget")
            return
        self._search = self._perturb(left)
        self._advance(None)

    def _perturb(self, budget: int) -> Search:
        return self.attack.perturb(self.space.centre, ball=self.ball, space=self.space, budget=budget, rng=self._rng)

    def _advance(self, answers: Answers | None) -> None:
        """Runs the attack to its next ask, or to its end."""
        assert self._search is not None
        try:
            ask = next(self._search) if answers is None else self._search.send(answers)
        except StopIteration as stop:
            self._ended(stop.value)
            return
        self._ask(Ask(ask.phase, ask.points[: self.threat.budget - self.outcome.queries]))

    def _ended(self, blind: F32 | None) -> None:
        if blind is None:
            self.end("exhausted")
            return
        self._asked = Ask("blind", blind[None])
        self.place(self.space.snap(blind[None]))
        assert self._arrived is not None and self._distance is not None
        self.outcome.payload = self.space.encode(self._arrived)[0]
        self.outcome.distance = float(self._distance[0])
        self.outcome.reason = "blind"
        self._finish()

    def _ask(self, ask: Ask) -> None:
        points = np.ascontiguousarray(ask.points, np.float32)
        if not np.isfinite(points).all():
            raise ValueError(f"attack {self.attack.kind} asked for a candidate with NaN or infinity in phase {ask.phase}")
        self._asked = Ask(ask.phase, points)

    def _judge(self, rows: Rows) -> Answers:
        """Untargeted: another label than the clean one. Targeted: the target's. Loss: the margin, below 0 on success."""
        assert self._arrived is not None and self._distance is not None
        target, label = self.threat.target, self.outcome.label
        wanted = rows.labels != label if target is None else rows.labels == target
        if rows.scores is None:
            loss = np.full(len(rows.labels), np.inf, np.float32)
        else:
            own = label if target is None else target
            others = rows.scores.copy()
            others[:, own] = -np.inf
            margin = rows.scores[:, own] - others.max(axis=1)  # f_y - max_{j≠y} f_j
            loss = np.where(rows.answered, margin if target is None else -margin, np.float32(np.inf))
        return Answers(loss, wanted & rows.answered, self._arrived, self._distance, rows.answered)

    def _succeed(self, row: int, answers: Answers, rows: Rows) -> None:
        outcome = self.outcome
        assert self._asked is not None
        outcome.success, outcome.reason = True, "success"
        outcome.first_success = outcome.queries - len(self._asked.points) + row + 1
        outcome.distance = float(answers.distance[row])
        outcome.predicted = int(rows.labels[row])
        outcome.payload = self._payloads[row]
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self.outcome.wall_ms = (time.monotonic() - self._started) * 1e3
        if self._search is not None:
            self._search.close()
