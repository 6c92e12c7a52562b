"""The dynamic batcher: the event loop puts requests in, one thread takes batches out, computes them, and hands the
answers back to the loop with one call a batch. torch never runs on the event loop.

Every model has a queue of its own with all of the settings' room, so no batch mixes models and a flood for one refuses
nothing of another. Models take turns by batches: one waits at most for a batch of each other.

What a batch takes is learned from those before it, a model each, and decides who is refused because it would be late.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable

from edge_server.batch import Done
from edge_server.forecast import Forecast
from edge_server.policy import BatchSettings
from edge_server.queue import BatchQueue, Job, Taken
from edge_server.refusal import Refused
from splitcore.telemetry.clock import now_ns as monotonic_ns

LAG_MEMORY = 0.97
"""what is left of a lag after another answer: the worst of the last few dozen counts, not the mean"""
SLIP_MEMORY, MAX_SLIP = 0.995, 1.3
"""likewise of what forecasts fell short by; three tenths at most, for one stall should not refuse everybody"""


class Batcher:
    """Made and used on the event loop; `compute` and `warm_up` run on the batcher's own thread."""

    def __init__(
        self,
        settings: BatchSettings,
        compute: Callable[[Taken], Done],
        *,
        warm_up: Callable[[], None] = lambda: None,
        on_done: Callable[[Done], None] = lambda done: None,
        now_ns: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.settings = settings
        self._compute, self._warm_up, self._on_done, self._now_ns = compute, warm_up, on_done, now_ns
        self._queues: dict[str, BatchQueue] = {}
        """by model, the one whose turn was longest ago first"""
        self._forecasts: dict[str, Forecast] = {}
        self._computing = ""
        """the model of the batch that is computed now"""
        self.lag_ns = 0.0
        """from a batch's end to its answers' leaving, at the worst lately: they are promised no sooner"""
        self.slip = 1.0
        """how many times as long as forecast it took until an answer left, at the worst lately"""
        self._changed = threading.Condition()
        self._tasks: deque[Callable[[], None]] = deque()
        self._emptied: dict[str, asyncio.Event] = {}
        """of the queues that are to be forgotten when they are empty"""
        self._held = self._flushing = self._closing = self._waiting = False
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._unanswered = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._serve, name="tail", daemon=True)

    async def start(self) -> None:
        """Returns when the tail is warm; raises what its first run raised."""
        self._thread.start()
        await self._ready

    @property
    def alive(self) -> bool:
        """False when the thread has ended: nothing would be computed any more."""
        return self._thread.is_alive()

    @property
    def pending(self) -> tuple[int, int]:
        """(requests, rows) that wait, for whatever model."""
        with self._changed:
            return sum(map(len, self._queues.values())), sum(queue.rows for queue in self._queues.values())

    def pending_for(self, model: str) -> tuple[int, int]:
        """(requests, rows) that wait in one model's queue."""
        with self._changed:
            queue = self._queues.get(model)
            return (0, 0) if queue is None else (len(queue), queue.rows)

    def submit(self, job: Job) -> None:
        """From the event loop. Raises Refused when its model's queue is full, or the request would be answered too late. Else
        `job.caller.answer` comes, once."""
        now_ns = self._now_ns()
        with self._changed:
            queue = self._queues.get(job.model)
            if queue is None:
                queue = self._queues[job.model] = BatchQueue(self.settings)
                self._forecasts[job.model] = Forecast()
            line = self._forecasts[job.model].line(now_ns)
            pushed_out = queue.put(job, now_ns, line, lambda: self._busy_ns(job.model, now_ns), self.slip)
            if self._waiting:
                self._changed.notify()
        self._unanswered += 1
        self._idle.clear()
        if pushed_out:
            self._deliver(Done(job.model, list(pushed_out)))

    def left(self, job: Job) -> None:
        """From the event loop: an answer is on the wire."""
        now_ns = self._now_ns()
        if job.tail_done_ns:  # it was computed
            self.lag_ns = max(now_ns - job.tail_done_ns, self.lag_ns * LAG_MEMORY)
        self._took(job, now_ns)

    def _took(self, job: Job, now_ns: int) -> None:
        """One that was let in is answered, or was taken out as too late: what its forecast was worth."""
        if job.promised_ns is not None:
            took = (now_ns - job.received_ns) / max(job.promised_ns - job.received_ns, 1)
            self.slip = max(min(took, MAX_SLIP), 1 + (self.slip - 1) * SLIP_MEMORY)

    def _busy_ns(self, model: str, now_ns: int) -> float:
        """Until this model has the tail: the batch that is computed, and one of each other model that waits."""
        size = self.settings.max_batch_size
        computing = self._forecasts.get(self._computing)
        left_ns = computing.left_ns(now_ns, size) if computing else 0.0
        others = (
            self._forecasts[other].line(now_ns).ns(min(queue.rows, size), size)
            for other, queue in self._queues.items()
            if other != model and len(queue)
        )
        return self.lag_ns + left_ns + sum(others)

    async def run(self, task: Callable[[], None]) -> None:
        """On the tail's thread, between two batches; what those before it gave is handed out when this returns.

        Raises what the task raised, RuntimeError when the thread has ended.
        """
        done: asyncio.Future[None] = self._loop.create_future()

        def settle(error: Exception | None) -> None:
            if not done.cancelled():
                done.set_result(None) if error is None else done.set_exception(error)

        def settled() -> None:
            try:
                task()
            except Exception as error:
                self._loop.call_soon_threadsafe(settle, error)
            else:
                self._loop.call_soon_threadsafe(settle, None)

        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise RuntimeError("the batcher is closed: nothing runs on the tail's thread any more")
            self._tasks.append(settled)
            self._changed.notify()
        await done

    async def retire(self, model: str) -> None:
        """Returns when the last request for a model, for which no more will come, is answered. Its queue is forgotten."""
        if self.pending_for(model)[0]:
            await self._emptied.setdefault(model, asyncio.Event()).wait()
        with contextlib.suppress(RuntimeError):  # closed: everything is answered
            await self.run(lambda: None)
        with self._changed:
            self._queues.pop(model, None)
            self._forecasts.pop(model, None)

    def hold(self) -> None:
        """No batch leaves until `release`: batches form as a test wants them (TRITONSERVER_DELAY_SCHEDULER)."""
        with self._changed:
            self._held = True

    def release(self) -> None:
        """What has queued up meanwhile leaves now."""
        with self._changed:
            self._held = False
            self._changed.notify()

    async def flush(self) -> None:
        """Everything that waits is computed without delay; returns when all of it is answered."""
        with self._changed:
            self._flushing, self._held = True, False
            self._changed.notify()
        await self._idle.wait()

    async def close(self) -> None:
        """Flushes, then ends the thread."""
        if self._thread.is_alive():
            await self.flush()
            with self._changed:
                self._closing = True
                self._changed.notify()
            await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        try:
            self._warm_up()
        except Exception as error:
            self._loop.call_soon_threadsafe(self._ready.set_exception, error)
            return
        self._loop.call_soon_threadsafe(self._ready.set_result, None)
        while (taken := self._next()) is not None:
            if isinstance(taken, Taken):
                done = self._compute(taken)
                self._forecasts[taken.model].end(self._now_ns())
                self._loop.call_soon_threadsafe(self._deliver, done)
            else:
                taken()

    def _next(self) -> Taken | Callable[[], None] | None:
        """Waits for the next batch or task; None when the batcher was closed."""
        with self._changed:
            while True:
                if self._tasks:
                    return self._tasks.popleft()
                waiting = {} if self._held else {model: queue for model, queue in self._queues.items() if len(queue)}
                if not waiting:
                    if self._closing:
                        return None
                    self._wait(None)
                    continue
                now_ns = self._now_ns()
                wait_ns = {model: queue.due_ns() - now_ns for model, queue in waiting.items()}
                for model, queue in waiting.items():
                    if wait_ns[model] <= 0 or self._flushing:
                        self._queues[model] = self._queues.pop(model)  # to the end of the row
                        forecast = self._forecasts[model]
                        taken = queue.take(now_ns, forecast.line(now_ns))
                        taken.model = model
                        forecast.begin(taken.rows, now_ns)
                        self._computing = model
                        return taken
                self._wait(min(wait_ns.values()) / 1e9)

    def _wait(self, seconds: float | None) -> None:
        """For `notify`, which costs whoever calls it, so nobody does while this thread computes."""
        self._waiting = True
        self._changed.wait(seconds)
        self._waiting = False

    def _deliver(self, done: Done) -> None:
        for job, outcome in done.outcomes:
            job.caller.answer(job, outcome)
            if isinstance(outcome, Refused) and outcome.reason == "REJECTED_DEADLINE":
                self._took(job, self._now_ns())
        self._unanswered -= len(done.outcomes) + len(done.cancelled)
        if not self._unanswered:
            self._idle.set()
        if done.model in self._emptied and not self.pending_for(done.model)[0]:
            self._emptied.pop(done.model).set()
        self._on_done(done)
