"""Which cut the next frame goes through: always the same, or the best for the link as it is now.

`replan` predicts each cut's time by Neurosurgeon's rule (splitcore/plan.py) from what the phone measured at its start and what
the running stream shows, and takes the first of the prepared cuts that is about as fast as the fastest: their order is the
user's preference, say by accuracy, and a tolerance of 0 leaves the least time alone to decide. Hysteresis: a cut is left for
one behind it when it is slower by more than the tolerance, and for one before it when that is within half of it; either by
several answers in a row. The time at the edge of a cut that has sent nothing yet is taken to be as of those that have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Protocol

from mobile_client.cuts import Cut
from mobile_client.observed import ObservedLink, Recent
from mobile_client.passes import Replan
from mobile_client.shot import Shot
from splitcore.journal import Row
from splitcore.plan import CutProfile, LinkEstimate, best, predicted_ms

Tell = Callable[[Row], None]
"""writes a row of the plan's journal"""


class Chooser(Protocol):
    """What the feed and the sender need of a policy."""

    cuts: Sequence[Cut]
    """that a frame may go through"""
    current: Cut
    """what the next frame goes through"""
    link: ObservedLink | None
    """None: nobody wants to know"""
    ping_ms: float
    """how often its round trip is measured"""

    def answered(self, shot: Shot, edge_ms: float | None, answered_ns: int) -> None:
        """A frame came back with a label."""
        ...


class FixedChooser:
    """One cut for all frames."""

    def __init__(self, cut: Cut) -> None:
        self.cuts: Sequence[Cut] = [cut]
        self.current = cut
        self.link: ObservedLink | None = None
        self.ping_ms = 0.0

    def answered(self, shot: Shot, edge_ms: float | None, answered_ns: int) -> None:
        return


class Replanner:
    """The best cut for the link as it is now."""

    def __init__(self, policy: Replan, cuts: Sequence[Cut], profiles: Sequence[CutProfile], tell: Tell) -> None:
        """`profiles`: of the cuts, in their order."""
        self.cuts = cuts
        self.current = cuts[0]
        self._observed = ObservedLink(policy.memory)
        self.link: ObservedLink | None = self._observed
        self.ping_ms = policy.ping_ms
        self._policy, self._profiles, self._tell = policy, profiles, tell
        self._edge = {cut.name: Recent(policy.memory) for cut in cuts}
        self._goal, self._in_a_row = cuts[0], 0
        for profile in profiles:
            tell({"event": "profile", "cut": profile.name, "head_ms": profile.head_ms, "encode_ms": profile.encode_ms,
                  "bytes_up": profile.bytes_up})  # fmt: skip
        tell({"event": "switch", "from": None, "to": self.current.name, "why": "the first of the prepared cuts"})

    def answered(self, shot: Shot, edge_ms: float | None, answered_ns: int) -> None:
        sent_ms, answered_ms = shot.sent_ns / 1e6, answered_ns / 1e6
        if edge_ms is None or not 0 <= edge_ms <= answered_ms - sent_ms:
            edge_ms = 0.0  # a server that does not say, or says what cannot be: its time counts as the link's
        else:
            self._edge[shot.cut.name].add(edge_ms)
        self._observed.answer(shot.message_bytes, sent_ms, answered_ms, edge_ms)
        link = self._observed.estimate
        if link is None:
            return
        profiles = self._with_edge()
        predicted = {profile.name: predicted_ms(profile, link) for profile in profiles}
        goal = self._goal_of(predicted, best(profiles, link).name)
        self._in_a_row = self._in_a_row + 1 if goal is self._goal else 1
        self._goal = goal
        if goal is not self.current and self._in_a_row >= self._policy.in_a_row:
            self._switch(goal, shot, link, predicted)

    def _with_edge(self) -> list[CutProfile]:
        known = {name: ms for name, recent in self._edge.items() if (ms := recent.ms_each) is not None}
        others = fmean(known.values()) if known else 0.0
        return [replace(profile, edge_ms=known.get(profile.name, others)) for profile in self._profiles]

    def _goal_of(self, predicted: dict[str, float], fastest: str) -> Cut:
        least = predicted[fastest]
        tolerance = max(self._policy.tolerance_ms, self._policy.tolerance * least)
        goal = next(cut for cut in self.cuts if predicted[cut.name] <= least + tolerance / 2)
        behind = self.cuts.index(goal) > self.cuts.index(self.current)
        return self.current if behind and predicted[self.current.name] <= least + tolerance else goal

    def _switch(self, goal: Cut, shot: Shot, link: LinkEstimate, predicted: dict[str, float]) -> None:
        before, self.current = self.current, goal
        self._tell(
            {
                "event": "switch",
                "from": before.name,
                "to": goal.name,
                "why": f"predicted {predicted[goal.name]:.3g} ms, and {predicted[before.name]:.3g} ms for {before.name}",
                "after": shot.id,
                "rate_up_kbps": link.rate_up_kbps,
                "round_trip_ms": link.round_trip_ms,
                "predicted_ms": predicted,
            }
        )
