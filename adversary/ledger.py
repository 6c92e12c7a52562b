"""The adversary's books: a row for everything that it sent to the server, and what became of it.

A row is `sent` before it leaves, then `answered` or `lost`. Queries, forwarded frames (held ones on their way) and clean frames
(passed at once) are kinds apart; only queries are in a budget. It is to agree with the server's own log by (id, attempt).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from splitcore.journal import Journal, read
from splitcore.telemetry.clock import now_ns

Kind = Literal["query", "forwarded", "clean"]
Key = tuple[str, int]


class Ledger:
    """Append-only; safe from several threads. A ledger that a killed process left is closed: its open rows are lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        open_rows = self._left_open(path)
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._open: set[Key] = set()
        self.counts: Counter[str] = Counter()
        """rows by kind, and requests answered and lost"""
        if open_rows:
            self._journal.append(*(self._end("lost", key, "the adversary was killed") for key in open_rows))

    @staticmethod
    def _left_open(path: Path) -> list[Key]:
        """Rows of earlier processes that never ended."""
        rows: dict[Key, None] = {}
        for row in read(path):
            key = (str(row["id"]), int(row["attempt"]))
            if row["event"] == "sent":
                rows[key] = None
            else:
                rows.pop(key, None)
        return list(rows)

    def sent(
        self, frame: str, attempt: int, kind: Kind, rows: int, *,
        payload_bytes: int, asks: list[tuple[str, str, int]] | None = None, why: str | None = None,
        client_id: str | None = None
    ) -> None:  # fmt: skip
        """Call before the bytes leave. `asks`: (frame attacked, phase, rows) of a query request; `client_id`: what a client
        that is none of ours calls its frame."""
        row: dict[str, object] = {
            "event": "sent", "id": frame, "attempt": attempt, "kind": kind, "rows": rows, "bytes": payload_bytes,
            "t_ns": now_ns(),
        }  # fmt: skip
        if asks is not None:
            row["asks"] = asks
        if why is not None:
            row["why"] = why
        if client_id is not None and client_id != frame:
            row["client_id"] = client_id
        with self._lock:
            self._open.add((frame, attempt))
            self.counts[kind] += rows
            self._journal.append(row)

    def answered(self, frame: str, attempt: int, t_ns: int | None = None) -> None:
        """An answer that came for a row that is no longer open (a duplicate) changes nothing. `t_ns`: when; None: now."""
        self._close("answered", (frame, attempt), None, t_ns)

    def lost(self, frame: str, attempt: int, reason: str) -> None:
        """No answer will be taken for it any more: the stream broke, the server refused it, or time ran out."""
        self._close("lost", (frame, attempt), reason)

    def _close(self, event: str, key: Key, reason: str | None, t_ns: int | None = None) -> None:
        with self._lock:
            if key not in self._open:
                return
            self._open.remove(key)
            self.counts[event] += 1
            self._journal.append(self._end(event, key, reason, t_ns))

    @staticmethod
    def _end(event: str, key: Key, reason: str | None, t_ns: int | None = None) -> dict[str, object]:
        row: dict[str, object] = {"event": event, "id": key[0], "attempt": key[1], "t_ns": t_ns or now_ns()}
        if reason is not None:
            row["reason"] = reason
        return row

    def close(self) -> None:
        """What is open now will not be answered any more."""
        for key in list(self._open):
            self._close("lost", key, "the adversary ended")
        self._journal.close()


def asked_earlier(ledgers: Iterable[Path], run: str) -> dict[str, int]:
    """Queries of `run` by the frame that they were asked for, as the ledgers have them; a retry asks nothing new."""
    asked: Counter[str] = Counter()
    mine = f"{run}/"
    for path in ledgers:
        for row in read(path):
            if row["event"] == "sent" and row["id"].startswith(mine) and int(row["attempt"]) == 1:
                for frame, _, count in row.get("asks") or ():
                    asked[frame] += count
    return dict(asked)
