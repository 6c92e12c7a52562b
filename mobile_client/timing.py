"""Whether somebody holds our frames, by the time that they are away: detection of a man in the middle at the phone.

A frame's **way** is the time from its sending to its answer without what the edge says that it had it (`lb_edge_us`): the link
there and back, and whoever sits on it. What an honest way looks like is learned from an earlier pass: what its bytes cost, and
how it scatters. A frame's score is how many scatters its way is longer than that; a window's is the mean of its frames'
scores, each within +-CLIP, so that neither one straggler nor one frame held for seconds decides alone. The threshold is the
quantile of an honest pass's own windows that gives so many false alarms.

On a clean link a hold is longer than anything that the link does; where there is jitter it has to be longer than that. Whoever
forges `lb_edge_us` hides as much of the hold as he says the edge took; what cannot be (less than nothing, more than the whole)
is not believed. Sealed replies end that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mobile_client.passes import Timing
from splitcore import journal
from splitcore.errors import ScenarioError

F64: TypeAlias = NDArray[np.float64]

CLIP = 8.0
"""scatters that a frame counts in its window at most"""
LEAST_MS = 0.05
"""of the scatter: less than this no phone's clock and scheduler can tell"""
FEWEST = 20
"""timed frames of an honest pass to learn from"""


def way_ms(sent_ns: int, answered_ns: int, edge_ms: float | None) -> float | None:
    """How long a frame was on its way; None where the edge did not say, or said what cannot be."""
    away_ms = (answered_ns - sent_ns) / 1e6
    return None if edge_ms is None or not 0 <= edge_ms <= away_ms else away_ms - edge_ms


@dataclass(frozen=True, kw_only=True)
class HonestWay:
    """What ways look like when nobody holds anything."""

    fixed_ms: float
    per_byte_ms: float
    scatter_ms: float
    """1.4826 times the median absolute deviation: the standard deviation of a Gaussian"""

    @classmethod
    def learned(cls, ways_ms: ArrayLike, message_bytes: ArrayLike) -> HonestWay:
        """Of n frames: the median, and where sizes differ the cost of a byte (median slope between small and large)."""
        ways, sizes = np.asarray(ways_ms, np.float64), np.asarray(message_bytes, np.float64)
        per_byte = _slope(ways, sizes)
        rest = ways - per_byte * sizes
        fixed = float(np.median(rest))
        scatter = 1.4826 * float(np.median(np.abs(rest - fixed)))
        return cls(fixed_ms=fixed, per_byte_ms=per_byte, scatter_ms=max(scatter, LEAST_MS))

    def scores(self, ways_ms: ArrayLike, message_bytes: ArrayLike) -> F64:
        """[n]: by how many scatters each way is longer than an honest one."""
        expected = self.fixed_ms + self.per_byte_ms * np.asarray(message_bytes, np.float64)
        scores: F64 = (np.asarray(ways_ms, np.float64) - expected) / self.scatter_ms
        return scores


def _slope(ways: F64, sizes: F64) -> float:
    """Median of the slopes between frame i of the smaller half and frame i of the larger; 0 where sizes hardly differ."""
    order = np.argsort(sizes, kind="stable")
    half = len(order) // 2
    small, large = order[:half], order[len(order) - half :]
    apart = sizes[large] - sizes[small]
    if not half or np.median(apart) < 0.1 * np.median(sizes):
        return 0.0
    slopes = (ways[large] - ways[small])[apart > 0] / apart[apart > 0]
    return max(0.0, float(np.median(slopes)))


def windows(scores: ArrayLike, n: int, *, apart: bool = False) -> F64:
    """The score of every n frames in a row, [len - n + 1]; `apart`: of windows that share no frame."""
    clipped = np.clip(np.asarray(scores, np.float64), -CLIP, CLIP)
    if len(clipped) < n:
        return np.empty(0)
    means: F64 = np.convolve(clipped, np.full(n, 1 / n), mode="valid")
    return means[::n] if apart else means


def threshold(honest_scores: ArrayLike, n: int, false_alarms: float) -> float:
    """Above which a window of n raises the alarm."""
    of = windows(honest_scores, n)
    return float(np.quantile(of, 1 - false_alarms)) if len(of) else float("inf")


class Watch:
    """The phone's own: every answer's score as it comes, and the alarm."""

    def __init__(self, timing: Timing, honest: HonestWay | None, above: float) -> None:
        """`honest` None: this pass is what others are compared with, its ways are only written down."""
        self._honest, self._above = honest, above
        self._last: deque[float] = deque(maxlen=timing.window)
        self.alarms = 0

    @classmethod
    def of(cls, timing: Timing, passes: Path) -> Watch:
        """As a pass asks for it; `passes`: the folder of the phone's passes. Raises ScenarioError."""
        if timing.baseline is None:
            return cls(timing, None, float("inf"))
        known = [
            (row["way_ms"], row["message_bytes"])
            for row in journal.read(passes / timing.baseline / "frames.jsonl")
            if row.get("way_ms") is not None
        ]
        if len(known) < max(FEWEST, timing.window):
            raise ScenarioError(
                f"expected a run {timing.baseline} of this phone with {max(FEWEST, timing.window)} timed frames or more to "
                f"compare with, it has {len(known)}: run it first, with `timing` and without a baseline"
            )
        ways, sizes = zip(*known, strict=True)
        honest = HonestWay.learned(ways, sizes)
        return cls(timing, honest, threshold(honest.scores(ways, sizes), timing.window, timing.false_alarms))

    def answered(self, way: float | None, message_bytes: int) -> dict[str, float | int | bool | None]:
        """What stands in the frame's line: its way, its score, and whether its window raises the alarm."""
        line: dict[str, float | int | bool | None] = {"way_ms": way, "message_bytes": message_bytes}
        if self._honest is None or way is None:
            return line
        [score] = self._honest.scores([way], [message_bytes])
        self._last.append(float(score))
        alarm = len(self._last) == self._last.maxlen and float(windows(self._last, len(self._last))[0]) > self._above
        self.alarms += alarm
        return {**line, "way_score": round(float(score), 3), "alarm": alarm}
