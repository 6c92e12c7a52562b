"""What answers "attack this frame": a campaign in this process. `crew.py` shards frames over several such processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from adversary.attacks import Attack, Pool
from adversary.campaign import Campaign, Done, Sections
from adversary.ledger import Ledger
from adversary.oracle import Oracle
from adversary.record import Record
from adversary.session import Outcome, Session
from adversary.space import Space
from adversary.spans import place_of_session
from splitcore.errors import LatentbedError
from splitcore.frame import Frame, FrameId
from splitcore.telemetry.tracing import Tracer
from splitcore.threat import ThreatModel

SpaceOf = Callable[[Frame], Space]


@dataclass(frozen=True)
class Job:
    """A frame of one latent to attack."""

    frame: Frame
    deadline: float = float("inf")
    """monotonic seconds, the same clock in every process of this host"""

    def portable(self) -> Job:
        """The same with bytes of its own: views into a message do not travel between processes."""
        return replace(self, frame=replace(self.frame, payloads=tuple(bytes(payload) for payload in self.frame.payloads)))


class Engine(Protocol):
    """Takes jobs from any thread; gives each outcome once, from a thread of its own."""

    @property
    def counts(self) -> Counter[str]:
        """Of the ledgers that are its own."""
        ...

    def submit(self, job: Job, done: Done) -> None: ...

    def close(self) -> None:
        """Ends what is left, as errors; blocks until every outcome is out."""
        ...


def stream(seed: int, frame: str, use: int) -> np.random.Generator:
    """Random numbers of the frame's own, from the seed and its place in the client's sequence: company changes nothing."""
    name, _, row = frame.partition("#")
    try:
        place = FrameId.parse(name).sequence
    except LatentbedError:
        place = int.from_bytes(frame.encode()[:32], "little")
    return np.random.default_rng([seed, place, use, *([int(row)] if row.isdecimal() else [])])


class LocalEngine:
    """A campaign in this process."""

    def __init__(
        self, oracle: Oracle, ledger: Ledger, attack: Attack, threat: ThreatModel, space_of: SpaceOf, *, run: str, nonce: str,
        seed: int = 0, pool: Pool | None = None, max_rows: int = 256, in_flight: int = 8, sections: Sections = 2,
        record: Path | None = None, ended: frozenset[str] = frozenset(), model: str = "", tracer: Tracer | None = None,
    ) -> None:  # fmt: skip
        """`model`: whose tail is asked; empty: the server's choice.

        `record`: the folder to go on from after SIGKILL; `ended`: frames that need it no more.
        """
        self._attack, self._threat, self._space_of = attack, threat, space_of
        self._seed, self._pool = seed, pool
        self._ledger = ledger
        kept = None if record is None else Record(record)
        self._campaign = Campaign(
            oracle, ledger, run=run, nonce=nonce, max_rows=max_rows, in_flight=in_flight, sections=sections, model=model,
            record=kept, past=None if kept is None else kept.past(ledger.path, run, ended), tracer=tracer,
        )  # fmt: skip

    @property
    def counts(self) -> Counter[str]:
        return Counter()  # its ledger is somebody else's

    def submit(self, job: Job, done: Done) -> None:
        frame = job.frame

        def make() -> Session:
            session = Session(
                frame.id, self._space_of(frame), self._attack, self._threat,
                rng=stream(self._seed, frame.id, 0), deadline=job.deadline, pool=self._pool,
            )  # fmt: skip
            session.trace = place_of_session(frame)
            return session

        def refused(error: Exception) -> None:
            done(Outcome(frame=frame.id, attack=self._attack.kind, point=self._threat.point, reason="error",
                         error=f"{type(error).__name__}: {error}"))  # fmt: skip

        self._campaign.submit_made(make, done, refused)

    def close(self) -> None:
        self._campaign.close()
