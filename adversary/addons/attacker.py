"""Holds frames, attacks them against the live server, and sends on what it found, or the original when it found nothing.

A session and its budget belong to the frame's id: a client that sends a frame again joins the session that runs, or gets what
it came to, and no query is asked twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import asdict

from adversary.attacks import Attack
from adversary.engine import Engine, Job, stream
from adversary.ledger import Kind
from adversary.metrics import Deeds
from adversary.relay import Forward, Order, foreign
from adversary.session import Outcome
from adversary.spans import session_spans
from splitcore.errors import WireError
from splitcore.frame import Frame
from splitcore.journal import Journal, Row
from splitcore.telemetry.tracing import Tracer
from splitcore.threat import ThreatModel
from splitcore.wire import oip
from splitcore.wire.form import Form

log = logging.getLogger(__name__)

DEADLINE_SHARE = 0.8
"""a frame with a deadline of its own is held for at most this share of it: the rest is for the way and the tail"""
MAX_REMEMBERED = 20_000
"""outcomes kept for clients that send a frame again"""


class Attacker:
    """The addon that attacks. Lives on the relay's event loop; sessions run in the campaign's thread."""

    kind: Kind = "forwarded"

    def __init__(
        self, attack: Attack, threat: ThreatModel, engine: Engine, sessions: Journal, *,
        seed: int, order: Order = "overtake", share: float = 1.0, max_held: int = 256, max_held_bytes: int = 64 << 20,
        model: str = "", form: Form = oip, tracer: Tracer | None = None,
        deeds: Deeds | None = None,
    ) -> None:  # fmt: skip
        """`form`: of the frames. `model`: what the attack knows; frames that name another pass. Empty: whatever they name."""
        self.order: Order = order
        self.counts: Counter[str] = Counter()
        """frames held now and in all, sessions by reason, queries"""
        self.attack, self._threat = attack, threat
        self.engine, self._sessions = engine, sessions
        self._model, self._form = model, form
        self._tracer, self._deeds = tracer, deeds or Deeds()
        self._seed, self._share = seed, share
        self._max_held, self._max_held_bytes = max_held, max_held_bytes
        self._held = self._held_bytes = 0
        self._unended: dict[str, int] = {}
        self._outcomes: OrderedDict[str, asyncio.Future[Outcome]] = OrderedDict()
        self._loop = asyncio.get_running_loop()

    def recall(self, sessions: Iterable[Row], spent: Mapping[str, int]) -> None:
        """What an earlier process came to in this run: its outcomes hold, and the queries it asked stay asked.

        `spent`: queries by frame, as the ledgers have them. A session that its process did not end goes on from the record
        when its frame comes again; one whose frame never comes is told at the end.
        """
        for row in sessions:
            fields = {**row, "payload": None if row["payload"] is None else bytes.fromhex(row["payload"])}
            outcome = Outcome(**fields)
            self._recalled(outcome)
            self._deeds.ended_with(outcome)
        self._unended = {frame: queries for frame, queries in spent.items() if frame not in self._outcomes}

    def _recalled(self, outcome: Outcome) -> None:
        future: asyncio.Future[Outcome] = self._loop.create_future()
        future.set_result(outcome)
        self._remember(outcome.frame, future)

    def request(self, frame: Frame, message: bytes) -> Forward | Awaitable[Forward]:
        size = sum(map(len, frame.payloads))
        if foreign(frame, self._model):
            return Forward(message, "foreign", size)
        # each row is somebody's sample, with a session and a budget of its own
        rows = [frame] if frame.rows == 1 else self._form.split(frame)
        known = [outcome for row in rows if (outcome := self._outcomes.get(row.id)) is not None]
        if len(known) == len(rows):
            return self._hold(frame, message, size, known)
        if self._share < 1 and stream(self._seed, frame.id, 1).random() >= self._share:
            return Forward(message, "passed", size)
        if self._held + len(rows) > self._max_held or self._held_bytes + size > self._max_held_bytes:
            for row in rows:
                full = Outcome(frame=row.id, attack=self.attack.kind, point=self._threat.point, reason="full")
                self._tell(full)
                self._recalled(full)
            return Forward(message, "full", size)
        return self._hold(frame, message, size, [self._outcome_of(row) for row in rows])

    def _outcome_of(self, frame: Frame) -> asyncio.Future[Outcome]:
        """What the frame's session comes to: one that runs or ended, or a new one."""
        known = self._outcomes.get(frame.id)
        if known is not None:
            return known
        outcome: asyncio.Future[Outcome] = self._loop.create_future()
        self._remember(frame.id, outcome)
        self._count(outcome, sum(map(len, frame.payloads)))
        self._begin(frame, outcome)
        return outcome

    def _count(self, outcome: asyncio.Future[Outcome], size: int) -> None:
        """A frame is held from its arrival until its session has ended, whether anybody waits for it or not."""
        self._held += 1
        self._held_bytes += size
        self.counts["held"] += 1

        def ended(_: object) -> None:
            self._held -= 1
            self._held_bytes -= size

        outcome.add_done_callback(ended)

    def _begin(self, frame: Frame, outcome: asyncio.Future[Outcome]) -> None:
        self._unended.pop(frame.id, None)
        arrived = time.monotonic()

        def done(result: Outcome) -> None:
            result.held_ms = (time.monotonic() - arrived) * 1e3
            if result.reason == "error":
                log.warning("%r: %s", frame.id, result.error)
            if self._tracer is not None:
                self._tracer.record(*session_spans(frame, result, arrived))
            self._loop.call_soon_threadsafe(self._settle, outcome, result)

        self.engine.submit(Job(frame, self._deadline(frame)), done)

    def _deadline(self, frame: Frame) -> float:
        """Monotonic seconds at which the frame must go on."""
        seconds = []
        if self._threat.deadline_ms is not None:
            seconds.append(self._threat.deadline_ms / 1e3)
        if frame.timeout_us is not None:
            seconds.append(frame.timeout_us / 1e6 * DEADLINE_SHARE)
        return time.monotonic() + min(seconds) if seconds else float("inf")

    def _remember(self, frame: str, outcome: asyncio.Future[Outcome]) -> None:
        self._outcomes[frame] = outcome
        while len(self._outcomes) > MAX_REMEMBERED and next(iter(self._outcomes.values())).done():
            self._outcomes.popitem(last=False)

    def _settle(self, future: asyncio.Future[Outcome], outcome: Outcome) -> None:
        try:
            self._tell(outcome)
        finally:
            # whatever becomes of the books, the frame goes on
            future.set_result(outcome)

    def _tell(self, outcome: Outcome) -> None:
        self.counts[outcome.reason] += 1
        self.counts["queries"] += outcome.queries
        self._deeds.told(outcome)
        row = asdict(outcome)
        row["payload"] = None if outcome.payload is None else outcome.payload.hex()
        self._sessions.append(row)

    def _hold(self, frame: Frame, message: bytes, size: int, outcomes: Sequence[asyncio.Future[Outcome]]) -> Awaitable[Forward]:
        async def wait() -> Forward:
            results = [await asyncio.shield(outcome) for outcome in outcomes]
            why = results[0].reason if len(results) == 1 else _reasons(results)
            if all(result.payload is None for result in results):
                return Forward(message, why, size)
            payloads = [own if result.payload is None else result.payload
                        for own, result in zip(frame.payloads, results, strict=True)]  # fmt: skip
            try:
                return Forward(self._form.replace_payloads(message, payloads), why, sum(map(len, payloads)))
            except WireError as error:
                # another latent under the id of one that was attacked: it is not ours to send in its place
                log.warning("%r goes on as it came: %s", frame.id, error)
                return Forward(message, "error: another latent came under this id", size)

        # a task, since a client that leaves may never come to wait for it
        return asyncio.ensure_future(wait())

    @property
    def held(self) -> int:
        return self._held

    async def close(self) -> None:
        """Ends the campaign: what is held goes on as it came."""
        # its thread may be in the middle of a round; the outcomes that it hands over are settled before this returns
        await asyncio.to_thread(self.engine.close)
        for frame, queries in self._unended.items():
            died = Outcome(frame=frame, attack=self.attack.kind, point=self._threat.point, reason="error", queries=queries)
            died.error = "its session died with the adversary's process, and its frame never came again"
            self._tell(died)
        self._sessions.close()


def _reasons(results: Sequence[Outcome]) -> str:
    """Of the rows of one frame, the most frequent first: `success 3, budget 1`."""
    return ", ".join(f"{reason} {count}" for reason, count in Counter(result.reason for result in results).most_common())
