"""How long a batch will take: a straight line through the last ones, rows to nanoseconds (as BentoML's CORK does).

`a * rows + b`, least squares over a window, fitted once more without what lies far off the first line: a garbage collection
or a neighbour on the processor says nothing of the next batch. What batches usually lie above it is added to what is promised.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 64
"""batches that the line goes through"""
ENOUGH = 8
"""batches before which nothing is forecast, and between two fits at least"""
FIT_NS = 20_000_000
"""between two fits at least: small batches come by the thousand a second, and a fit costs as much as one of them"""
LATELY = 4
"""batches by whose slowness the whole line is stretched: a processor that others want too slows all of them at once"""
FAR = 4.0
"""residuals above so many median absolute ones are left out of the second fit"""


STALE_NS = 1_000_000_000
"""without a batch for so long, nothing is forecast: a line that refuses everybody would never be corrected"""


@dataclass(frozen=True)
class Line:
    """What a batch costs; nothing where it is not known: then everything is promised."""

    row_ns: float = 0.0
    batch_ns: float = 0.0
    above_ns: float = 0.0
    """by how much all of the window but one stay below the line and this"""

    def ns(self, rows: int, batch_rows: int) -> float:
        """Of so many rows in batches of at most `batch_rows`."""
        batches = -(-rows // batch_rows)
        # independent batches stray together by the root of their number
        return self.row_ns * rows + self.batch_ns * batches + self.above_ns * math.sqrt(batches)


NOTHING = Line()


class Forecast:
    """Learns from batches on the tail's thread; what it replaces, it replaces whole, so any thread may read it."""

    def __init__(self) -> None:
        self._line = self._said = NOTHING
        """through the window; the same, stretched"""
        self._now: tuple[int, int] | None = None
        """(rows, begun at) of the batch that is computed now"""
        self._seen: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self._slow: deque[float] = deque(maxlen=LATELY)
        """what the last batches took, over what the line had said"""
        self._fresh = self._ended_ns = self._fitted_ns = 0

    def line(self, now_ns: int) -> Line:
        """What a batch that begins now will cost."""
        return self._said if self._now or now_ns - self._ended_ns < STALE_NS else NOTHING

    def begin(self, rows: int, now_ns: int) -> None:
        """A batch of so many rows is computed from now on."""
        if now_ns - self._ended_ns >= STALE_NS:
            self._line, self._said, self._fresh = NOTHING, NOTHING, 0
            self._seen.clear()
            self._slow.clear()
        self._now = (rows, now_ns)

    def end(self, now_ns: int) -> None:
        """It is computed."""
        begun, self._now, self._ended_ns = self._now, None, now_ns
        if begun is not None and begun[0]:
            rows, took_ns = begun[0], now_ns - begun[1]
            if (said_ns := self._line.row_ns * rows + self._line.batch_ns) > 0:
                self._slow.append(took_ns / said_ns)
            self._seen.append((rows, took_ns))
            self._fresh += 1
            if self._fresh >= ENOUGH and (self._line is NOTHING or now_ns - self._fitted_ns >= FIT_NS):
                self._fresh, self._fitted_ns = 0, now_ns
                self._line = fitted(self._seen)
            if self._line is not NOTHING:
                slow = max(1.0, statistics.median(self._slow)) if self._slow else 1.0
                self._said = Line(slow * self._line.row_ns, slow * self._line.batch_ns, self._line.above_ns)

    def left_ns(self, now_ns: int, batch_rows: int) -> float:
        """Of the batch that is computed now."""
        begun = self._now
        return 0.0 if begun is None else max(0.0, self._said.ns(begun[0], batch_rows) - (now_ns - begun[1]))


def fitted(seen: deque[tuple[int, int]]) -> Line:
    """The line through (rows, ns)."""
    rows, took = np.array(seen, np.float64).T
    a, b = _least_squares(rows, took)
    off = np.abs(took - (a * rows + b))
    near = off <= FAR * max(float(np.median(off)), 1.0)
    a, b = _least_squares(rows[near], took[near])
    above = float(np.partition(took - (a * rows + b), -2)[-2])
    return Line(a, b, max(above, 0.0))


def _least_squares(rows: NDArray[np.float64], took: NDArray[np.float64]) -> tuple[float, float]:
    """Neither a row nor a batch costs less than nothing."""
    spread = rows - rows.mean()
    variance = float(spread @ spread)
    a = float(spread @ took) / variance if variance else float(took.mean() / rows.mean())
    a = min(max(a, 0.0), float(took.mean() / rows.mean()))
    return a, max(float(took.mean() - a * rows.mean()), 0.0)
