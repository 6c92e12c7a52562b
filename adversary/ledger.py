"""The adversary's books: a row for everything that it sent to the server, and what became of it.

A row is `sent` before it leaves, then `answered` or `lost`. Queries, forwarded frames (held ones on their way) and clean frames
(passed at once) are kinds apart; only queries are in a budget. It is to agree with the server's own log by (id, attempt).
"""

from __future__ import annotations

import threading
from collections import Counter
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
        open_rows, self.asked_earlier = self._earlier(path)
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._open: set[Key] = set()
        self.counts: Counter[str] = Counter()
        """rows by kind, and requests answered and lost"""
        if open_rows:
            self._journal.append(*(self._end("lost", key, "the adversary was killed") for key in open_rows))

    @staticmethod
    def _earlier(path: Path) -> tuple[list[Key], dict[str, int]]:
        """What earlier processes left: rows that never ended, and queries by the frame they were asked for."""
        rows: dict[Key, None] = {}
        asked: Counter[str] = Counter()
        for row in read(path):
            key = (str(row["id"]), int(row["attempt"]))
            if row["event"] != "sent":
                rows.pop(key, None)
                continue
            rows[key] = None
            if key[1] == 1:  # a retry asks nothing new
                for frame, _, count in row.get("asks") or ():
                    asked[frame] += count
        return list(rows), dict(asked)

    def sent(
        self, frame: str, attempt: int, kind: Kind, rows: int, *,
        payload_bytes: int, asks: list[tuple[str, str, int]] | None = None, why: str | None = None
    ) -> None:  # fmt: skip
        """Call before the bytes leave. `asks`: (frame attacked, phase, rows) of a query request."""
        row: dict[str, object] = {
            "event": "sent", "id": frame, "attempt": attempt, "kind": kind, "rows": rows, "bytes": payload_bytes,
            "t_ns": now_ns(),
        }  # fmt: skip
        if asks is not None:
            row["asks"] = asks
        if why is not None:
            row["why"] = why
        with self._lock:
            self._open.add((frame, attempt))
            self.counts[kind] += rows
            self._journal.append(row)

    def answered(self, frame: str, attempt: int) -> None:
        """An answer that came for a row that is no longer open (a duplicate) changes nothing."""
        self._close("answered", (frame, attempt), None)

    def lost(self, frame: str, attempt: int, reason: str) -> None:
        """No answer will be taken for it any more: the stream broke, the server refused it, or time ran out."""
        self._close("lost", (frame, attempt), reason)

    def _close(self, event: str, key: Key, reason: str | None) -> None:
        with self._lock:
            if key not in self._open:
                return
            self._open.remove(key)
            self.counts[event] += 1
            self._journal.append(self._end(event, key, reason))

    @staticmethod
    def _end(event: str, key: Key, reason: str | None) -> dict[str, object]:
        row: dict[str, object] = {"event": event, "id": key[0], "attempt": key[1], "t_ns": now_ns()}
        if reason is not None:
            row["reason"] = reason
        return row

    def close(self) -> None:
        """What is open now will not be answered any more."""
        for key in list(self._open):
            self._close("lost", key, "the adversary ended")
        self._journal.close()
