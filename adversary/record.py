"""What lets a campaign go on after SIGKILL as if nothing had happened: every answer it got, and every request that is out.

A session is a deterministic function of its seed and of the answers. So its state is not stored: it is run again from the
record, without a query, up to where the answers end. Requests that were out are sent again, byte for byte, under their ids.

The order of writing makes it exact: a request's bytes into its slot, its row into the ledger, then onto the wire; an answer
into the record, then its row into the ledger, then to the session.
"""

from __future__ import annotations

import base64
import itertools
import mmap
import os
import shutil
import struct
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from adversary.verdict import Rows, Verdict
from splitcore.frame import Frame
from splitcore.journal import Journal, Row, read

_HEAD = struct.Struct("<4sIQ")
_MAGIC = b"lbq1"


@dataclass(eq=False, slots=True)
class Piece:
    """Neighbouring rows of one session's ask, in one request."""

    frame: str
    phase: str
    count: int
    rows: Rows | None = None
    """their answers; None while out"""
    verdict: Verdict | None = None
    member: Any = None
    """whoever waits for them"""
    sent: bool = True


@dataclass
class Past:
    """What an earlier process left of a run."""

    pieces: dict[str, deque[Piece]] = field(default_factory=lambda: defaultdict(deque))
    """by frame, in the order in which they were asked"""
    out: list[tuple[Frame, list[Piece], int]] = field(default_factory=list)
    """requests to be sent again, with the attempt that is due, and their slots"""
    sections: int | None = None

    def take(self, frame: str, phase: str, count: int) -> list[Piece] | None:
        """The recorded pieces of an ask of `count` rows; None when the record of this frame has ended.

        Raises ValueError for a record of another attack, or of another seed.
        """
        recorded = self.pieces.get(frame)
        if not recorded:
            return None
        taken, rows = [], 0
        while recorded and rows < count:
            taken.append(recorded.popleft())
            rows += taken[-1].count
        if rows > count or any(piece.phase != phase for piece in taken):
            raise ValueError(
                f"{frame}: expected a record of {count} rows in phase {phase}, got {[(p.phase, p.count) for p in taken]}: "
                "this run was begun with another attack, seed or artefact; say another run"
            )
        if rows < count:
            # it was killed between two requests of one ask: what was not sent is asked now
            taken.append(Piece(frame, phase, count - rows, sent=False))
        return taken


class Record:
    """A folder for one campaign: `answers.jsonl`, and a slot for each request that is out."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._slots: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._answers = Journal(folder / "answers.jsonl")

    def past(self, ledger: Path, run: str, ended: Collection[str] = ()) -> Past:
        """What ledger, record and slots say of `run`, but for frames that have `ended`. Call before anything is sent."""
        requests: dict[str, tuple[list[tuple[str, str, int]], int]] = {}
        prefix = f"{run}/query-"
        for row in read(ledger):
            if row["event"] == "sent" and row["id"].startswith(prefix):
                asks, _ = requests.get(row["id"], (row.get("asks") or [], 0))
                requests[row["id"]] = (asks, int(row["attempt"]))
        past = Past()
        answers: dict[str, Row] = {}
        for row in read(self._answers.path):
            if "sections" in row:
                past.sections = int(row["sections"])
            else:
                answers[row["id"]] = row
        kept = {frame.id: (frame, slot) for slot, frame in self._kept()}
        for name, (asks, attempt) in requests.items():
            pieces = [Piece(frame, phase, count) for frame, phase, count in asks]
            if name in answers:
                _give(pieces, _rows(answers[name]))
            elif name in kept:
                frame, slot = kept[name]
                again = Frame(
                    id=name, payloads=frame.payloads, codec=frame.codec, shape=frame.shape, attempt=attempt + 1,
                    origin="query", model=frame.model, labels_only=frame.labels_only, template=frame.template,
                )  # fmt: skip
                past.out.append((again, pieces, slot))
                self._slots[slot] = self._mapped(slot, 0)
            else:
                _give(pieces, Rows.none(sum(piece.count for piece in pieces), "its bytes were lost with the process"))
            for piece in pieces:
                if piece.frame not in ended:
                    past.pieces[piece.frame].append(piece)
        return past

    def sections(self, sections: int) -> None:
        self._answers.append({"sections": sections})

    def keep(self, frame: Frame) -> int:
        """Before it is sent. Gives the slot, to be freed when its answer is recorded."""
        slot = self._free.pop() if self._free else next(n for n in itertools.count() if n not in self._slots)
        head = orjson.dumps(
            {
                "id": frame.id, "codec": frame.codec, "shape": frame.shape, "model": frame.model,
                "labels_only": frame.labels_only, "sizes": [len(payload) for payload in frame.payloads],
                **({"template": frame.template.hex()} if frame.template else {}),
            }
        )  # fmt: skip
        parts = (head, *frame.payloads)
        size = sum(map(len, parts))
        if slot not in self._slots or len(self._slots[slot]) < _HEAD.size + size:
            self._slots[slot] = self._mapped(slot, _HEAD.size + size)
        # into the page cache, which outlives the process, without a system call between two requests; the magic comes last
        mapped, at = self._slots[slot], _HEAD.size
        mapped[: _HEAD.size] = bytes(_HEAD.size)
        for part in parts:
            mapped[at : at + len(part)] = part
            at += len(part)
        mapped[: _HEAD.size] = _HEAD.pack(_MAGIC, len(head), size - len(head))
        return slot

    def _mapped(self, slot: int, size: int) -> mmap.mmap:
        """The slot's file in memory, at least so large. Raises OSError where the disk has no room: later would be SIGBUS."""
        fd = os.open(self._folder / f"slot-{slot}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if (more := size - os.fstat(fd).st_size) > 0 and os.pwrite(fd, bytes(more), size - more) != more:
                raise OSError(f"{self._folder}: no room for a request of {size} bytes")
            return mmap.mmap(fd, 0)
        finally:
            os.close(fd)

    def answered(self, request: str, rows: Rows, slot: int) -> None:
        """Before the ledger has it, and before any session hears it."""
        row: dict[str, Any] = {"id": request, "labels": _text(rows.labels.astype("<i4"))}
        if not rows.answered.all():
            row |= {
                "answered": _text(np.packbits(rows.answered)),
                "rejected": _text(np.packbits(rows.rejected)),
                "why": rows.why,
            }
        if rows.scores is not None:
            row |= {"classes": rows.scores.shape[1], "scores": _text(rows.scores.astype("<f4", copy=False))}
        self._answers.append(row)
        self._free.append(slot)

    def close(self, *, forget: bool) -> None:
        """`forget`: every session has ended and has its line elsewhere; nothing is left to go on with."""
        self._answers.close()
        for mapped in self._slots.values():
            mapped.close()
        self._slots.clear()
        if forget:
            shutil.rmtree(self._folder)

    def _kept(self) -> Iterator[tuple[int, Frame]]:
        for path in self._folder.glob("slot-*"):
            data = path.read_bytes()
            if len(data) < _HEAD.size:
                continue
            magic, head_size, body_size = _HEAD.unpack_from(data)
            if magic != _MAGIC or len(data) < _HEAD.size + head_size + body_size:
                continue  # killed in mid-write: then its row is not in the ledger either
            head = orjson.loads(data[_HEAD.size : _HEAD.size + head_size])
            payloads, at = [], _HEAD.size + head_size
            for size in head["sizes"]:
                payloads.append(data[at : at + size])
                at += size
            yield int(path.name.removeprefix("slot-")), Frame(
                id=head["id"], payloads=tuple(payloads), codec=head["codec"], shape=tuple(head["shape"]),
                model=head["model"], labels_only=head["labels_only"], template=bytes.fromhex(head.get("template", "")),
            )  # fmt: skip


def _give(pieces: list[Piece], rows: Rows) -> None:
    at = 0
    for piece in pieces:
        piece.rows = rows.part(at, at + piece.count)
        at += piece.count


def _text(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _rows(row: Mapping[str, Any]) -> Rows:
    labels = np.frombuffer(base64.b64decode(row["labels"]), "<i4").astype(np.int64)
    k = len(labels)
    scores = None
    if "scores" in row:
        scores = np.frombuffer(base64.b64decode(row["scores"]), "<f4").reshape(k, row["classes"])

    def bits(key: str, otherwise: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
        if key not in row:
            return np.full(k, otherwise)
        packed = np.frombuffer(base64.b64decode(row[key]), np.uint8)
        return np.unpackbits(packed, count=k).astype(bool)

    return Rows(bits("answered", True), labels, scores, bits("rejected", False), row.get("why", ""))
