"""The data sets: digits always; the others from a data folder, where there is one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from splitcore.data import cifar10, data_folder, load
from splitcore.errors import DataError

CANDIDATES = (os.environ.get("LATENTBED_DATA"), Path(__file__).parents[3] / "shared" / "data")


def real(name: str) -> Path:
    for candidate in CANDIDATES:
        if candidate and (Path(candidate) / name).is_dir():
            return Path(candidate)
    pytest.skip(f"no {name} in LATENTBED_DATA nor in ../shared/data")


def test_digits_are_split_the_same_way_each_time_and_evenly_over_the_classes() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test), test.shape) == (1437, 360, (1, 8, 8))
    assert np.bincount(test.labels).tolist() == [36] * 10
    assert test.labels[:8].tolist() == load("digits", "test").labels[:8].tolist() == [4, 7, 3, 8, 5, 9, 3, 4]
    assert (train.images.min(), train.images.max(), train.images.dtype) == (0, 255, np.uint8)


def test_no_test_image_of_the_digits_is_trained_on() -> None:
    train = {image.tobytes() for image in load("digits", "train").images}
    assert not train & {image.tobytes() for image in load("digits", "test").images}


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_the_real_idx_sets_load_to_the_published_bits(name: str, split: str, count: int) -> None:
    dataset = load(name, split, real(name), download=False)  # type: ignore[arg-type]
    assert dataset.images.shape == (count, 1, 28, 28)
    assert np.bincount(dataset.labels).sum() == count
    assert len(set(dataset.labels.tolist())) == len(dataset.classes) == 10
    dataset.images[0] = 0  # one's own memory


def test_the_part_of_cifar10_that_is_there_loads_as_the_binary_files_bits() -> None:
    folder = real("cifar10")
    train, test = load("cifar10", "train", folder, download=False), load("cifar10", "test", folder, download=False)
    assert train.images.shape == (20_000, 3, 32, 32)
    assert np.bincount(test.labels).tolist() == [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]
    with np.load(folder / "cifar10" / "test_first1000.npz") as arrays:
        np.testing.assert_array_equal(test.images[5, 2], arrays["images"][5, :, :, 2])


def test_official_binary_batches_load_and_one_changed_byte_is_found(tmp_path: Path) -> None:
    records = cifar10.read_arrays(real("cifar10") / "cifar10" / "train_batch_1.npz", 10_000)
    path = tmp_path / "data_batch_1.bin"
    records.tofile(path)
    md5 = cifar10.BINARIES["train"][path.name]
    np.testing.assert_array_equal(cifar10.checked(path, cifar10.read_binary(path), md5), records)
    records[77, 7] ^= 1
    records.tofile(path)
    with pytest.raises(DataError, match="expected MD5"):
        cifar10.checked(path, cifar10.read_binary(path), md5)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_an_absent_set_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"expected {tmp_path}.*put") as error:
        load(name, "test", tmp_path, download=False)  # type: ignore[arg-type]
    assert name in str(error.value)


def test_an_unknown_name_or_split_is_refused() -> None:
    with pytest.raises(DataError, match="expected a data set of digits"):
        load("svhn", "test")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="train or test"):
        load("digits", "validation")  # type: ignore[arg-type]


def test_the_data_folder_is_the_argument_then_the_variable_then_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LATENTBED_DATA", str(tmp_path))
    assert data_folder(Path("mine")) == Path("mine")
    assert data_folder() == tmp_path
    monkeypatch.delenv("LATENTBED_DATA")
    assert data_folder() == Path.home() / ".cache" / "latentbed"


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0))
    return file.getvalue()


def test_a_hostile_npz_is_a_data_error_and_its_claims_take_no_memory(tmp_path: Path) -> None:
    labels, images = npy(np.zeros(2, np.uint8)), npy(np.zeros((2, 32, 32, 3), np.uint8))
    assert cifar10.read_arrays(npz(tmp_path / "good.npz", images=images, labels=labels), 2).shape == (2, 3073)
    claims = images.replace(b"(2, 32, 32, 3)", b"(2000000000,3)")
    objects = npy(np.array([{}, []], object))
    hostile = {
        "claims": {"images": claims, "labels": labels},
        "objects": {"images": images, "labels": objects},
        "cut": {"images": images[:-1], "labels": labels},
        "missing": {"images": images},
        "no header": {"images": b"", "labels": b"\x93NUMPY\x01\x00"},
        "transposed": {"images": images.replace(b"False", b"True "), "labels": labels},
    }
    for name, members in hostile.items():
        with pytest.raises(DataError):
            cifar10.read_arrays(npz(tmp_path / f"{name}.npz", **members), 2)
    (tmp_path / "no.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"is no \.npz"):
        cifar10.read_arrays(tmp_path / "no.zip", 2)


def test_unpacking_the_archive_takes_the_known_files_only_and_stays_in_its_folder(tmp_path: Path) -> None:
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "cifar10"
    folder.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("cifar-10-batches-bin/data_batch_1.bin", "../evil", "x/../../test_batch.bin", "readme.html"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"data"))
        link = tarfile.TarInfo("data_batch_2.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    cifar10.unpack(archive, folder)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a.tar.gz", "cifar10", "data_batch_1.bin", "test_batch.bin",
    ]  # fmt: skip
    assert (folder / "data_batch_1.bin").read_bytes() == b"data"


def test_an_altered_archive_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / cifar10.ARCHIVE).write_bytes(b"no archive")
    with pytest.raises(DataError, match="not the official archive"):
        load("cifar10", "test", tmp_path, download=False)


def test_data_and_head_import_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['sklearn'] = None\n"
        "import splitcore.data, splitcore.head, splitcore.data.source\n"
        "from splitcore.errors import DataError\n"
        "try: splitcore.data.load('digits', 'test')\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "expected scikit-learn" in done.stdout
