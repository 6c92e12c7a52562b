"""What the camera sees: frame n of a pass shows sample n modulo the number of samples, always and in this order.

Others rely on that order: an insider who holds the same data knows from a frame's sequence which sample it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobile_client.passes import ArtefactSource, DatasetSource, FolderSource, Source
from splitcore import data
from splitcore.artefact import Artefact
from splitcore.errors import DataError


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


def open_source(source: Source, artefact: Artefact, data_dir: Path | None) -> Samples:
    """Raises DataError, ArtefactError when the samples are absent or do not fit the artefact's head."""
    manifest = artefact.manifest
    match source:
        case ArtefactSource():
            images, labels = artefact.samples
            samples, name = Samples(images, labels), "the artefact's samples"
        case DatasetSource():
            dataset = data.load(source.name, source.split, data_dir, progress=False)
            if len(dataset.classes) != len(manifest.classes):
                raise DataError(
                    f"artefact {manifest.name} expected {len(manifest.classes)} classes, {source.name} has "
                    f"{len(dataset.classes)}: choose the data set it was trained for, {manifest.dataset}"
                )
            samples, name = Samples(dataset.images, dataset.labels), f"{source.name} ({source.split})"
        case FolderSource():
            found = data.folder(source.path, manifest.input_shape, manifest.classes)
            samples, name = Samples(found.images, found.labels), str(source.path)
    if samples.images.shape[1:] != manifest.input_shape or not len(samples.images):
        raise DataError(
            f"artefact {manifest.name} expected images [n, {', '.join(map(str, manifest.input_shape))}], "
            f"{name} gave {list(samples.images.shape)}: choose another source, or another artefact"
        )
    return samples
