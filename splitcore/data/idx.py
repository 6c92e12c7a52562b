"""IDX, the format of MNIST: https://yann.lecun.com/exdb/mnist, "the IDX file format is a simple format for vectors".

Two zero bytes, a type (0x08: unsigned byte), the number of dimensions, each dimension as big-endian uint32, the values.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import DataError

_UNSIGNED_BYTE = 8
MAX_DIMENSIONS = 4


def parse(data: bytes, what: str) -> NDArray[np.uint8]:
    """The array in `data`, as a view of it: nothing is allocated for what a header claims. Raises DataError."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE:
        raise DataError(f"{what}: expected an IDX file of unsigned bytes (00 00 08 ..), got {data[:4].hex(' ') or 'nothing'}")
    dimensions = data[3]
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise DataError(f"{what}: expected 1 to {MAX_DIMENSIONS} dimensions, the header says {dimensions}")
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise DataError(f"{what}: expected a header of {start} bytes, the file has {len(data)}: it was cut")
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    if math.prod(shape) != len(data) - start:
        raise DataError(
            f"{what}: the header says {' x '.join(map(str, shape))} = {math.prod(shape)} values, "
            f"{len(data) - start} follow: the file was cut or altered"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
