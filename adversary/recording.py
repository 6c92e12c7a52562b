"""What a record behaviour wrote, read back: the client's frames and what the server answered to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitcore.errors import ScenarioError
from splitcore.journal import read


@dataclass(slots=True)
class Heard:
    """A recorded frame and, once it came, its answer."""

    codec: str
    shape: tuple[int, ...]
    payloads: tuple[bytes, ...]
    labels: Sequence[int] | None = None
    scores: Sequence[Sequence[float]] | None = None


def recorded(run: str, recordings: Path, limit: int) -> list[Heard]:
    """The first frames of a run that were answered. Raises ScenarioError where there are none."""
    path = recordings / f"{run}.jsonl"
    if not path.exists():
        there = sorted(other.stem for other in recordings.glob("*.jsonl"))
        raise ScenarioError(
            f"expected the recording of run {run}, found {', '.join(there[:8]) or 'none'}: record first, by behaviour "
            "record or by a record pass before this one"
        )
    frames = _heard(path, limit)
    if not frames:
        raise ScenarioError(
            f"expected frames with answers in the recording of run {run}, found none: let frames pass while it records"
        )
    return frames


def _heard(path: Path, limit: int) -> list[Heard]:
    """The first frames that were answered, with at least `limit` latents in all if there are so many; each payload once."""
    frames: dict[str, Heard] = {}
    known: set[tuple[bytes, ...]] = set()
    taken = 0
    for row in read(path):
        name = row.get("id")
        if row.get("event") == "sent" and taken < limit and name not in frames:
            frame = _frame(row)
            if frame.payloads not in known:
                frames[str(name)] = frame
                known.add(frame.payloads)
                taken += len(frame.payloads)
        elif row.get("event") == "answered" and name in frames and frames[str(name)].labels is None:
            frame = frames[str(name)]
            frame.labels, frame.scores = _labels(row), row.get("scores")
            if frame.labels is None or len(frame.labels) != len(frame.payloads) or min(frame.labels) < 0:
                # refused, or rejected by a detector: its place is free for another
                del frames[str(name)]
                known.discard(frame.payloads)
                taken -= len(frame.payloads)
    return [frame for frame in frames.values() if frame.labels is not None]


def _frame(row: dict[str, Any]) -> Heard:
    return Heard(str(row["codec"]), tuple(row["shape"]), tuple(bytes.fromhex(payload) for payload in row["payloads"]))


def _labels(row: dict[str, Any]) -> Sequence[int] | None:
    if row.get("labels") is not None or row.get("scores") is None:
        labels: Sequence[int] | None = row.get("labels")
        return labels
    return [int(np.argmax(scores)) for scores in row["scores"]]
