"""What the phone looks at: frame n of a pass shows sample n modulo the number of samples, always and in this order.

Others rely on that order: an adversary at the points `input` and `latent` is an insider who holds the same samples, and knows
from a frame's sequence which one it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass

from splitcore.artefact import Artefact
from splitcore.codec.base import STRICT
from splitcore.data.dataset import Split
from splitcore.data.images import folder
from splitcore.data.named import DatasetName, load
from splitcore.errors import DataError


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class ArtefactSource:
    """The artefact's own held-out samples: a phone needs nothing else."""

    kind: Literal["artefact"] = "artefact"


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetSource:
    """A data set from the data folder."""

    kind: Literal["dataset"] = "dataset"
    name: DatasetName
    split: Split = "test"


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class FolderSource:
    """PNG and JPEG files in a folder; sub-folders that are named after the classes give labels."""

    kind: Literal["folder"] = "folder"
    path: Path


SourceConfig: TypeAlias = Annotated[ArtefactSource | DatasetSource | FolderSource, Field(discriminator="kind")]


@dataclass(frozen=True, eq=False)
class Samples:
    """Images uint8 [n, C, H, W] and, where they are known, their labels [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None

    def sample_of(self, sequence: int) -> int:
        """The index of the sample that frame `sequence` shows."""
        return sequence % len(self.images)

    def label_of(self, sample: int) -> int | None:
        return None if self.labels is None else int(self.labels[sample])


def open_source(source: SourceConfig, artefact: Artefact, data_dir: Path | None) -> Samples:
    """Raises DataError, ArtefactError when the samples are absent or do not fit the artefact's head."""
    manifest = artefact.manifest
    match source:
        case ArtefactSource():
            images, labels = artefact.samples
            samples, name = Samples(images, labels), "the artefact's samples"
        case DatasetSource():
            dataset = load(source.name, source.split, data_dir, progress=False)
            if len(dataset.classes) != len(manifest.classes):
                raise DataError(
                    f"artefact {manifest.name} expected {len(manifest.classes)} classes, {source.name} has "
                    f"{len(dataset.classes)}: choose the data set it was trained for, {manifest.dataset}"
                )
            samples, name = Samples(dataset.images, dataset.labels), f"{source.name} ({source.split})"
        case FolderSource():
            found = folder(source.path, manifest.input_shape, manifest.classes)
            samples, name = Samples(found.images, found.labels), str(source.path)
    if samples.images.shape[1:] != manifest.input_shape or not len(samples.images):
        raise DataError(
            f"artefact {manifest.name} expected images [n, {', '.join(map(str, manifest.input_shape))}], "
            f"{name} gave {list(samples.images.shape)}: choose another source, or another artefact"
        )
    return samples
