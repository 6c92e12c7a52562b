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

from adversary.attacks.base import Answers, Ask, Attack, Case, Pool, Search
from adversary.space import Space
from adversary.verdict import Rows, Verdict, judge
from splitcore.errors import ScenarioError
from splitcore.latent import F32
from splitcore.telemetry.context import Context
from splitcore.threat import BALLS, ThreatModel, absolute_eps

Reason = Literal["success", "blind", "budget", "deadline", "exhausted", "full", "error"]
"""why a held frame went on: an adversarial latent, a blind one, or the original because the queries, the time or the attack
ended, because too much was held already, or because something failed"""


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
    nearest: list[tuple[int, float]] = field(default_factory=list)
    """(number of the query, distance) each time that an adversarial latent came nearer than all before, in the ball or not"""
    label: int | None = None
    """of the clean frame, as the server answered"""
    predicted: int | None = None
    """of what is sent on, as the server answered; None when nobody asked"""
    requests: int = 0
    wall_ms: float = 0.0
    held_ms: float | None = None
    """from the frame's arrival at the relay to the end of its session: what a success needed; None for frames not held"""
    error: str | None = None
    payload: bytes | None = None
    """what to send on in place of the original; None: the original"""


class Session:
    """Ask for the next rows, tell their answers, until `finished`."""

    def __init__(
        self, frame: str, space: Space, attack: Attack, threat: ThreatModel, *,
        rng: np.random.Generator, deadline: float = float("inf"), pool: Pool | None = None
    ) -> None:  # fmt: skip
        if threat.norm not in attack.norms:
            raise ScenarioError(f"attack {attack.kind} has norms {', '.join(attack.norms)}, got {threat.norm}")
        self.frame = frame
        self.space = space
        self.attack = attack
        self.threat = threat
        self.deadline = deadline
        """monotonic seconds"""
        self.ball = BALLS[threat.norm](space.centre, absolute_eps(threat, space.scale), *space.box(threat.box), space.grid)
        steps = np.asarray(space.grid)
        if threat.norm == "linf" and steps.min() > 0 and self.ball.reach < steps.min():
            raise ScenarioError(
                f"eps {threat.eps:g} {threat.eps_unit} is {self.ball.eps:.3g}, below one step of {space.codec.name} "
                f"({steps.min():.3g}): nothing can change on this wire; say at least 1 codec_steps"
            )
        coarse = float(steps.max()) / 2 or 1e-3 * (float(np.abs(space.centre).max(initial=0)) + self.ball.eps)
        self.rounding = coarse * (1.0 if threat.norm == "linf" else float(np.sqrt(space.centre.size))) + self.ball.reach * 1e-3
        """how far rounding may take a point: half a step a coordinate, or what float16 keeps"""
        if space.coupled:
            self.rounding = float("inf")  # there is no bound
        self.finished = False
        self.sections = 2
        """of section searches; whoever knows what a round trip costs sets it before the first ask is told"""
        self.outcome = Outcome(frame=frame, attack=attack.kind, point=threat.point)
        self.trace: Context | None = None
        """its span's place, where the frame is traced"""
        self._rng = rng
        self._pool = pool
        self._search: Search | None = None
        self._asked: Ask | None = None
        self._arrived: F32 | None = None
        self._distance: NDArray[np.float32] | None = None
        self._payloads: list[bytes] = []
        self._classes = 0
        """of the scores; 0: the attack sees labels alone"""
        self._started = time.monotonic()

    def begin(self) -> None:
        """Blind attacks end here, without a query; the others have their first ask ready."""
        if self.attack.feedback == "none":
            self._search = self._perturb(0)
            self._advance(None)
        else:
            self._asked = Ask("clean", self.space.centre[None])

    @property
    def asked(self) -> Ask:
        """What is to be sent now."""
        assert self._asked is not None
        return self._asked

    @property
    def own(self) -> int:
        """The class that its answers are judged by; 0 while none is known."""
        if self.threat.target is not None:
            return self.threat.target
        return self.outcome.label or 0

    def place(self, snapped: F32, distance: NDArray[np.float32] | None = None) -> None:
        """Takes `asked` as it was snapped, [k, *shape], and pulls back in place what rounding took out of the ball.

        `distance` [k]: of those from the centre, where whoever snapped has measured it and `doubtful` had nothing to doubt.
        """
        if distance is None:
            distance = self.ball.distance(snapped)
            left = doubtful(distance, self.ball.reach, self.rounding)
            if left.any():
                left &= self.ball.contains(self.asked.points)
            if left.any():
                nearer = self.space.snap_towards(self.asked.points[left])
                # where coordinates are coupled, a mix of two latents that can arrive is none
                snapped[left] = nearer if self.space.coupled else self.ball.pull_back(snapped[left], nearer)
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
        own = np.full(len(rows.labels), self.own, np.int64)
        self.hear(rows, judge(rows, own, targeted=self.threat.target is not None))

    def hear(self, rows: Rows, verdict: Verdict) -> None:
        """As `tell`, where the rows of many sessions were judged together."""
        if self.finished:
            return
        if self._search is None:
            self._told_clean(rows)
            return
        assert self._arrived is not None and self._distance is not None
        log_p = verdict.log_p
        if log_p is None and self._classes:  # nothing of this ask was answered
            log_p = np.zeros((len(rows.labels), self._classes), np.float32)
        answers = Answers(verdict.loss, verdict.adversarial, self._arrived, self._distance, rows.answered, rows.rejected, log_p)
        if verdict.any_adversarial:
            self._note_nearest(answers)
            inside = answers.adversarial & (answers.distance <= self.ball.reach)
            if inside.any():
                self._succeed(int(inside.argmax()), answers, rows)
                return
        if self.outcome.queries >= self.threat.budget:
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
            said = f" ({rows.why})" if rows.why else ""
            self.end("error", f"the clean query was not answered{said}: nothing to compare with")
            return
        if rows.scores is None and self.attack.feedback == "scores":
            self.end("error", f"attack {self.attack.kind} needs scores, the server gives labels: choose one that needs labels")
            return
        if self.attack.feedback == "scores" and rows.scores is not None:
            self._classes = rows.scores.shape[1]
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
        label = -1 if self.outcome.label is None else self.outcome.label
        case = Case(
            ball=self.ball, space=self.space, budget=budget, rng=self._rng, label=label, target=self.threat.target,
            sections=self.sections, pool=self._pool,
        )  # fmt: skip
        return self.attack.perturb(self.space.centre, case)

    def _advance(self, answers: Answers | None) -> None:
        """Runs the attack to its next ask, or to its end."""
        assert self._search is not None
        try:
            ask = next(self._search) if answers is None else self._search.send(answers)
        except StopIteration as stop:
            self._ended(stop.value)
            return
        left = self.threat.budget - self.outcome.queries
        self._asked = ask if len(ask.points) <= left else Ask(ask.phase, ask.points[:left])

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

    def _note_nearest(self, answers: Answers) -> None:
        nearest = self.outcome.nearest
        first = self.outcome.queries - len(answers.loss) + 1
        for row in np.flatnonzero(answers.adversarial):
            if not nearest or answers.distance[row] < nearest[-1][1]:
                nearest.append((first + int(row), float(answers.distance[row])))

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


def doubtful(distance: NDArray[np.float32], reach: F32 | float, rounding: F32 | float) -> NDArray[np.bool_]:
    """[k]: outside of the ball, but by no more than rounding may have taken what was asked inside."""
    return (distance > reach) & (distance <= reach + rounding)
