"""Which requests go into the next batch of one model. Arithmetic only: no thread, no clock, no socket.

Levels of priority, strictly one before the other; within a level, fairly by client (fair.py). A request that cannot be answered
within its deadline is refused when it comes, by what waits before it and what a batch takes (forecast.py), and looked at again
when its batch is formed. Settings and their meanings are in policy.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_server.fair import FairQueue
from edge_server.forecast import NOTHING, Line
from edge_server.policy import BatchSettings, QueuePolicy
from edge_server.refusal import Refused, full, too_late
from splitcore.codec import Codec
from splitcore.frame import Frame, Reply

__all__ = ["BatchQueue", "BatchSettings", "Caller", "Job", "Outcome", "QueuePolicy", "Taken"]

Outcome: TypeAlias = Reply | Refused


class Caller(Protocol):
    """Who waits for the answer: a unary call or a stream."""

    gone: bool
    """set when the call has ended: nobody will read the answer"""

    identity: str
    """who asks: a token's name, a certificate's, or a connection; fairness goes by it"""
    trace: str
    """W3C context of the call, for requests that bring none of their own"""

    def answer(self, job: Job, outcome: Outcome) -> None:
        """Called on the event loop, once a job."""


@dataclass(slots=True, eq=False)
class Job:
    """A frame that waits to be computed, and the times of its way through the server (monotonic, ns)."""

    frame: Frame
    codec: Codec
    caller: Caller
    received_ns: int
    deadline_ns: int | None = None
    """when its answer is worth nothing any more: the call's own deadline, or its timeout where that refuses"""
    payload_bytes: int = 0
    model: str = ""
    """the key of the model that it goes to (`Model.key`): the frame itself may leave names and version out"""
    promised_ns: int | None = None
    """when it was to be answered, by the forecast that let it in; None: it has no deadline, or there was no forecast"""
    delayed_ns: int | None = None
    """when it goes behind the others: its timeout, where that delays"""
    detected: dict[str, list[int]] | None = None
    """its rows that detectors detected, by the detector's kind; None: none was"""
    rejected: NDArray[np.bool_] | None = None
    """[rows]: those that are not computed; None: all are"""
    dequeued_ns: int = 0
    decoded_ns: int = 0
    tail_done_ns: int = 0

    @property
    def rows(self) -> int:
        return len(self.frame.payloads)


@dataclass(slots=True)
class Taken:
    """What left a model's queue together."""

    batch: list[Job] = field(default_factory=list)
    refused: list[tuple[Job, Refused]] = field(default_factory=list)
    cancelled: list[Job] = field(default_factory=list)
    model: str = ""

    @property
    def rows(self) -> int:
        return sum(job.rows for job in self.batch)


class Level:
    """What waits at one level of priority."""

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.waiting: FairQueue[Job] = FairQueue()
        self.delayed: deque[Job] = deque()
        """their timeouts have passed: behind everything of this level, before the next one"""
        self.delayed_rows = self.delayed_bytes = 0

    def __len__(self) -> int:
        return len(self.waiting) + len(self.delayed)

    @property
    def rows(self) -> int:
        return self.waiting.rows + self.delayed_rows

    @property
    def bytes(self) -> int:
        return self.waiting.payload_bytes + self.delayed_bytes

    def head(self) -> Job | None:
        return self.waiting.head() or (self.delayed[0] if self.delayed else None)

    def pop(self) -> Job:
        if len(self.waiting):
            return self.waiting.pop()
        job = self.delayed.popleft()
        self.delayed_rows -= job.rows
        self.delayed_bytes -= job.payload_bytes
        return job

    def delay(self, job: Job) -> None:
        job.delayed_ns = None
        self.delayed.append(job)
        self.delayed_rows += job.rows
        self.delayed_bytes += job.payload_bytes


class BatchQueue:
    """One model's requests. `put` and `take` are called under the batcher's lock."""

    def __init__(self, settings: BatchSettings) -> None:
        self.settings = settings
        self._levels = tuple(map(Level, settings.policies))

    def __len__(self) -> int:
        return sum(map(len, self._levels))

    @property
    def rows(self) -> int:
        return sum(level.rows for level in self._levels)

    @property
    def bytes(self) -> int:
        return sum(level.bytes for level in self._levels)

    def put(
        self, job: Job, now_ns: int = 0, line: Line = NOTHING, busy_ns: Callable[[], float] = lambda: 0.0, slip: float = 1.0
    ) -> list[tuple[Job, Refused]]:
        """Whose requests made room for this one, and what to tell them. Raises Refused at once when there is no room, or no
        time: `busy_ns` says how long until the tail is free, then each batch takes what `line` says, and all of it `slip`
        times as long."""
        settings = self.settings
        at = settings.level(job.frame.priority)
        level = self._levels[at]
        timeout_us = level.policy.timeout_us(job.frame.timeout_us)
        if timeout_us is not None:
            until_ns = job.received_ns + timeout_us * 1000
            if level.policy.timeout_action == "DELAY":
                job.delayed_ns = until_ns
            else:
                job.deadline_ns = until_ns if job.deadline_ns is None else min(job.deadline_ns, until_ns)
        client = job.caller.identity
        if job.deadline_ns is not None and line is not NOTHING:
            before = sum(above.rows for above in self._levels[:at]) + level.waiting.before(client, job.rows)
            forecast_ns = busy_ns() + line.ns(before + job.rows, settings.max_batch_size)
            job.promised_ns, answered_ns = now_ns + int(forecast_ns), now_ns + slip * forecast_ns
            if answered_ns > job.deadline_ns:
                raise too_late(
                    f"{before} rows wait before it, so it would take {(answered_ns - job.received_ns) / 1e3:.0f} us",
                    (job.deadline_ns - job.received_ns) // 1000, settings.status,
                )  # fmt: skip
        over_rows = level.rows + job.rows - level.policy.max_queue_size
        over_bytes = self.bytes + job.payload_bytes - settings.max_queue_bytes
        out = level.waiting.make_room(client, job, over_rows, over_bytes)
        if out is None:
            drained_ns = busy_ns() + line.ns(level.rows, settings.max_batch_size)
            raise full(
                f"{level.rows} rows ({self.bytes} bytes) wait, {job.rows} more ({job.payload_bytes} bytes) would pass "
                f"max_queue_size {level.policy.max_queue_size} rows or {settings.max_queue_bytes} bytes",
                drained_ns, settings.status,
            )  # fmt: skip
        level.waiting.put(client, job)
        return [(one, _pushed_out(one, settings)) for one in out]

    def due_ns(self) -> int:
        """When the next batch should leave: at once when it is full or of a preferred size, else when its oldest request has
        waited enough."""
        settings = self.settings
        enough = min(settings.preferred_batch_size, default=settings.max_batch_size)
        if not settings.max_queue_delay_microseconds or self.rows >= enough:
            return 0
        oldest_ns = min(job.received_ns for job in self._oldest())
        return oldest_ns + settings.max_queue_delay_microseconds * 1000

    def take(self, now_ns: int, line: Line = NOTHING) -> Taken:
        """Whole requests, as many as fit; one that fits no batch goes alone.

        Those whose caller has gone, or that would be answered too late, leave too, but not into the batch; and the batch ends
        where one more would make another late.
        """
        taken, rows, until_ns = Taken(), 0, None
        limit = self._limit(now_ns)
        while (level := self._first()) is not None:
            job = level.head()
            assert job is not None
            taken.model = job.model
            if job.delayed_ns is not None and now_ns >= job.delayed_ns and not job.caller.gone:
                level.delay(level.pop())
                continue
            deadline_ns, gone, answered_ns = job.deadline_ns, job.caller.gone, float(now_ns)
            if deadline_ns is not None:
                answered_ns += line.ns(job.rows, limit)
            late = deadline_ns is not None and (now_ns >= deadline_ns or answered_ns > deadline_ns)
            if rows and not (gone or late):
                if deadline_ns is not None:
                    deadline_ns = deadline_ns if until_ns is None else min(until_ns, deadline_ns)
                else:
                    deadline_ns = until_ns
                together = rows + job.rows
                if together > limit or (deadline_ns is not None and now_ns + line.ns(together, limit) > deadline_ns):
                    break
            level.pop()
            job.dequeued_ns = now_ns
            if gone:
                taken.cancelled.append(job)
            elif late:
                taken.refused.append((job, self._late(job, now_ns, answered_ns)))
            else:
                taken.batch.append(job)
                rows += job.rows
                until_ns = deadline_ns
                if rows >= limit:
                    break
        return taken

    def _first(self) -> Level | None:
        """The highest level at which something waits."""
        for level in self._levels:
            if len(level):
                return level
        return None

    def _limit(self, now_ns: int) -> int:
        """Rows of this batch: the largest preferred size that there are rows for, until somebody has waited enough."""
        settings = self.settings
        fit = [size for size in settings.preferred_batch_size if size <= self.rows]
        if not fit or not settings.max_queue_delay_microseconds:
            return settings.max_batch_size
        oldest_ns = min(job.received_ns for job in self._oldest())
        waited_enough = now_ns - oldest_ns >= settings.max_queue_delay_microseconds * 1000
        return settings.max_batch_size if waited_enough else max(fit)

    def _oldest(self) -> Iterator[Job]:
        for level in self._levels:
            yield from level.waiting
            yield from list(level.delayed)[:1]

    def _late(self, job: Job, now_ns: int, answered_ns: float) -> Refused:
        waited_us = (now_ns - job.received_ns) // 1000
        predicted = f" and would take {(answered_ns - now_ns) / 1e3:.0f} us more" if answered_ns > now_ns else ""
        return too_late(
            f"waited {waited_us} us in the queue{predicted}",
            ((job.deadline_ns or 0) - job.received_ns) // 1000, self.settings.status,
        )  # fmt: skip


def _pushed_out(job: Job, settings: BatchSettings) -> Refused:
    return full(
        f"these {job.rows} rows made room for a client that holds less, in a queue of max_queue_size "
        f"{settings.max_queue_size} rows", None, settings.status,
    )  # fmt: skip
