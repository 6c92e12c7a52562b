"""Receiver operating characteristics, and the area below them with its interval.

The area is the Mann-Whitney statistic over its largest value (Bamber, J. Math. Psychol. 12, 1975). The interval is method 5 of
Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", Statistics in Medicine
25 (2006): the scores that are as far from the area as their own Hanley-McNeil standard error says, with (m + n) / 2 - 1 in
place of either sample's size. Like Wilson's for shares it stays within [0, 1] and is honest at 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import rankdata

from testbed.report.model import Auc, Roc

Z = 1.959963984540054
HAIR = 1e-9
MOST_POINTS = 100


def roc(positives: ArrayLike, negatives: ArrayLike) -> Roc | None:
    """Of scores that are higher for positives; None where there are none of the one kind or the other."""
    high, low = np.sort(np.asarray(positives, np.float64)), np.sort(np.asarray(negatives, np.float64))
    if not len(high) or not len(low):
        return None
    thresholds = np.unique(np.concatenate([high, low]))[::-1]
    false = 1 - np.searchsorted(low, thresholds, side="left") / len(low)
    true = 1 - np.searchsorted(high, thresholds, side="left") / len(high)
    corners = [(0.0, 0.0), *zip(false.tolist(), true.tolist(), strict=True)]
    # a corner in the middle of a straight line says nothing
    kept = [p for p, before, after in zip(corners[1:-1], corners, corners[2:], strict=False) if not _between(before, p, after)]
    if len(kept) > MOST_POINTS:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, MOST_POINTS).round().astype(int)]
    return Roc(auc=auc(high, low), points=[corners[0], *kept, corners[-1]])


def auc(positives: ArrayLike, negatives: ArrayLike) -> Auc:
    high, low = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    m, n = len(high), len(low)
    if not m or not n:
        return Auc(value=None, low=None, high=None, positives=m, negatives=n)
    ranks = rankdata(np.concatenate([high, low]))
    area = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
    least, most = interval(area, m, n)
    return Auc(value=area, low=least, high=most, positives=m, negatives=n)


def interval(area: float, m: int, n: int) -> tuple[float, float]:
    def distance(theta: float) -> float:
        """From the area, beyond what theta's own error allows."""
        size = (m + n) / 2 - 1
        spread = theta * (1 - theta) * (1 + size * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m * n)
        return abs(area - theta) - Z * math.sqrt(max(spread, 0.0))

    # the area itself may be 0 or 1, where its own error is none: begin a hair beside it, where there are two hairs of room
    least = 0.0 if area <= 2 * HAIR else float(brentq(distance, 0.0, area - HAIR))
    most = 1.0 if area >= 1 - 2 * HAIR else float(brentq(distance, area + HAIR, 1.0))
    return least, most


def _between(before: tuple[float, float], at: tuple[float, float], after: tuple[float, float]) -> bool:
    return before[0] == at[0] == after[0] or before[1] == at[1] == after[1]
