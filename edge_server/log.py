"""The server's own log: every request that is about to be computed, written before it is computed.

An adversary's ledger is compared with it row by row, so it must hold what the tail saw and nothing else: refused,
expired and cancelled requests are not in it, and a killed process leaves every row that it had begun to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_server.queue import Job
from splitcore import journal


class ServerLog:
    """STATE/server.jsonl. A row says its model where the server has several."""

    def __init__(self, path: Path, *, with_model: bool = False) -> None:
        self.path = path
        self._with_model = with_model
        self._journal = journal.Journal(path)

    def append(self, jobs: Sequence[Job], now_ns: int) -> None:
        """One row a request, one write call a batch. Raises OSError: then nothing of the batch may be computed."""
        self._journal.append(
            *(
                {
                    "id": job.frame.id,
                    "attempt": job.frame.attempt,
                    "origin": job.frame.origin,
                    "rows": job.rows,
                    "t_ns": now_ns,
                    **({"model": job.model} if self._with_model else {}),
                }
                for job in jobs
            )
        )

    def close(self) -> None:
        self._journal.close()
