"""One batch from payloads to replies: decode, detect, log, compute. Runs on the tail's thread; values in, values out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from edge_server.detectors.panel import Panel
from edge_server.log import ModelLog
from edge_server.queue import Job, Outcome, Taken
from edge_server.refusal import Refused, detected, invalid
from splitcore.errors import CodecError
from splitcore.frame import EDGE_US, Reply
from splitcore.latent import F32
from splitcore.wire.oip import FINAL_KEY, SCORES

_log = logging.getLogger(__name__)

REJECTED_LABEL = -1
"""of a row that a detector rejected, in a reply that has others; its scores are zeros"""


@dataclass(slots=True)
class Done:
    """What came of one batch, for the callers and for the metrics."""

    model: str = ""
    outcomes: list[tuple[Job, Outcome]] = field(default_factory=list)
    cancelled: list[Job] = field(default_factory=list)
    computed_rows: int = 0
    slices: list[int] = field(default_factory=list)
    """rows of every call of the tail"""
    input_ns: int = 0
    detect_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    detected: Mapping[str, int] = field(default_factory=dict)
    """rows by the detector that detected them"""
    rejected_rows: int = 0


class OnDevice(Protocol):
    """A tail, in whatever runs it."""

    @property
    def device(self) -> str: ...

    @property
    def kind(self) -> str:
        """`eager`, `onnxruntime` and so on."""

    def room(self, rows: int) -> F32 | None:
        """Where so many latents may be put, so that the call need not copy them; None: too many. Used again by the next."""

    def __call__(self, latents: F32) -> F32: ...

    def warm_up(self) -> None: ...


def decode(jobs: Sequence[Job], room: Callable[[int], F32 | None] = lambda rows: None) -> F32:
    """The latents [rows, *shape] of all jobs in order: one call a codec, into `room` where there is some. Raises CodecError."""
    rows = sum(job.rows for job in jobs)
    latents = room(rows)
    if latents is None:
        latents = np.empty((rows, *jobs[0].codec.latent.shape), np.float32)
    if all(job.codec is jobs[0].codec for job in jobs):
        jobs[0].codec.decode_into([payload for job in jobs for payload in job.frame.payloads], latents)
        return latents
    at, places = 0, dict[str, tuple[list[int], list[Job]]]()
    for job in jobs:
        where, members = places.setdefault(job.codec.name, ([], []))
        where.extend(range(at, at + job.rows))
        members.append(job)
        at += job.rows
    for where, members in places.values():
        latents[where] = members[0].codec.decode([payload for job in members for payload in job.frame.payloads])
    return latents


class BatchComputer:
    """The steps of one model's batch, in the order that the log's promise needs: what is refused is not logged, what is
    logged is computed, but for the rows of which the log says that a detector rejected them."""

    def __init__(
        self,
        tail: OnDevice,
        log: ModelLog,
        *,
        model: str,
        version: str,
        max_batch_size: int,
        labels_only: bool,
        now_ns: Callable[[], int],
        panel: Panel | None = None,
    ) -> None:
        self.panel = panel
        self._tail, self._log, self._now_ns = tail, log, now_ns
        self._model, self._version = model, version
        self._max_batch_size, self._labels_only = max_batch_size, labels_only

    def __call__(self, taken: Taken) -> Done:
        done = Done(taken.model, list(taken.refused), taken.cancelled)
        if taken.batch:
            try:
                self._run(taken.batch, done)
            except Exception:
                # whatever torch raises (out of memory, a broken device) is this batch's answer; the next one may succeed
                _log.exception("the tail failed on %d requests", len(taken.batch))
                answered = {id(job) for job, _ in done.outcomes}
                left = [job for job in taken.batch if id(job) not in answered]
                _fail(left, done, "the tail failed on this batch; the server's own output says why")
        return done

    def _run(self, batch: list[Job], done: Done) -> None:
        jobs, latents = self._decoded(batch, done)
        if not jobs:
            return
        decoded_ns = self._now_ns()
        done.input_ns = decoded_ns - jobs[0].dequeued_ns
        rejected = None
        if self.panel is not None:
            rejected, done.detected = self.panel.look(jobs, latents)
            done.detect_ns = self._now_ns() - decoded_ns
        try:
            self._log.append(jobs, decoded_ns)
        except OSError as error:
            _log.error("%d requests refused: cannot write %s: %s", len(jobs), self._log.path, error)
            _fail(jobs, done, f"the server's log cannot be written ({error.strerror}); nothing was computed")
            return
        logits = self._logits(latents, done) if rejected is None else self._spared(latents, rejected, done)
        tail_done_ns = self._now_ns()
        done.infer_ns = tail_done_ns - decoded_ns - done.detect_ns
        done.computed_rows = sum(done.slices)
        labels = logits.argmax(axis=1).astype(np.int64, copy=False)
        if rejected is not None:
            labels[rejected] = REJECTED_LABEL
        sound = np.isfinite(logits)
        finite = None if sound.all() else np.asarray(sound.all(axis=1))  # the first look is far cheaper, and mostly enough
        at = 0
        for job in jobs:
            rows = slice(at, at + job.rows)
            at += job.rows
            job.decoded_ns, job.tail_done_ns = decoded_ns, tail_done_ns
            outcome = self._outcome(job, logits[rows], labels[rows], None if finite is None else finite[rows])
            done.outcomes.append((job, outcome))
        done.output_ns = self._now_ns() - tail_done_ns

    def _decoded(self, jobs: list[Job], done: Done) -> tuple[list[Job], F32]:
        """Those whose payloads are what their codec writes; the others get their answer in `done`."""
        try:
            return jobs, decode(jobs, self._tail.room)
        except CodecError:
            pass  # one payload spoils the call of all: find out whose
        good, parts = [], []
        for job in jobs:
            try:
                parts.append(decode([job]))
                good.append(job)
            except CodecError as error:
                done.outcomes.append((job, invalid(str(error))))
        return good, np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _logits(self, latents: F32, done: Done) -> F32:
        """[rows, classes], at most `max_batch_size` rows at once."""
        size, parts = self._max_batch_size, []
        for at in range(0, len(latents), size):
            parts.append(self._tail(latents[at : at + size]))
            done.slices.append(len(parts[-1]))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _spared(self, latents: F32, rejected: NDArray[np.bool_], done: Done) -> F32:
        """[rows, classes]: as `_logits`, zeros for the rows that the tail shall not see."""
        done.rejected_rows = int(rejected.sum())
        if done.rejected_rows == len(latents):
            return np.zeros((len(latents), 1), np.float32)  # nobody sees these: every request is refused
        computed = self._logits(latents[~rejected], done)
        logits = np.zeros((len(latents), computed.shape[1]), np.float32)
        logits[~rejected] = computed
        return logits

    def _outcome(self, job: Job, scores: F32, labels: NDArray[np.int64], finite: NDArray[np.bool_] | None) -> Outcome:
        if job.rejected is not None and job.rejected.all():
            return detected()
        if finite is not None and not finite.all():
            return Refused(
                grpc.StatusCode.INTERNAL,
                "BACKEND",
                f"expected finite scores, the tail gave NaN or infinity for row {int(finite.argmin())}: "
                "the latent is far outside of what the tail was trained on",
            )
        without = self._labels_only or job.frame.labels_only
        took: dict[str, bool | int | str | float] = {FINAL_KEY: True} if job.frame.mark_final else {}
        if job.frame.timed:
            took[EDGE_US] = (job.tail_done_ns - job.received_ns) // 1000
        return Reply(
            id=job.frame.id,
            scores=None if without else scores,
            labels=None if job.frame.outputs == (SCORES,) else labels,
            model=self._model,
            version=self._version,
            parameters=took,
        )


def _fail(jobs: Sequence[Job], done: Done, text: str) -> None:
    done.outcomes += [(job, Refused(grpc.StatusCode.INTERNAL, "BACKEND", text)) for job in jobs]
