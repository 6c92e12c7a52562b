"""What the split and the codec cost by themselves: the clean pass, and its agreement with the unsplit model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitcore.artefact import Artefact
from testbed.report.model import Clean, Rate
from testbed.report.read import FrameLine, Pass
from testbed.report.statistics import rate
from testbed.report.success import accuracy

IDENTITY_CODECS = ("identity", "identity+zstd")


@dataclass(frozen=True)
class Unsplit:
    """What the unsplit model says of the artefact's samples."""

    labels: NDArray[np.int64]
    truth: NDArray[np.int64]

    @classmethod
    def of(cls, artefact: Artefact | None) -> Unsplit | None:
        return cls(artefact.unsplit_labels, artefact.samples[1]) if artefact else None

    def knows(self, frames: Sequence[FrameLine]) -> bool:
        """The frames are the artefact's samples: their numbers exist there and their labels are the same."""
        return all(f.sample < len(self.truth) and f.label in (None, int(self.truth[f.sample])) for f in frames)

    def agreement(self, frames: Sequence[FrameLine]) -> Rate:
        return rate(f.predicted == int(self.labels[f.sample]) for f in frames)

    def accuracy(self, frames: Sequence[FrameLine]) -> Rate:
        return rate(int(self.labels[f.sample]) == f.label for f in frames if f.label is not None)


def clean_of(passes: Sequence[Pass], unsplit: Unsplit | None, notes: list[str]) -> Clean:
    """Of the first clean pass, and of the first identity pass. What cannot be told is null, and a note says why."""
    frames = _answered(next((p for p in passes if p.info.kind == "clean"), None))
    identity = _answered(next((p for p in passes if p.info.kind == "identity" and p.info.codec in IDENTITY_CODECS), None))
    right = accuracy(frames)
    if unsplit and not unsplit.knows([*frames, *identity]):
        notes.append("the frames are not the artefact's samples: their agreement with the unsplit model is not known")
        unsplit = None
    if not identity:
        notes.append("no identity pass: the agreement of the split model with the unsplit one was not measured")
    split = unsplit.agreement(identity) if unsplit else None
    through = unsplit.agreement(frames) if unsplit else None
    whole = unsplit.accuracy(frames) if unsplit else None
    return Clean(
        accuracy=right.value,
        n=right.n,
        low=right.low,
        high=right.high,
        agreement_with_unsplit=split.value if split else None,
        agreement_with_unsplit_rate=split,
        agreement_through_codec=through.value if through else None,
        agreement_through_codec_rate=through,
        unsplit_accuracy=whole.value if whole else None,
        unsplit_accuracy_rate=whole,
    )


def _answered(p: Pass | None) -> list[FrameLine]:
    return [frame for frame in p.frames if frame.answered] if p else []
