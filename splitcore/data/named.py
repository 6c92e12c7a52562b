"""The data sets by name, and where they lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from splitcore.data import cifar10, imagenet, mnist
from splitcore.data.dataset import Dataset, Split
from splitcore.data.digits import digits
from splitcore.errors import DataError

DatasetName: TypeAlias = Literal["digits", "mnist", "fashion-mnist", "cifar10", "imagenet"]
DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)


def data_folder(data_dir: Path | None = None) -> Path:
    """The argument, else what LATENTBED_DATA names, else ~/.cache/latentbed."""
    if data_dir is not None:
        return data_dir
    named = os.environ.get("LATENTBED_DATA")
    return Path(named) if named else Path.home() / ".cache" / "latentbed"


def load(
    name: DatasetName, split: Split, data_dir: Path | None = None, *, download: bool = True, progress: bool = True
) -> Dataset:
    """A data set, from the data folder or downloaded to there. Raises DataError where it is absent, cut or altered."""
    if split not in get_args(Split):
        raise DataError(f"expected the split train or test, got {split!r}")
    folder = data_folder(data_dir)
    match name:
        case "digits":
            return digits(split)
        case "mnist" | "fashion-mnist":
            published = mnist.MNIST if name == "mnist" else mnist.FASHION_MNIST
            return mnist.load(published, split, folder, mirrors=published.mirrors if download else (), progress=progress)
        case "cifar10":
            return cifar10.load(split, folder, urls=cifar10.MIRRORS if download else (), progress=progress)
        case "imagenet":
            return imagenet.load(split, folder, progress=progress)
    raise DataError(f"expected a data set of {', '.join(DATASETS)}, got {name!r}")
