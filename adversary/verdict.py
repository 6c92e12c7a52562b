"""What an answer is, and what it is worth to the adversary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitcore.latent import F32


@dataclass(slots=True)
class Rows:
    """The tail's answers to k rows: a label and perhaps scores, or rejected by a detector, or neither (refused, timed out)."""

    answered: NDArray[np.bool_]
    """[k]"""
    labels: NDArray[np.int64]
    """[k]; -1 where not answered"""
    scores: F32 | None
    """logits or probabilities [k, classes]; None where the server gives labels, or the threat model looks at no more"""
    rejected: NDArray[np.bool_]
    """[k]"""
    why: str = ""
    """what was said of rows that were not answered"""

    def part(self, first: int, end: int) -> Rows:
        scores = None if self.scores is None else self.scores[first:end]
        return Rows(self.answered[first:end], self.labels[first:end], scores, self.rejected[first:end], self.why)

    @staticmethod
    def none(k: int, why: str, *, rejected: bool = False) -> Rows:
        """k rows without an answer."""
        return Rows(np.zeros(k, bool), np.full(k, -1, np.int64), None, np.full(k, rejected), why)

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows:
        """One after the other. A part without an answer has no scores: its rows get zeros, and are not answered."""
        scores = [part.scores for part in parts if part.scores is not None]
        classes = scores[0].shape[1] if scores else 0
        filled = [np.zeros((len(part.labels), classes), np.float32) if part.scores is None else part.scores for part in parts]
        return Rows(
            np.concatenate([part.answered for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate(filled) if scores else None,
            np.concatenate([part.rejected for part in parts]),
            next((part.why for part in parts if part.why), ""),
        )


@dataclass(slots=True)
class Verdict:
    """What k rows are worth to the adversary."""

    loss: F32
    """[k]: log p_y - max log p_j of the class that is to be left, or minus that of the target; +inf without scores"""
    adversarial: NDArray[np.bool_]
    """[k]"""
    log_p: F32 | None
    """[k, classes]"""
    any_adversarial: bool

    def part(self, first: int, end: int) -> Verdict:
        adversarial = self.adversarial[first:end]
        return Verdict(
            self.loss[first:end], adversarial, None if self.log_p is None else self.log_p[first:end],
            self.any_adversarial and bool(adversarial.any()),
        )  # fmt: skip


def judge(rows: Rows, own: NDArray[np.int64], *, targeted: bool) -> Verdict:
    """Untargeted: another label than `own` [k], the clean one. Targeted: `own`, the target."""
    adversarial = (rows.labels == own if targeted else rows.labels != own) & rows.answered
    if rows.scores is None:
        return Verdict(np.full(len(own), np.inf, np.float32), adversarial, None, bool(adversarial.any()))
    log_p = log_probabilities(rows.scores, rows.answered)
    each = np.arange(len(own))
    others = log_p.copy()
    others[each, own] = -np.inf
    margin = log_p[each, own] - others.max(axis=1)  # f_y - max_{j≠y} f_j
    if targeted:
        margin = -margin
    loss = np.where(rows.answered, margin, np.float32(np.inf))
    return Verdict(loss, adversarial, log_p, bool(adversarial.any()))


def log_probabilities(scores: F32, answered: NDArray[np.bool_]) -> F32:
    """Logits or probabilities [k, classes] as log-probabilities: rows within [0, 1] that add up to 1 are probabilities."""
    likely = scores[answered]
    if likely.min(initial=0) >= 0 and np.allclose(likely.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(scores, np.float32(1e-30)))
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_p: F32 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p
