"""Shares with intervals, percentiles, and success over queries.

Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927): the interval for a share that
stays within [0, 1] and is honest at 0 and 1, where the normal approximation is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from scipy.stats import binomtest

from testbed.report.model import Percentiles, Rate

CONFIDENCE = 0.95
Cost = TypeVar("Cost", int, float)


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


def success_over(needed: Iterable[Cost], n: int, end: Cost | None) -> list[tuple[Cost, float]]:
    """The step function c -> share of n that needed at most c (queries, or ms), from 0 to `end`."""
    ordered: list[Cost] = sorted(needed)
    if n == 0:
        return []
    curve: dict[Cost, float] = {0: 0.0}
    for successes, cost in enumerate(ordered, start=1):
        curve[cost] = successes / n
    last = max(curve)
    curve.setdefault(last if end is None else max(end, last), len(ordered) / n)
    return sorted(curve.items())


def rounded_steps(low: float, high: float, at_most: int = 6) -> list[float]:
    """Up to `at_most` numbers from about `low` to `high`, which is the last: 1, 2, 5, 10, ... between them."""
    if high <= 0:
        return []
    steps: list[float] = []
    exponent = math.floor(math.log10(max(low, high / 1e5)))
    while 10.0**exponent < high:
        steps += [factor * 10.0**exponent for factor in (1, 2, 5)]
        exponent += 1
    # none within a fifth of the last: it would say the same
    inner = [step for step in steps if low <= step < 0.8 * high]
    kept = np.linspace(0, len(inner) - 1, min(len(inner), at_most - 1)).round().astype(int)
    return [*(inner[i] for i in kept), high]
