"""Which requests go into the next batch. Arithmetic only: no thread, no clock, no socket.

The names and their meanings are those of Triton's dynamic batcher (model_config.proto, ModelDynamicBatching and
ModelQueuePolicy), except that `max_queue_size` counts rows, because a request here carries 1 to 4096 of them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import grpc

from edge_server.refusal import Refused
from splitcore.codec import Codec
from splitcore.frame import Frame, Reply


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How requests wait, and how many of them are computed at once."""

    max_batch_size: int = 64
    """rows computed at once at most; a request with more is computed in slices"""
    max_queue_delay_microseconds: int = 0
    """how long the oldest request waits for others; 0: whatever is queued goes the moment the tail is free"""
    max_queue_size: int = 4096
    """rows that may wait; a request above that is refused at once"""
    max_queue_bytes: int = 512 << 20
    """bytes of payload that may wait, so that large latents cannot take the memory that `max_queue_size` rows would"""

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_queue_size", "max_queue_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of 1 or more, got {getattr(self, name)}")
        if self.max_queue_delay_microseconds < 0:
            delay = self.max_queue_delay_microseconds
            raise ValueError(f"expected max_queue_delay_microseconds of 0 or more, got {delay}")


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
    payload_bytes: int = 0
    model: str = ""
    """the key of the model that it goes to (`Model.key`): the frame itself may leave names and version out"""
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


class BatchQueue:
    """One model's requests: first come, first served. `put` and `take` are called under the batcher's lock."""

    def __init__(self, settings: BatchSettings) -> None:
        self.settings = settings
        self.rows = self.bytes = 0
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Raises Refused at once when there is no room."""
        settings = self.settings
        if self.rows + job.rows > settings.max_queue_size or self.bytes + job.payload_bytes > settings.max_queue_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "REJECTED_FULL",
                f"Exceeds maximum queue size: {self.rows} rows ({self.bytes} bytes) wait, {job.rows} more "
                f"({job.payload_bytes} bytes) would pass max_queue_size {settings.max_queue_size} rows or "
                f"{settings.max_queue_bytes} bytes: ask again later, or with fewer rows",
            )
        self._jobs.append(job)
        self.rows += job.rows
        self.bytes += job.payload_bytes

    def due_ns(self) -> int:
        """When the next batch should leave: at once when it is full, else when its oldest request has waited enough."""
        if self.rows >= self.settings.max_batch_size:
            return 0
        return self._jobs[0].received_ns + self.settings.max_queue_delay_microseconds * 1000

    def take(self, now_ns: int) -> Taken:
        """Whole requests from the front, as many as fit; one that fits no batch goes alone.

        Those whose deadline has passed, or whose caller has gone, leave too, but not into the batch.
        """
        taken, rows = Taken(model=self._jobs[0].model if self._jobs else ""), 0
        while self._jobs:
            job = self._jobs[0]
            alive = not job.caller.gone and (job.deadline_ns is None or now_ns < job.deadline_ns)
            if alive and rows and rows + job.rows > self.settings.max_batch_size:
                break
            self._jobs.popleft()
            self.rows -= job.rows
            self.bytes -= job.payload_bytes
            job.dequeued_ns = now_ns
            if alive:
                taken.batch.append(job)
                rows += job.rows
                if rows >= self.settings.max_batch_size:
                    break
            elif job.caller.gone:
                taken.cancelled.append(job)
            else:
                taken.refused.append((job, _expired(job, now_ns)))
        return taken


def _expired(job: Job, now_ns: int) -> Refused:
    return Refused(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "REJECTED_DEADLINE",
        f"Request timeout expired: waited {(now_ns - job.received_ns) // 1000} us in the queue, "
        f"allowed were {((job.deadline_ns or 0) - job.received_ns) // 1000} us; it was not computed",
    )
