"""What a data set is: images and labels in memory, as they were published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import DataError

Split: TypeAlias = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 [n, C, H, W] with labels int64 [n] that index `classes`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str
    split: Split

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8 or not len(self.images):
            raise DataError(
                f"{self.name}: expected images uint8 [n, C, H, W], got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int64:
            raise DataError(
                f"{self.name}: expected {len(self.images)} labels int64, got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise DataError(
                f"{self.name}: expected labels 0 to {len(self.classes) - 1}, got {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width
