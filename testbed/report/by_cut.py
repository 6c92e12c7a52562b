"""A pass by the cuts that its frames went through: how many, how well, how fast, and when the phone switched."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from testbed.report.model import ByCut, OneCut, Switch
from testbed.report.read import FrameLine, Pass, SwitchLine
from testbed.report.statistics import percentiles
from testbed.report.success import accuracy


def of(p: Pass) -> ByCut:
    """Of a pass whose phone had prepared several."""
    used = [name for name in p.info.cuts if any(frame.artefact == name for frame in p.frames)]
    start_ns = min((frame.scheduled_ns for frame in p.frames if frame.scheduled_ns is not None), default=None)
    return ByCut(
        name=p.info.name,
        policy=str((p.info.policy or {}).get("kind", "fixed")),
        all=_one(used[0] if len(used) == 1 else "", p.info.cuts, p.frames),
        cuts=[_one(name, p.info.cuts, [frame for frame in p.frames if frame.artefact == name]) for name in used],
        switches=[_switch(line, start_ns) for line in p.switches],
    )


def _one(name: str, codecs: dict[str, str], frames: Sequence[FrameLine]) -> OneCut:
    answered = [frame for frame in frames if frame.answered]
    return OneCut(
        artefact=name,
        codec=codecs.get(name, ""),
        frames=len(frames),
        accuracy=accuracy(frames),
        total_ms=percentiles([frame.total_ms for frame in answered if frame.total_ms is not None]),
        bytes_up=fmean(frame.bytes_up for frame in answered) if answered else None,
    )


def _switch(line: SwitchLine, start_ns: int | None) -> Switch:
    return Switch(
        at_s=None if start_ns is None else (line.t_ns - start_ns) / 1e9,
        **line.model_dump(include={"before", "to", "why", "rate_up_kbps", "round_trip_ms", "predicted_ms"}),
    )
