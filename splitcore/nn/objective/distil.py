"""`distil`: knowledge distillation (KD), the teacher's softened probabilities beside the labels.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), section 2:
α·CE(labels) + (1 - α)·T²·KL(teacher ‖ student), both softmax at temperature T. α = 0.5 and T = 1 are those of head network
distillation (Matsubara et al., IEEE Access 8, 2020), of BottleFit's and of the Entropic Student's second stage.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from splitcore.codec.base import STRICT
from splitcore.nn.objective.base import Terms
from splitcore.nn.split_model import SplitModel


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Distil:
    """α·CE + (1 - α)·T²·KL."""

    needs_teacher: ClassVar[bool] = True
    kind: Literal["distil"] = "distil"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """α: the labels' share"""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """T: logits are divided by it"""

    def terms(self, model: SplitModel, teacher: SplitModel | None, x: Tensor, labels: Tensor) -> Terms:
        assert teacher is not None
        with torch.no_grad():
            theirs = teacher.unsplit(x)
        ours, t = model(x), self.temperature
        soft = functional.kl_div((ours / t).log_softmax(1), (theirs / t).log_softmax(1), reduction="batchmean", log_target=True)
        return {"labels": self.alpha * functional.cross_entropy(ours, labels), "teacher": (1 - self.alpha) * t * t * soft}
