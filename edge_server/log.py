"""The server's own log: every request that is about to be computed, written before it is computed.

An adversary's ledger is compared with it row by row, so it must hold what the tail saw and nothing else: refused,
expired and cancelled requests are not in it, and a killed process leaves every row that it had begun to compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from edge_server.queue import Job
from splitcore import journal


class ServerLog:
    """STATE/server.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
                }
                for job in jobs
            )
        )

    def close(self) -> None:
        self._journal.close()


def chunks_of_run(path: Path, run: str, rows_a_chunk: int = 1000) -> Iterator[bytes]:
    """The rows of one run as newline-delimited JSON, in pieces. Nothing where there is no log."""
    prefix, chunk = f"{run}/", []
    for row in journal.read(path):
        if str(row.get("id", "")).startswith(prefix):
            chunk.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            if len(chunk) == rows_a_chunk:
                yield b"".join(chunk)
                chunk.clear()
    if chunk:
        yield b"".join(chunk)
