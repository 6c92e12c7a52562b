"""`mnist` and `fashion-mnist`: 60,000 and 10,000 gray images of 28x28, in IDX.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE, 1998; Xiao,
Rasul, Vollgraf, "Fashion-MNIST", arXiv 1708.07747. The MD5s are of the uncompressed files as published: a .gz may have
been compressed anew.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitcore.data import idx
from splitcore.data.dataset import Dataset, Split
from splitcore.data.download import fetch
from splitcore.errors import DataError


@dataclass(frozen=True)
class File:
    """One published file."""

    name: str
    size_bytes: int
    """uncompressed"""
    md5: str
    """of the uncompressed contents"""


@dataclass(frozen=True)
class Published:
    """A data set in the form of MNIST."""

    name: str
    files: dict[Split, tuple[File, File]]
    """images and labels of each split"""
    mirrors: tuple[str, ...]
    classes: tuple[str, ...]


def _files(prefix: str, count: int, images_md5: str, labels_md5: str) -> tuple[File, File]:
    return (
        File(f"{prefix}-images-idx3-ubyte", 16 + count * 784, images_md5),
        File(f"{prefix}-labels-idx1-ubyte", 8 + count, labels_md5),
    )


MNIST = Published(
    "mnist",
    {
        "train": _files("train", 60_000, "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
        "test": _files("t10k", 10_000, "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    },
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    tuple("0123456789"),
)
FASHION_MNIST = Published(
    "fashion-mnist",
    {
        "train": _files("train", 60_000, "f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9"),
        "test": _files("t10k", 10_000, "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
    },
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def load(
    published: Published, split: Split, data_dir: Path, *, mirrors: tuple[str, ...] | None = None, progress: bool = True
) -> Dataset:
    """From `data_dir/<name>/`, downloaded to there first where absent. `mirrors`: none for ()."""
    urls = published.mirrors if mirrors is None else mirrors
    folder = data_dir / published.name
    arrays = [idx.parse(_contents(file, folder, urls, progress), file.name) for file in published.files[split]]
    # copied: what was parsed is a read-only view of the file
    images, labels = arrays[0][:, None].copy(), arrays[1].astype(np.int64)
    return Dataset(images, labels, published.classes, published.name, split)


def _contents(file: File, folder: Path, mirrors: tuple[str, ...], progress: bool) -> bytes:
    plain, compressed = folder / file.name, folder / f"{file.name}.gz"
    if plain.exists():
        return read(plain, file)
    if not compressed.exists():

        def check(path: Path) -> None:
            read(path, file)

        urls = [mirror + compressed.name for mirror in mirrors]
        # gzip makes a file that cannot be compressed a little longer
        fetch(urls, compressed, max_bytes=file.size_bytes + 4096, check=check, progress=progress)
    return read(compressed, file)


def read(path: Path, file: File) -> bytes:
    """The uncompressed contents of `path`, which are `file` to the last bit. Raises DataError."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            # one byte more than there may be, so that an over-long file shows and a bomb stays small
            data = (gzip.GzipFile(fileobj=raw) if packed else raw).read(file.size_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}: delete it to have it downloaded again") from error
    if len(data) != file.size_bytes:
        more = "more than " if len(data) > file.size_bytes else ""
        raise DataError(
            f"{path}: expected {file.size_bytes} bytes, uncompressed, got {more}{min(len(data), file.size_bytes)}: "
            "delete it to have it downloaded again"
        )
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != file.md5:
        raise DataError(
            f"{path}: expected MD5 {file.md5} of the uncompressed contents, got {md5}: the file was altered; "
            "delete it to have it downloaded again"
        )
    return data
