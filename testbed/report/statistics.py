"""Shares with intervals, percentiles, and success over queries.

Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927): the interval for a share that
stays within [0, 1] and is honest at 0 and 1, where the normal approximation is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import binomtest

from testbed.report.model import Percentiles, Rate

CONFIDENCE = 0.95


def rate(outcomes: Iterable[bool]) -> Rate:
    """The share of True."""
    listed = list(outcomes)
    return rate_of(sum(listed), len(listed))


def rate_of(count: int, n: int) -> Rate:
    if n == 0:
        return Rate(value=None, low=None, high=None, count=0, n=0)
    interval = binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson")
    return Rate(value=count / n, low=float(interval.low), high=float(interval.high), count=count, n=n)


def percentiles(values: Sequence[float]) -> Percentiles:
    """By linear interpolation between order statistics, as numpy's default."""
    if not values:
        return Percentiles(p50=None, p90=None, p99=None, n=0, hidden="no frame was measured")
    p50, p90, p99 = (float(value) for value in np.percentile(np.asarray(values, np.float64), (50, 90, 99)))
    return Percentiles(p50=p50, p90=p90, p99=p99, n=len(values))


def median(values: Iterable[float]) -> float | None:
    listed = list(values)
    return float(np.median(listed)) if listed else None


def success_over_queries(needed: Iterable[int], n: int, budget: int | None) -> list[tuple[int, float]]:
    """The step function q -> share of n that needed at most q queries, from 0 to the budget."""
    ordered = sorted(needed)
    if n == 0:
        return []
    curve: dict[int, float] = {0: 0.0}
    for successes, queries in enumerate(ordered, start=1):
        curve[queries] = successes / n
    end = max([budget or 0, *ordered])
    curve.setdefault(end, len(ordered) / n)
    return sorted(curve.items())
