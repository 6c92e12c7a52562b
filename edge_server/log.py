"""The server's own log: every request that is about to be computed, written before it is computed.

An adversary's ledger is compared with it row by row, so it must hold what the tail saw and nothing else: refused,
expired and cancelled requests are not in it, and a killed process leaves every row that it had begun to compute. What a
detector found stands with its request: `detected` has the rows by detector, `rejected` those that the tail then did not see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_server.queue import Job
from splitcore import journal


class ServerLog:
    """STATE/server.jsonl. A row says its model and version where the server has, or had, several."""

    def __init__(self, path: Path, *, with_model: bool = False) -> None:
        self.path = path
        self.with_model = with_model
        self._journal = journal.Journal(path)

    def of(self, model: str, version: str) -> ModelLog:
        """The part of one version of a model."""
        return ModelLog(self, {"model": model, "version": version})

    def append(self, jobs: Sequence[Job], now_ns: int, of: Mapping[str, str]) -> None:
        """One row a request, one write call a batch. Raises OSError: then nothing of the batch may be computed."""
        says = of if self.with_model else {}
        self._journal.append(
            *[
                {
                    "id": job.frame.id,
                    "attempt": job.frame.attempt,
                    "origin": job.frame.origin,
                    "rows": job.rows,
                    "t_ns": now_ns,
                    **says,
                    **_found(job),
                }
                for job in jobs
            ]
        )

    def close(self) -> None:
        self._journal.close()


def _found(job: Job) -> dict[str, Any]:
    """By detectors."""
    found: dict[str, Any] = {}
    if job.detected:
        found["detected"] = job.detected
    if job.rejected is not None:
        found["rejected"] = np.flatnonzero(job.rejected).tolist()
    return found


class ModelLog:
    """Where one version of a model writes what it is about to compute."""

    def __init__(self, log: ServerLog, of: Mapping[str, str]) -> None:
        self.path = log.path
        self._log, self._of = log, of

    def append(self, jobs: Sequence[Job], now_ns: int) -> None:
        """As `ServerLog.append`."""
        self._log.append(jobs, now_ns, self._of)
