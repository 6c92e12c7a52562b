"""What is kept of a pass: one line a frame, and every sending with what became of it. Survives the process.

STATE/passes/RUN/request.json, frames.jsonl (exactly one line an id), attempts.jsonl (`sent`, then `answered` or
`lost`) and, where the pass re-plans, plan.jsonl (each cut's profile, each switch and why). An attempt is `sent` before
its bytes leave, so that no server can know of one that is not in the journal. It is `answered` when a label came back.
An error in-band is a frame's answer and goes into its line, but the attempt is `lost`, with the error as its reason: a
server refuses most such frames before it computes them, and `answered` promises that the server's log has the row.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mobile_client.metrics import Counts
from mobile_client.passes import PassRequest
from mobile_client.shot import Shot
from splitcore import journal
from splitcore.errors import ScenarioError
from splitcore.telemetry.clock import now_ns

REQUEST, FRAMES, ATTEMPTS, PLAN = "request.json", "frames.jsonl", "attempts.jsonl", "plan.jsonl"
LOCK = "lock"
MAX_REASON = 300


class PassRecord:
    """The journals of one pass, opened for writing. Raises ScenarioError when the run was something else before."""

    def __init__(self, folder: Path, request: PassRequest, counts: Counts | None = None) -> None:
        self.folder, self.request = folder, request
        self.counts = counts or Counts()
        self._claim()
        self.done = {int(row["sequence"]) for row in journal.read(folder / FRAMES)}
        """sequences that have their line"""
        self.alarms = 0
        self._frames, self._attempts = journal.Journal(folder / FRAMES), journal.Journal(folder / ATTEMPTS)
        self._earlier: dict[str, int] = {}
        self._earlier_cut: dict[str, str] = {}
        self._plan: journal.Journal | None = None
        self._close_what_a_killed_process_left_open()

    def _claim(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / LOCK).open("w")
        try:
            # held until this process closes it or ends, however it ends
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ScenarioError(
                f"expected run {self.request.run} for this process alone, another is writing it: wait for that one to end, "
                "or give this pass another name"
            ) from error
        before = read_request(self.folder)
        if before is None:
            temporary = self.folder / (REQUEST + ".new")
            temporary.write_text(self.request.model_dump_json() + "\n")
            temporary.replace(self.folder / REQUEST)
        elif before != self.request:
            raise ScenarioError(
                f"expected run {self.request.run} as it was first posted, {before.model_dump_json()}, got another request: "
                "give another pass another name"
            )

    def _close_what_a_killed_process_left_open(self) -> None:
        still_open: dict[str, int] = {}
        for row in journal.read(self.folder / ATTEMPTS):
            if row["event"] == "sent":
                self._earlier[row["id"]] = still_open[row["id"]] = int(row["attempt"])
                self._earlier_cut[row["id"]] = str(row.get("artefact", ""))
            else:
                still_open.pop(row["id"], None)
        for frame, attempt in still_open.items():
            self._attempts.append(_attempt("lost", frame, attempt, "the phone was restarted"))

    def remaining(self) -> list[int]:
        """Sequences without a line, in order."""
        return [sequence for sequence in range(self.request.count) if sequence not in self.done]

    def earlier_attempts(self, frame: str) -> int:
        """Sendings of a frame by processes before this one."""
        return self._earlier.get(frame, 0)

    def earlier_cut(self, frame: str) -> str | None:
        """The artefact through which a process before this one sent a frame; it goes through no other."""
        return self._earlier_cut.get(frame)

    def planned(self, row: journal.Row) -> None:
        """A row of plan.jsonl."""
        if self._plan is None:
            self._plan = journal.Journal(self.folder / PLAN)
        self._plan.append({**row, "t_ns": now_ns()})

    def sent(self, shot: Shot) -> None:
        self._attempts.append({**_attempt("sent", shot.id, shot.attempt), "artefact": shot.cut.name})
        self.counts.left(shot)

    def lost(self, shots: list[Shot], reason: str) -> None:
        self._attempts.append(*(_attempt("lost", shot.id, shot.attempt, reason) for shot in shots))
        self.counts.lost += len(shots)

    def answered(
        self, shot: Shot, predicted: int | None, error: str | None, answered_ns: int, timing: journal.Row | None = None
    ) -> None:
        """The frame's one line, with what timing says of it.

        The attempt goes first: killed in between, the frame is asked again, not half known.
        """
        self._attempts.append(_attempt("answered" if error is None else "lost", shot.id, shot.attempt, error))
        total_ms = (answered_ns - shot.scheduled_ns) / 1e6
        deadline_ms = self.request.deadline_ms
        self._frames.append(
            {
                "id": shot.id,
                "sequence": shot.sequence,
                "sample": shot.sample,
                "label": shot.label,
                "artefact": shot.cut.name,
                "predicted": predicted,
                "error": error,
                "attempts": shot.attempt,
                "scheduled_ns": shot.scheduled_ns,
                "answered_ns": answered_ns,
                "total_ms": total_ms,
                "late": deadline_ms is not None and total_ms > deadline_ms,
                "bytes_up": shot.bytes_up,
                "head": shot.head,
                **(timing or {}),
            }
        )
        self.alarms += bool(timing and timing.get("alarm"))
        self.done.add(shot.sequence)
        self.counts.came_back(shot, predicted, error, total_ms / 1e3, late=deadline_ms is not None and total_ms > deadline_ms)

    def close(self) -> None:
        self._frames.close()
        self._attempts.close()
        if self._plan is not None:
            self._plan.close()
        self._lock.close()


def read_request(folder: Path) -> PassRequest | None:
    """What was asked for in this folder; None where nothing was. Raises ScenarioError."""
    path = folder / REQUEST
    if not path.exists():
        return None
    try:
        return PassRequest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ScenarioError(f"{path} is no request that this phone knows: {error}; give the pass another name") from error


def _attempt(event: str, frame: str, attempt: int, reason: str | None = None) -> dict[str, Any]:
    return {
        "event": event,
        "id": frame,
        "attempt": attempt,
        "rows": 1,
        "kind": "clean",
        "reason": None if reason is None else reason[:MAX_REASON],
        "t_ns": now_ns(),
    }
