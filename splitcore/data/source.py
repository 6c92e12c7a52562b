"""What the phone looks at: sample after sample, in an order that both the phone and an insider know.

Frame n shows sample n modulo the source's size. An adversary at the points `input` and `latent` is given the same source, so it
knows the image behind a frame without having seen it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitcore.artefact import Artefact
from splitcore.codec.base import STRICT
from splitcore.data.named import DatasetName
from splitcore.errors import DataError
from splitcore.latent import F32


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ArtefactSource:
    """The held-out samples that lie in the artefact itself: no data set is needed."""

    kind: Literal["artefact"] = "artefact"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetSource:
    """A data set of splitcore.data, from the data directory."""

    kind: Literal["dataset"] = "dataset"
    name: DatasetName
    split: Literal["train", "test"] = "test"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FolderSource:
    """A folder of images; names of sub-folders that are class names are their labels."""

    kind: Literal["folder"] = "folder"
    path: Path


SourceConfig: TypeAlias = Annotated[ArtefactSource | DatasetSource | FolderSource, Field(discriminator="kind")]


class Source:
    """Images uint8 [n, C, H, W], with labels [n] where they are known (-1 where one is not)."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, shape: tuple[int, int, int]) -> None:
        if images.shape[1:] != shape or not len(images):
            raise DataError(f"expected images [n, {', '.join(map(str, shape))}] for this head, got {list(images.shape)}")
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._images)

    def sample(self, sequence: int) -> int:
        """The number of the sample that frame `sequence` shows."""
        return sequence % len(self)

    def image(self, sequence: int) -> F32:
        """float32 [C, H, W] in [0, 1]."""
        image: F32 = self._images[self.sample(sequence)].astype(np.float32) / np.float32(255)
        return image

    def label(self, sequence: int) -> int | None:
        if self._labels is None:
            return None
        label = int(self._labels[self.sample(sequence)])
        return label if label >= 0 else None


def open_source(config: SourceConfig, artefact: Artefact, data_dir: Path | None) -> Source:
    """Raises DataError where it is absent or does not fit the artefact's head."""
    shape = artefact.manifest.input_shape
    match config:
        case ArtefactSource():
            images, labels = artefact.samples
            return Source(images, labels, shape)
        case DatasetSource():
            from splitcore.data import load

            dataset = load(config.name, config.split, data_dir)
            return Source(dataset.images, dataset.labels, shape)
        case FolderSource():
            from splitcore.data.images import folder

            pictures = folder(config.path, shape, artefact.manifest.classes)
            return Source(pictures.images, pictures.labels, shape)
