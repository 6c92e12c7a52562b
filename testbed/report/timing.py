"""What the phone can tell of a man in the middle by the time that its frames are away (mobile_client/timing.py).

The honest pass is the one past the adversary where there is one, else the clean one, in which a relay only passes frames on.
Its first half teaches what a way is like, its second half are the negatives; every later pass is compared with these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mobile_client.timing import FEWEST, HonestWay, threshold, windows
from testbed.report import roc
from testbed.report.live import is_held
from testbed.report.model import TimingOf, TimingReport
from testbed.report.read import FrameLine, Pass
from testbed.report.statistics import percentiles, rate

F64 = NDArray[np.float64]


def of(passes: Sequence[Pass], notes: list[str]) -> TimingReport | None:
    """None where the phone did not look; a note where it did, and there is too little to say."""
    looked = [p for p in passes if p.info.timing is not None and p.info.kind != "identity"]
    if not looked:
        return None
    honest = min(looked, key=lambda p: (p.info.adversary, p.info.kind != "clean"))
    known = _timed(honest)
    half = len(known) // 2
    window, wanted = int(looked[0].info.timing["window"]), float(looked[0].info.timing["false_alarms"])  # type: ignore[index]
    if half < max(FEWEST, 2 * window):
        notes.append(f"timing: {honest.info.name} has {len(known)} timed frames, too few to say what an honest way is like")
        return None
    way = HonestWay.learned(*_columns(known[:half]))
    above = threshold(_scores(way, known[:half]), window, wanted)
    negatives = _scores(way, known[half:])
    apart = windows(negatives, window, apart=True)
    return TimingReport(
        baseline=honest.info.name,
        direct=not honest.info.adversary,
        window=window,
        false_alarms=wanted,
        honest_alarms=rate(apart > above),
        **vars(way),
        passes=[_of(p, way, above, window, negatives, apart) for p in looked if p is not honest],
    )


def _of(p: Pass, way: HonestWay, above: float, window: int, negatives: F64, negative_windows: F64) -> TimingOf:
    frames = _timed(p)
    scores = _scores(way, frames)
    held = np.array([is_held(p, frame.id) for frame in frames], bool)
    together = windows(scores, window, apart=True)
    return TimingOf(
        name=p.info.name,
        adversary=p.info.adversary,
        way_ms=percentiles([frame.way_ms for frame in frames if frame.way_ms is not None]),
        held=roc.roc(scores[held], negatives),
        not_held=roc.roc(scores[~held], negatives),
        windows=roc.roc(together, negative_windows),
        alarms=rate(together > above) if len(together) else None,
    )


def _timed(p: Pass) -> list[FrameLine]:
    """In the order of their answers, as the phone saw them."""
    return sorted((frame for frame in p.frames if frame.way_ms is not None), key=lambda frame: frame.answered_ns or 0)


def _columns(frames: Sequence[FrameLine]) -> tuple[F64, F64]:
    ways = np.array([frame.way_ms for frame in frames], np.float64)
    return ways, np.array([frame.message_bytes for frame in frames], np.float64)


def _scores(way: HonestWay, frames: Sequence[FrameLine]) -> F64:
    return way.scores(*_columns(frames))
