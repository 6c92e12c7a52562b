"""Passes every frame at once, and may keep a copy: the man in the middle who only listens."""

from __future__ import annotations

from pathlib import Path

from adversary.ledger import Kind
from adversary.relay import Forward, Order, foreign
from splitcore.frame import Frame, Reply
from splitcore.journal import Journal, Row


class Pass:
    """The relay as if it were not there."""

    kind: Kind = "clean"
    order: Order = "overtake"
    holds = looks = False

    def request(self, frame: Frame, message: bytes) -> Forward:
        return Forward(message, "passed", sum(map(len, frame.payloads)))

    async def close(self) -> None:
        return


class Recorder:
    """Writes what passes to `path`, both ways, and keeps nothing in memory.

    A row `sent` has id, attempt, codec, shape and the payloads in hexadecimal; a row `answered` has id, attempt and what the
    server said: `labels` [k], `scores` [k, classes] where it gave them, or an `error`. docs/semantics.md, Recordings.
    """

    kind: Kind = "clean"
    order: Order = "overtake"
    holds = False

    def __init__(self, path: Path, model: str = "") -> None:
        """`model`: whose frames are written, and those that name none; empty: all."""
        self._model = model
        self._journal = Journal(path)
        self._open = True

    def request(self, frame: Frame, message: bytes) -> Forward:
        if foreign(frame, self._model):
            return Forward(message, "foreign", sum(map(len, frame.payloads)))
        payloads = [bytes(payload).hex() for payload in frame.payloads]
        row = {"event": "sent", "id": frame.id, "attempt": frame.attempt, "codec": frame.codec, "shape": frame.shape}
        self._journal.append({**row, "payloads": payloads})
        return Forward(message, "recorded", sum(map(len, frame.payloads)))

    def reply(self, frame: Frame, reply: Reply) -> None:
        if not self._open or foreign(frame, self._model):
            return  # the answer to a frame that passed before the behaviour changed
        row: Row = {"event": "answered", "id": frame.id, "attempt": frame.attempt}
        if reply.error is not None:
            row["error"] = reply.error
        if reply.labels is not None:
            row["labels"] = reply.labels
        if reply.scores is not None:
            row["scores"] = reply.scores
        self._journal.append(row)

    async def close(self) -> None:
        self._open = False
        self._journal.close()
