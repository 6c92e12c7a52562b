"""A run directory as typed objects. Rows torn by a killed process are passed over (splitcore.journal)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitcore import journal
from splitcore.errors import LatentbedError
from testbed.report.reconcile import Entry, ServerRow, entries_of, server_rows_of
from testbed.report.stages import NodeClock, SpanIndex


class RunDirectoryError(LatentbedError):
    """A folder is not a run directory, or one of its files is not what the driver writes."""


class _Line(BaseModel):
    # a newer node may write more than the report reads
    model_config = ConfigDict(extra="ignore", frozen=True)


class PassInfo(_Line):
    """pass.json."""

    name: str
    run: str
    kind: Literal["clean", "identity", "stream", "attack"]
    adversary: bool
    codec: str
    count: int
    load: dict[str, Any]
    window: int | None = None
    link: str | dict[str, Any] | None = None
    deadline_ms: float | None = None
    attack: dict[str, Any] | None = None
    point: str | None = None
    norm: str | None = None
    eps: float | None = None
    eps_unit: str | None = None
    eps_absolute: float | None = None
    feedback: str = "none"
    budget: int | None = None
    order: str | None = None
    hold_deadline_ms: float | None = None
    share: float | None = None
    wall_s: float
    artefact_handshake: str = ""
    device: str = ""
    policy: dict[str, Any] | None = None
    """which of the prepared cuts a frame went through; None: the first"""
    cuts: dict[str, str] = {}
    """codec by artefact, where the phone had prepared several"""
    opaque: bool = False
    """the adversary passes bytes that it cannot read: its ledger holds queries alone"""
    source: dict[str, Any] | None = None
    """what the phone showed; None: a run of before this was written down"""
    server: dict[str, Any] | None = None
    """of a foreign server what it calls itself, and the requests and rows that it counted; None: ours, which keeps a log"""
    timing: dict[str, Any] | None = None
    """how the phone judged the time that its frames were away; None: it did not"""
    detectors: list[dict[str, Any]] = []
    """what watched at the edge, each with the action that it took in this pass"""


class FrameLine(_Line):
    """One line of frames.jsonl: what became of one frame, at the client."""

    id: str
    sequence: int
    sample: int
    artefact: str = ""
    """whose head it went through; empty in journals of before there were several"""
    label: int | None = None
    predicted: int | None = None
    error: str | None = None
    attempts: int = 1
    scheduled_ns: int | None = None
    answered_ns: int | None = None
    total_ms: float | None = None
    late: bool = False
    bytes_up: int = 0
    message_bytes: int = 0
    """of its last sending; 0 where nobody looked at timing"""
    way_ms: float | None = None
    """sent to answered, without what the edge says that it took; None where nobody looked"""
    alarm: bool = False
    """the window that it ends was away for longer than an honest one"""

    @property
    def answered(self) -> bool:
        return self.predicted is not None and self.error is None


class SwitchLine(_Line):
    """A row `switch` of plan.jsonl: from here on frames went through another cut, and why."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    before: Annotated[str | None, Field(alias="from")] = None
    to: str
    why: str
    after: str | None = None
    """id of the frame whose answer decided it"""
    rate_up_kbps: float | None = None
    round_trip_ms: float | None = None
    predicted_ms: dict[str, float] = {}
    t_ns: int


class SessionLine(_Line):
    """One line of sessions.jsonl: what the adversary says of one frame."""

    frame: str
    attack: str = ""
    point: str | None = None
    success: bool
    queries: int
    by_phase: dict[str, int] = {}
    first_success: int | None = None
    distance: float | None = None
    label: int | None = None
    predicted: int | None = None
    reason: str
    wall_ms: float | None = None
    held_ms: float | None = None
    requests: int = 0


class ProbeLine(_Line):
    """One line of probes.jsonl: one thing that the adversary tried, and what became of it."""

    way: str
    id: str = ""
    label: int | None = None
    refused: str | None = None


LineT = TypeVar("LineT", bound=_Line)


@dataclass(frozen=True)
class Pass:
    """One pass, all of its tables."""

    info: PassInfo
    frames: list[FrameLine]
    answered_attempt: dict[str, int]
    """by frame id: the attempt whose answer the client took"""
    sessions: list[SessionLine]
    ledger: dict[tuple[str, int], Entry]
    """the adversary's, or the client's own where there is no adversary"""
    server: dict[tuple[str, int], ServerRow]
    attempts: dict[tuple[str, int], Entry] = field(default_factory=dict)
    """the client's own journal"""
    switches: list[SwitchLine] = field(default_factory=list)
    probes: list[ProbeLine] = field(default_factory=list)

    @cached_property
    def session_of(self) -> dict[str, SessionLine]:
        return {session.frame: session for session in self.sessions}

    @property
    def missing(self) -> int:
        return max(0, self.info.count - len(self.frames))


@dataclass(frozen=True)
class Run:
    folder: Path
    scenario: dict[str, Any]
    versions: dict[str, Any]
    clocks: dict[str, NodeClock]
    dropped: dict[str, int]
    passes: list[Pass]
    spans: SpanIndex = field(repr=False)
    price: dict[str, Any] = field(default_factory=dict)
    """price.json: what protection was measured to cost"""
    manifest: dict[str, Any] | None = None
    """artefact.json: the manifest of the artefact, as the driver copied it"""

    @property
    def handshake(self) -> str:
        """name@digest of the artefact that the nodes agreed on; '' where no pass says"""
        return next((p.info.artefact_handshake for p in self.passes if p.info.artefact_handshake), "")


def read(folder: Path) -> Run:
    """Raises RunDirectoryError."""
    folders = sorted(path.parent for path in folder.glob("passes/*/pass.json"))
    if not folders:
        raise RunDirectoryError(
            f"expected a run directory with passes/<nn>-<name>/pass.json, found none in {folder}: "
            "give the folder that `latentbed run` or `latentbed demo` wrote"
        )
    comparison = _json(folder / "clocks.json")
    dropped = comparison.pop("dropped", {})
    try:
        clocks = {node: NodeClock(**offset) for node, offset in comparison.items()}
    except TypeError as error:
        raise RunDirectoryError(f"{folder / 'clocks.json'}: expected an offset and its uncertainty by node: {error}") from error
    return Run(
        folder=folder,
        scenario=_yaml(folder / "scenario.yaml"),
        versions=_json(folder / "versions.json"),
        clocks=clocks,
        dropped=dropped,
        passes=[_read_pass(path) for path in folders],
        spans=SpanIndex(journal.read(folder / "spans.jsonl"), clocks),
        price=_json(folder / "price.json"),
        manifest=_json(folder / "artefact.json") or None,
    )


def _read_pass(folder: Path) -> Pass:
    info = _parse(PassInfo, _json(folder / "pass.json"), folder / "pass.json")
    attempts = list(journal.read(folder / "attempts.jsonl"))
    frames: dict[str, FrameLine] = {}
    for line in _lines(FrameLine, folder / "frames.jsonl"):
        frames.setdefault(line.id, line)  # the client keeps one line an id; a second one would be its fault, not a frame
    answered: dict[str, int] = defaultdict(lambda: 1)
    for row in reversed(attempts):
        if row.get("event") == "answered":
            answered[row["id"]] = row["attempt"]
    own = entries_of(attempts)
    ledger = own
    if info.adversary:
        rows = journal.read(folder / "queries.jsonl")
        ledger = entries_of([*attempts, *rows] if info.opaque else rows)
    return Pass(
        info=info,
        frames=sorted(frames.values(), key=lambda line: line.sequence),
        answered_attempt=dict(answered),
        sessions=list(_lines(SessionLine, folder / "sessions.jsonl")),
        ledger=ledger,
        attempts=own,
        server=server_rows_of(journal.read(folder / "server.jsonl")),
        switches=[
            _parse(SwitchLine, row, folder / "plan.jsonl")
            for row in journal.read(folder / "plan.jsonl")
            if row.get("event") == "switch"
        ],
        probes=list(_lines(ProbeLine, folder / "probes.jsonl")),
    )


def _lines(model: type[LineT], path: Path) -> Iterator[LineT]:
    for row in journal.read(path):
        yield _parse(model, row, path)


def _parse(model: type[LineT], row: dict[str, Any], path: Path) -> LineT:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        raise RunDirectoryError(f"{path}: expected the fields of {model.__name__}, got {str(row)[:200]}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return _keyed(json.loads(path.read_bytes()), path) if path.exists() else {}
    except ValueError as error:
        raise RunDirectoryError(f"expected JSON in {path}: {error}") from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return _keyed(yaml.safe_load(path.read_text()) or {}, path) if path.exists() else {}
    except (yaml.YAMLError, ValueError) as error:
        raise RunDirectoryError(f"expected YAML in {path}: {error}") from error


def _keyed(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise RunDirectoryError(f"expected values by name in {path}, got {str(content)[:60]}")
    return content
