"""The last minutes of a node, one sample a second: what its live page draws."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from splitcore.telemetry.exposition import Histogram, quantile

KEEP = 180
"""samples"""
EVERY_S = 1.0

Sample = Mapping[str, float | None]


class Since:
    """What grew between one look and the next: a second's worth of totals that only grow."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._counts: dict[str, list[int]] = {}
        self._at_s = time.monotonic()
        self.seconds = 1.0
        """since the look before"""

    def look(self) -> None:
        """Begins a new one."""
        now = time.monotonic()
        self.seconds, self._at_s = max(now - self._at_s, 1e-3), now

    def grown(self, name: str, total: float) -> float:
        before = self._totals.get(name, 0.0)
        self._totals[name] = total
        return total - before

    def rate(self, name: str, total: float) -> float:
        """Per second."""
        return self.grown(name, total) / self.seconds

    def mean(self, name: str, total: float, count: float) -> float | None:
        """Of what came since; None where nothing did."""
        total, count = self.grown(name, total), self.grown(f"{name} count", count)
        return total / count if count else None

    def quantiles(self, name: str, histograms: Sequence[Histogram], qs: Sequence[float]) -> list[float | None]:
        """Of the values that came since, over all of these histograms, which have the same bounds."""
        if not histograms:
            return [None for _ in qs]
        counts = [sum(column) for column in zip(*(histogram.counts for histogram in histograms), strict=True)]
        before = self._counts.get(name, [0] * len(counts))
        self._counts[name] = counts
        grown = [max(0, now - then) for now, then in zip(counts, before, strict=True)]
        return [quantile(histograms[0].bounds, grown, q) for q in qs]


class History:
    """Samples by name, in order. `measure` is called once a second on the event loop, so it must be cheap."""

    def __init__(self, measure: Callable[[], Sample]) -> None:
        self._measure = measure
        self._samples: deque[Sample] = deque(maxlen=KEEP)

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Samples while the body runs."""
        task = asyncio.create_task(self._run(), name="live history")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            self._samples.append(self._measure())
            await asyncio.sleep(EVERY_S)

    def of(self, name: str) -> list[float | None]:
        """Oldest first, to four digits."""
        return [None if (value := sample.get(name)) is None else float(f"{value:.4g}") for sample in self._samples]

    def last(self, name: str) -> float | None:
        """The newest value that is one."""
        return next((value for sample in reversed(self._samples) if (value := sample.get(name)) is not None), None)
