"""IDX headers: what is well formed is read, whatever else is refused by name."""

from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from splitcore.data import idx, mnist
from splitcore.errors import DataError


def as_idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4, max_side=6)))
def test_what_is_written_as_idx_is_read_back(array: np.ndarray) -> None:
    np.testing.assert_array_equal(idx.parse(as_idx(array), "it"), array)


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=3, max_side=4)), st.data())
def test_a_cut_file_is_refused(array: np.ndarray, data: st.DataObject) -> None:
    whole = as_idx(array)
    with pytest.raises(DataError):
        idx.parse(whole[: data.draw(st.integers(0, len(whole) - 1))], "it")


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda rest: b"\0\0\x08" + rest))
def test_hostile_bytes_are_an_array_or_a_data_error(data: bytes) -> None:
    try:
        array = idx.parse(data, "it")
    except DataError:
        return
    assert as_idx(array) == data


def test_a_header_that_claims_4_billion_values_a_side_takes_no_memory() -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match="the header says"):
        idx.parse(b"\0\0\x08\x04" + b"\xff" * 16 + b"x" * 10, "it")
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


CONTENT = as_idx(np.arange(200, dtype=np.uint8).reshape(2, 10, 10))
FILE = mnist.File("tiny", len(CONTENT), hashlib.md5(CONTENT).hexdigest())


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_is_read_gzipped_or_not(tmp_path: Path, pack: type[bytes]) -> None:
    (tmp_path / "tiny").write_bytes(pack(CONTENT))
    assert mnist.read(tmp_path / "tiny", FILE) == CONTENT


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (CONTENT[:-1] + b"\xff", "expected MD5"),
        (CONTENT[:-1], f"expected {len(CONTENT)} bytes"),
        (CONTENT + b"x", "got more than"),
        (gzip.compress(CONTENT)[:-20], "cannot be read"),
        (gzip.compress(bytes(1 << 24)), "got more than"),
        (b"\x1f\x8b not gzip", "cannot be read"),
        (b"", "got 0"),
    ],
    ids=["altered", "cut", "longer", "gzip cut", "gzip bomb", "not gzip", "empty"],
)
def test_an_altered_file_is_refused_with_what_to_do(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "tiny").write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        mnist.read(tmp_path / "tiny", FILE)
    assert "delete it" in str(error.value)
