"""The detectors of one model, one after the other on every batch: what they found, for the answers, the log and the metrics."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_server.detectors import AnyDetector, Asked, DetectorConfig, OwnDetector
from edge_server.queue import Job
from splitcore.latent import F32, LatentSpec

Order: TypeAlias = Literal["reject", "flag", "off"]
"""what all detectors do for now, whatever their own `action` says"""


class Panel:
    """Called on the tail's thread; told from the event loop what to do."""

    def __init__(self, configs: Sequence[DetectorConfig], latent: LatentSpec) -> None:
        self.configs = tuple(configs)
        self._detectors = [config.for_model(latent) for config in configs]
        self.order: Order | None = None
        self._lock = threading.Lock()

    def begin(self, order: Order | None) -> None:
        """Forgets everything, and from the next batch on does as it is told; None: as each detector is configured."""
        with self._lock:
            self.order = order
            for detector in self._detectors:
                detector.forget()

    def look(self, jobs: Sequence[Job], latents: F32) -> tuple[NDArray[np.bool_] | None, Counter[str]]:
        """Of `latents` [rows, *shape]: which are rejected (None: none is), and how many rows each detector detected.

        Writes what concerns it on each job. All detectors see all rows: none may hide from another.
        """
        counts: Counter[str] = Counter()
        with self._lock:
            if not self._detectors or self.order == "off":
                return None, counts
            asked = [Asked(job.rows, client_of(job.caller.identity), job.received_ns) for job in jobs]
            found = [detector.look(latents, asked) for detector in self._detectors]
            order = self.order
        rejected = np.zeros(len(latents), bool)
        for config, rows in zip(self.configs, found, strict=True):
            if rows:
                counts[config.kind] += len(rows)
                _note(jobs, config.kind, np.fromiter(rows, np.int64, len(rows)))
                if (order or config.action) == "reject":
                    rejected[list(rows)] = True
        if not rejected.any():
            return None, counts
        at = 0
        for job in jobs:
            part = rejected[at : at + job.rows]
            job.rejected = part if part.any() else None
            at += job.rows
        return rejected, counts


def _note(jobs: Sequence[Job], kind: str, rows: NDArray[np.int64]) -> None:
    """Which of each job's own rows a detector detected."""
    rows.sort()
    at = 0
    for job in jobs:
        mine = rows[(rows >= at) & (rows < at + job.rows)] - at
        if mine.size:
            job.detected = {**(job.detected or {}), kind: mine.tolist()}
        at += job.rows


def client_of(identity: str) -> str:
    """A token's or certificate's name as it is; of a connection, `ipv4:10.0.0.7:53124`, its host: it may have any number."""
    return identity.rpartition(":")[0] if identity.startswith(("ipv4:", "ipv6:")) else identity


def built(configs: Sequence[AnyDetector], trusted: Collection[str]) -> list[DetectorConfig]:
    """The settings, those of somebody's own made by its own class. Raises ScenarioError."""
    return [config.build(trusted) if isinstance(config, OwnDetector) else config for config in configs]
