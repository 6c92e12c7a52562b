"""A stage: some epochs of a training towards one objective, as data."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from splitcore.codec.base import STRICT
from splitcore.nn.objective import CrossEntropy, ObjectiveConfig
from splitcore.nn.split_model import SplitModel

MOMENTUM = 0.9
"""of sgd"""
DROP = 0.1
"""what the learning rate is multiplied with at each of `drops`"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage:
    """What is minimised, by which optimiser, and what stands still meanwhile."""

    objective: ObjectiveConfig = field(default_factory=CrossEntropy)
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    """passes over the training images"""
    batch: Annotated[int, Field(ge=2, le=65_536)] = 64
    """images a step"""
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    """sgd has a momentum of 0.9; weight decay is decoupled in adamw alone"""
    lr: Annotated[float, Field(gt=0, le=1)] = 5e-3
    """learning rate; the largest one where it follows a cycle"""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-2
    drops: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """epochs before which the learning rate falls to a tenth; none: one cycle (Smith and Topin, arXiv 1708.07120)"""
    frozen: tuple[Literal["head", "bottleneck", "decoder", "rest"], ...] = ()
    """parts that keep their weights and compute as in use: normalisation by its running moments, latents really quantised"""

    def parameters_of(self, model: SplitModel) -> list[nn.Parameter]:
        """Those that learn; sets every part of `model` to learn or to stand still."""
        model.train().requires_grad_(True)
        for name in self.frozen:
            part = model.tail.get_submodule(name) if name in ("decoder", "rest") else model.get_submodule(name)
            part.eval().requires_grad_(False)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def optimiser_of(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        match self.optimiser:
            case "adamw":
                return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)
            case "adam":
                return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay)
            case "sgd":
                return torch.optim.SGD(parameters, self.lr, MOMENTUM, weight_decay=self.weight_decay)

    def schedule_of(self, optimiser: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Stepped after every batch, of which an epoch has `steps`."""
        if self.drops is None:
            return torch.optim.lr_scheduler.OneCycleLR(optimiser, self.lr, total_steps=steps * self.epochs)
        return torch.optim.lr_scheduler.MultiStepLR(optimiser, [epoch * steps for epoch in self.drops], DROP)
