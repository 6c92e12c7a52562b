"""`cifar10`: 50,000 and 10,000 colour images of 32x32. Krizhevsky, "Learning Multiple Layers of Features", 2009.

Two forms are read. The official binary one (https://www.cs.toronto.edu/~kriz/cifar.html): records of 3,073 bytes, a
label and then the red, green and blue plane. And .npz with `images` uint8 [n, 32, 32, 3] and `labels` uint8 [n], which
may be a part of the whole: the first batches, and the first 1,000 test images. An .npz is checked as the binary file
that it equals.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from splitcore.data.dataset import Dataset, Split
from splitcore.data.download import fetch
from splitcore.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = "cifar-10-binary.tar.gz"
MIRRORS = (f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",)
ARCHIVE_BYTES, ARCHIVE_MD5 = 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"
RECORD_BYTES, BATCH = 3073, 10_000

BINARIES: dict[Split, dict[str, str]] = {
    "train": {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    },
    "test": {"test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d"},
}
ARRAYS: dict[Split, dict[str, tuple[int, str]]] = {
    "train": {f"train_batch_{k}.npz": (BATCH, BINARIES["train"][f"data_batch_{k}.bin"]) for k in range(1, 6)},
    "test": {"test_first1000.npz": (1000, "371f65da31ad652f5e24b3699a3e6515")},
}
"""file: number of images, MD5 of them as binary records"""


def load(split: Split, data_dir: Path, *, urls: tuple[str, ...] = MIRRORS, progress: bool = True) -> Dataset:
    """From `data_dir/cifar10/`, all of the split or the part that is there; downloaded to there first where absent."""
    folder = data_dir / "cifar10"
    records = _records(split, folder)
    if records is None:
        download(folder, urls=urls, progress=progress)
        records = _records(split, folder)
        assert records is not None
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32)
    return Dataset(images, records[:, 0].astype(np.int64), CLASSES, "cifar10", split)


def _records(split: Split, folder: Path) -> NDArray[np.uint8] | None:
    """[n, 3073]; None where there is nothing of this split."""
    binaries = {folder / name: md5 for name, md5 in BINARIES[split].items()}
    if all(path.exists() for path in binaries):
        return np.concatenate([checked(path, read_binary(path), md5) for path, md5 in binaries.items()])
    parts = []
    for name, (count, md5) in ARRAYS[split].items():
        if not (folder / name).exists():
            break  # the first batches in order, never with a gap
        parts.append(checked(folder / name, read_arrays(folder / name, count), md5))
    return np.concatenate(parts) if parts else None


def checked(path: Path, records: NDArray[np.uint8], expected: str) -> NDArray[np.uint8]:
    md5 = hashlib.md5(records.data, usedforsecurity=False).hexdigest()
    if md5 != expected:
        raise DataError(f"{path}: expected MD5 {expected} as binary records, got {md5}: the file was altered; fetch it anew")
    return records


def read_binary(path: Path) -> NDArray[np.uint8]:
    if path.stat().st_size != BATCH * RECORD_BYTES:
        raise DataError(f"{path}: expected {BATCH * RECORD_BYTES} bytes, got {path.stat().st_size}: fetch it anew")
    return np.fromfile(path, np.uint8).reshape(BATCH, RECORD_BYTES)


def read_arrays(path: Path, count: int) -> NDArray[np.uint8]:
    """The .npz as binary records; its headers are compared before memory is taken for what they announce."""
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open("images.npy") as images,
            archive.open("labels.npy") as labels,
        ):
            pixels = _array(path, images, (count, 32, 32, 3))
            return np.hstack([_array(path, labels, (count, 1)), pixels.transpose(0, 3, 1, 2).reshape(count, 3072)])
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no .npz of `images` and `labels`: {error}") from error


def _array(path: Path, file: IO[bytes], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("expected .npy of version 1.0")
    declared, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    expected = shape if len(shape) > 2 else shape[:1]
    if declared != expected or dtype != np.uint8 or by_columns:
        raise DataError(f"{path}: expected uint8 {list(expected)}, got {dtype} {list(declared)}")
    return np.frombuffer(file.read(np.prod(shape).item()), np.uint8).reshape(shape)


def download(folder: Path, *, urls: tuple[str, ...] = MIRRORS, progress: bool = True) -> None:
    """Fetches the official archive and takes the six known files out of it. Raises DataError."""
    archive = folder / ARCHIVE
    if not archive.exists():
        try:
            fetch(urls, archive, max_bytes=ARCHIVE_BYTES, check=check_archive, progress=progress)
        except DataError as error:
            raise DataError(f"{error}; or put data_batch_1.bin to _5.bin and test_batch.bin in {folder}") from error
    check_archive(archive)
    unpack(archive, folder)
    archive.unlink()


def unpack(archive: Path, folder: Path) -> None:
    """The six known files of an archive to `folder`, whatever folders and further members it names."""
    expected = {name for names in BINARIES.values() for name in names}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = Path(member.name).name
            source = tar.extractfile(member) if name in expected and member.isfile() else None
            if source is None:
                continue
            # under another name until whole
            part = folder / f"{name}.part"
            part.write_bytes(source.read(BATCH * RECORD_BYTES))
            part.replace(folder / name)


def check_archive(path: Path) -> None:
    """Raises DataError unless `path` is the official archive."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != ARCHIVE_MD5:
        raise DataError(f"{path}: expected MD5 {ARCHIVE_MD5}, got {md5}: not the official archive; delete it")
