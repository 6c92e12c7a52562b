"""Several processes that attack, where one is slower than the server: frames are dealt out by their ids.

Each worker has a campaign, a ledger and a record of its own. One that dies is started again, gets the frames that it had, and
goes on from its record as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import zlib
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adversary.campaign import STACK_MIB, Done
from adversary.engine import Job
from adversary.ledger import Ledger
from adversary.session import Outcome
from splitcore.errors import ScenarioError
from splitcore.node import keep_memory
from splitcore.telemetry.tracing import TraceConfig, Tracer
from splitcore.wire.endpoint import Endpoint
from splitcore.wire.tls import ClientTls

if TYPE_CHECKING:
    from adversary.behaviour import AttackBehaviour

log = logging.getLogger(__name__)

MAX_DEATHS = 5
"""of one worker, before its frames are given up: what kills it will kill it again"""
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Place:
    """What a worker needs to know to be the adversary that its parent is."""

    known: Path | Endpoint
    """an artefact's folder, or what a foreign endpoint said of itself"""
    upstream: str
    state: Path
    data_dir: Path | None
    trusted: frozenset[str]
    tls: ClientTls | None = None
    """how the server is reached; None: in clear text"""
    trace: TraceConfig | None = None


def ledgers(state: Path, run: str | None = None) -> list[Path]:
    """The workers' ledgers, of one run or of all."""
    return sorted((state / "workers").glob("*.jsonl" if run is None else f"{run}.*-of-*.jsonl"))


def _work(place: Place, behaviour: AttackBehaviour, number: int, pipe: Connection) -> None:
    """A worker's life: jobs in, outcomes out, until the pipe says None, or breaks because the parent is gone."""
    from adversary.behaviour import Workshop
    from splitcore.artefact import Artefact

    # a terminal's Ctrl-C reaches the whole group; the parent ends its workers in order
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_memory(STACK_MIB)
    lock = threading.Lock()

    def tell(message: object) -> None:
        with lock:
            pipe.send(message)

    try:
        name = f"{behaviour.run}.{number}-of-{behaviour.workers}"
        ledger = Ledger(place.state / "workers" / f"{name}.jsonl")
        known = Artefact(place.known) if isinstance(place.known, Path) else place.known
        tracer = None if place.trace is None else Tracer(f"adversary.{number}", place.trace)
        workshop = Workshop(
            known, place.upstream, place.state, ledger, place.data_dir, trusted=place.trusted, tls=place.tls, tracer=tracer
        )
        engine = workshop.engine(behaviour, workshop.record_path(behaviour.run) / f"{number}-of-{behaviour.workers}")
    except Exception as error:  # whatever kept it from beginning is the parent's to tell
        tell(f"{type(error).__name__}: {error}")
        return
    tell(None)
    try:
        while (job := pipe.recv()) is not None:
            engine.submit(job, lambda outcome: tell((outcome, ledger.counts)))
    except EOFError:
        os._exit(1)  # the parent was killed: what is out stays on record
    engine.close()
    if tracer is not None:
        tracer.close()
    tell(None)


@dataclass(eq=False)
class _Worker:
    number: int
    process: SpawnProcess
    pipe: Connection
    jobs: dict[str, tuple[Job, Done]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    ready: bool = False


class Crew:
    """An engine of `behaviour.workers` processes."""

    def __init__(self, place: Place, behaviour: AttackBehaviour) -> None:
        """Raises ScenarioError where a worker cannot begin, there are more of them than cores, or this run was begun with
        another number of them."""
        self._place, self._behaviour = place, behaviour
        most = max(2, os.cpu_count() or 1)
        if behaviour.workers > most:
            raise ScenarioError(f"expected at most {most} workers, one a core, got {behaviour.workers}: more are no faster")
        others = [path.name for path in ledgers(place.state, behaviour.run)
                  if not path.name.endswith(f"-of-{behaviour.workers}.jsonl")]  # fmt: skip
        if others:
            raise ScenarioError(
                f"expected {behaviour.workers} workers as when run {behaviour.run} was begun, found {', '.join(others)}: "
                "frames would meet another worker and have a second budget; say that number, or another run"
            )
        self._lock = threading.Lock()
        self._closing = False
        self._workers = [self._start(number) for number in range(behaviour.workers)]
        self._threads = [
            threading.Thread(target=self._listen, args=(worker,), name=f"worker {worker.number}", daemon=True)
            for worker in self._workers
        ]
        for worker in self._workers:
            failure = worker.pipe.recv()
            if failure is not None:
                self._kill()
                raise ScenarioError(f"worker {worker.number} cannot begin: {failure}")
            worker.ready = True
        for thread in self._threads:
            thread.start()

    def _start(self, number: int) -> _Worker:
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(
            target=_work, args=(self._place, self._behaviour, number, theirs), name=f"adversary worker {number}", daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(number, process, ours)

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid or 0 for worker in self._workers]

    @property
    def deaths(self) -> int:
        """Of its workers so far."""
        return sum(worker.deaths for worker in self._workers)

    @property
    def counts(self) -> Counter[str]:
        with self._lock:
            return sum((worker.counts for worker in self._workers), Counter())

    def submit(self, job: Job, done: Done) -> None:
        worker = self._workers[zlib.crc32(job.frame.id.encode()) % len(self._workers)]
        job = job.portable()
        with self._lock:
            if worker.ready:
                worker.jobs[job.frame.id] = (job, done)
                self._send(worker, job)
                return
        done(self._given_up(job, f"worker {worker.number} died {worker.deaths} times"))

    @staticmethod
    def _send(worker: _Worker, job: Job | None) -> None:
        # where it died, the listener starts another, which gets all of its jobs
        with contextlib.suppress(OSError):
            worker.pipe.send(job)

    def _listen(self, worker: _Worker) -> None:
        while True:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                if not self._revive(worker):
                    return
                continue
            if message is None:
                return  # it was closed
            outcome, counts = message
            with self._lock:
                worker.counts = counts
                entry = worker.jobs.pop(outcome.frame, None)
            if entry is not None:
                entry[1](outcome)

    def _revive(self, worker: _Worker) -> bool:
        """Another process in the dead one's place, with its jobs; False where there is no point."""
        worker.process.join()
        worker.deaths += 1
        log.warning("worker %d died with code %s, %d frames are begun again from its record", worker.number,
                    worker.process.exitcode, len(worker.jobs))  # fmt: skip
        failure: object = f"it died {worker.deaths} times"
        if not self._closing and worker.deaths < MAX_DEATHS:
            again = self._start(worker.number)
            try:
                failure = again.pipe.recv()
            except EOFError:
                failure = "it died at once"
            if failure is None:
                with self._lock:
                    worker.process, worker.pipe = again.process, again.pipe
                    for job, _ in worker.jobs.values():
                        self._send(worker, job)
                    if self._closing:
                        self._send(worker, None)
                return True
        with self._lock:
            worker.ready = False
            left, worker.jobs = list(worker.jobs.values()), {}
        for job, done in left:
            done(self._given_up(job, f"worker {worker.number}: {failure}"))
        return False

    def _given_up(self, job: Job, reason: str) -> Outcome:
        behaviour = self._behaviour
        attack: Any = behaviour.attack
        return Outcome(frame=job.frame.id, attack=attack.kind, point=behaviour.threat.point, reason="error", error=reason)

    def close(self) -> None:
        self._closing = True
        with self._lock:
            for worker in self._workers:
                self._send(worker, None)
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.process.join(timeout=10)
        self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.pipe.close()
