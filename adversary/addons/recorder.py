"""Passes every frame at once, and may keep a copy: the man in the middle who only listens."""

from __future__ import annotations

from pathlib import Path

from adversary.ledger import Kind
from adversary.relay import Forward, Order
from splitcore.frame import Frame
from splitcore.journal import Journal


class Pass:
    """The relay as if it were not there."""

    kind: Kind = "clean"
    order: Order = "overtake"

    def request(self, frame: Frame, message: bytes) -> Forward:
        return Forward(message, "passed", sum(map(len, frame.payloads)))

    async def close(self) -> None:
        return


class Recorder:
    """Writes what passes to `path`: id, codec, shape and the payloads in hexadecimal."""

    kind: Kind = "clean"
    order: Order = "overtake"

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)

    def request(self, frame: Frame, message: bytes) -> Forward:
        payloads = [bytes(payload).hex() for payload in frame.payloads]
        self._journal.append(
            {"id": frame.id, "attempt": frame.attempt, "codec": frame.codec, "shape": frame.shape, "payloads": payloads}
        )
        return Forward(message, "recorded", sum(map(len, frame.payloads)))

    async def close(self) -> None:
        self._journal.close()
