"""What an objective is: named terms of a loss, whose sum a stage of a training makes small."""

from __future__ import annotations

from typing import ClassVar, Protocol, TypeAlias

from torch import Tensor

from splitcore.nn.split_model import SplitModel

Terms: TypeAlias = dict[str, Tensor]
"""each a scalar, weighted: their sum is the loss"""


class Objective(Protocol):
    """A frozen dataclass of how; what it is computed of are the arguments of the call."""

    needs_teacher: ClassVar[bool]

    def terms(self, model: SplitModel, teacher: SplitModel | None, x: Tensor, labels: Tensor) -> Terms:
        """Of images [k, C, H, W] in [0, 1] and their labels [k]. The bottleneck's own penalty is not among them."""
