"""`cross_entropy`: supervised compression (SC), the labels' cross-entropy through the bottleneck.

The baseline of Matsubara et al., "SC2 Benchmark", TMLR 2023 (arXiv 2203.08875), where it is called naive training.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from splitcore.codec.base import STRICT
from splitcore.nn.objective.base import Terms
from splitcore.nn.split_model import SplitModel


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CrossEntropy:
    """-log p(label)."""

    needs_teacher: ClassVar[bool] = False
    kind: Literal["cross_entropy"] = "cross_entropy"

    def terms(self, model: SplitModel, teacher: SplitModel | None, x: Tensor, labels: Tensor) -> Terms:
        return {"labels": functional.cross_entropy(model(x), labels)}
