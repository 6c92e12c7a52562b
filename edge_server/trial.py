"""The forms of a tail, and what was seen of one when it was loaded. No torch here: scenarios name them too."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Literal

TailKind = Literal["auto", "plain", "eager", "channels-last", "bfloat16", "compile", "cuda-graphs", "onnxruntime"]
"""auto: the fastest, by measurement; plain: as the artefact has it, torch eager or ONNX Runtime"""


@dataclass
class Trial:
    """What was seen of one form."""

    kind: str
    ms: dict[int, float] = field(default_factory=dict)
    """by rows of a batch, the median"""
    furthest: float | None = None
    """largest difference of a logit from the plain form, as a share of the largest logit, on held-out samples"""
    labels_changed: int | None = None
    """of those samples"""
    against: str = ""
    """why it is not chosen by itself"""
    chosen: bool = False

    @property
    def cost(self) -> float:
        """Geometric mean over the sizes: as much is gained by halving the one as by halving the other."""
        return statistics.geometric_mean(self.ms.values())
