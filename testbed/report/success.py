"""Who was fooled: end to end, at the client, over the frames that the clean pass got right.

The adversary's own claim stands beside it: who sends a query counts it, who receives the answer judges it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from testbed.report.model import Rate
from testbed.report.read import FrameLine, Pass
from testbed.report.statistics import rate, rate_of


@dataclass(frozen=True)
class Reference:
    """What the clean pass through the same codec said of every sample."""

    name: str
    truth: dict[int, int]
    """by sample: its label, or where it has none what the clean pass answered"""
    right: frozenset[int]
    """samples of which every clean answer was right"""


@dataclass(frozen=True)
class Success:
    asr: Rate
    raw: Rate
    claimed: Rate
    needed: list[int]
    """queries of each frame counted in `asr`, up to its first success"""
    fooled: frozenset[str]
    """ids of the frames counted in `asr`"""
    counted: frozenset[str]
    """ids of the frames in its denominator"""


def reference_of(attacked: Pass, passes: Sequence[Pass]) -> Reference | None:
    """The pass without an attack over the same samples through the same codec; one without the adversary on the way first."""
    same = [
        p for p in passes
        if p.info.kind in ("clean", "identity")
        and p.info.codec == attacked.info.codec and p.info.source == attacked.info.source
    ]  # fmt: skip
    if not same:
        return None
    chosen = min(same, key=lambda p: (p.info.kind != "clean", p.info.adversary))
    truth: dict[int, int] = {}
    wrong: set[int] = set()
    for frame in chosen.frames:
        if not frame.answered or frame.predicted is None:
            continue
        label = truth.setdefault(frame.sample, frame.predicted if frame.label is None else frame.label)
        if frame.predicted != label:
            wrong.add(frame.sample)
    return Reference(chosen.info.name, truth, frozenset(truth) - wrong)


def accuracy(frames: Iterable[FrameLine]) -> Rate:
    """Over the answered frames that have a label."""
    return rate(frame.predicted == frame.label for frame in frames if frame.answered and frame.label is not None)


def success_of(attacked: Pass, reference: Reference | None) -> Success:
    """A frame that came back with an error stays in the denominator and is never a success."""
    truth = reference.truth if reference else {}
    counted = [frame for frame in attacked.frames if reference and frame.sample in reference.right]
    fooled = [frame for frame in counted if _wrong(frame, truth)]
    sessions = attacked.session_of
    claimed = sum(frame.id in sessions and sessions[frame.id].success for frame in counted)
    return Success(
        asr=rate_of(len(fooled), len(counted)),
        raw=rate_of(sum(_wrong(frame, truth) for frame in attacked.frames), max(attacked.info.count, len(attacked.frames))),
        claimed=rate_of(claimed, len(counted)),
        needed=[queries_needed(attacked, frame.id) for frame in fooled],
        fooled=frozenset(frame.id for frame in fooled),
        counted=frozenset(frame.id for frame in counted),
    )


def _wrong(frame: FrameLine, truth: dict[int, int]) -> bool:
    label = truth.get(frame.sample) if frame.label is None else frame.label
    return frame.answered and label is not None and frame.predicted != label


def queries_needed(attacked: Pass, frame: str) -> int:
    """Up to the first success; a frame that came back wrong without one took all the queries of its session."""
    session = attacked.session_of.get(frame)
    if session is None:
        return 0
    return session.queries if session.first_success is None else session.first_success
