"""Tensors of the protocol's messages as bytes and arrays, in raw contents or in typed ones.

Raw: an entry a tensor beside all of them, row-major, little-endian. Typed: packed lists inside the tensor itself; MLServer
and clients that never heard of raw contents write those. FP16 and BF16 exist in raw form only.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from splitcore.errors import WireError
from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.bounds import weigh

Refuse: TypeAlias = Callable[[str], WireError]
Tensor: TypeAlias = pb.ModelInferRequest.InferInputTensor | pb.ModelInferResponse.InferOutputTensor

NUMBERS = {
    "BOOL": ("?", "bool_contents"),
    "UINT8": ("u1", "uint_contents"), "UINT16": ("<u2", "uint_contents"), "UINT32": ("<u4", "uint_contents"),
    "UINT64": ("<u8", "uint64_contents"),
    "INT8": ("i1", "int_contents"), "INT16": ("<i2", "int_contents"), "INT32": ("<i4", "int_contents"),
    "INT64": ("<i8", "int64_contents"),
    "FP16": ("<f2", ""), "FP32": ("<f4", "fp32_contents"), "FP64": ("<f8", "fp64_contents"),
}  # fmt: skip
"""numpy's name and the typed field by datatype"""


_Message = TypeVar("_Message", pb.ModelInferRequest, pb.ModelInferResponse)
TENSORS = 5
"""the protocol's number of a request's inputs, and of a response's outputs"""


def request_of(message: bytes) -> pb.ModelInferRequest:
    """Raises WireError."""
    return _parsed(pb.ModelInferRequest, message, oip.RAW_INPUTS)


def response_of(message: bytes) -> pb.ModelInferResponse:
    """Raises WireError."""
    return _parsed(pb.ModelInferResponse, message, oip.RAW_OUTPUTS)


def _parsed(kind: type[_Message], message: bytes, raw: int) -> _Message:
    weigh(message, raw, TENSORS)
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise WireError(f"expected a {kind.__name__}, got {len(message)} bytes that are none: {error}") from error


def entries(tensors: Sequence[Tensor], raws: Sequence[bytes], refuse: Refuse) -> list[bytes | None]:
    """Each tensor's raw contents; None where all of them are typed."""
    if len(raws) == len(tensors):
        return list(raws)
    if raws:
        raise refuse(f"expected raw contents for {len(tensors)} tensors, got {len(raws)}")
    return [None] * len(tensors)


def shape_of(tensor: Tensor, refuse: Refuse) -> tuple[int, ...]:
    shape = tuple(tensor.shape[: oip.MAX_DIMENSIONS + 1])
    if len(shape) > oip.MAX_DIMENSIONS or any(n < 0 for n in shape):
        raise refuse(f"expected a tensor {tensor.name[:64]!r} of at most {oip.MAX_DIMENSIONS} dimensions, got {list(shape)}")
    return shape


def content(tensor: Tensor, raw: bytes | None, refuse: Refuse) -> bytes:
    """All of a tensor of numbers as in raw contents."""
    dtype, field = _known(tensor, refuse)
    if raw is None:
        if not field:
            raise refuse(f"expected tensor {tensor.name[:64]!r} of type {tensor.datatype} in raw contents, got typed ones")
        with np.errstate(all="ignore"):
            raw = np.asarray(getattr(tensor.contents, field)).astype(dtype).tobytes()
    expected = math.prod(shape_of(tensor, refuse)) * np.dtype(dtype).itemsize
    if len(raw) != expected:
        raise refuse(
            f"expected tensor {tensor.name[:64]!r} as {tensor.datatype} {list(tensor.shape)} in {expected} bytes, "
            f"got {len(raw)}"
        )
    return raw


def numbers(tensor: Tensor, raw: bytes | None, refuse: Refuse) -> NDArray[Any]:
    """The tensor as an array of its shape. Of BYTES each element's crc32: names of classes, as numbers that stay the same."""
    shape = shape_of(tensor, refuse)
    if tensor.datatype != "BYTES":
        return np.frombuffer(content(tensor, raw, refuse), _known(tensor, refuse)[0]).reshape(shape)
    texts = (
        list(tensor.contents.bytes_contents) if raw is None else list(oip.split_bytes_elements(raw, math.prod(shape), refuse))
    )
    if len(texts) != math.prod(shape):
        raise refuse(f"expected {math.prod(shape)} elements in {tensor.name[:64]!r}, got {len(texts)}")
    return np.array([zlib.crc32(text) & 0x7FFFFFFF for text in texts], np.int64).reshape(shape)


def put(request: pb.ModelInferRequest, at: int, data: bytes) -> None:
    """Other contents for input `at`, in the form in which it has them now."""
    tensor = request.inputs[at]
    if request.raw_input_contents:
        request.raw_input_contents[at] = data
        return
    dtype, field = NUMBERS[tensor.datatype]
    values = getattr(tensor.contents, field)
    del values[:]
    values.extend(np.frombuffer(data, dtype).tolist())


def rows_of(request: pb.ModelInferRequest, at: int, refuse: Refuse) -> list[Callable[[pb.ModelInferRequest], None]]:
    """For each row of input `at`, what leaves that row alone of it in a copy of the request."""
    tensor = request.inputs[at]
    if request.raw_input_contents:
        return [_left_raw(at, part) for part in _raw_rows(tensor, request.raw_input_contents[at], refuse)]
    values: list[Any] = list(next((values for _, values in tensor.contents.ListFields()), ()))
    each = len(values) // tensor.shape[0]
    return [_left_typed(at, values[row * each : (row + 1) * each]) for row in range(tensor.shape[0])]


def _raw_rows(tensor: Tensor, raw: bytes, refuse: Refuse) -> list[bytes]:
    count = tensor.shape[0]
    if tensor.datatype != "BYTES":
        size = len(raw) // count
        return [raw[row * size : (row + 1) * size] for row in range(count)]
    each = math.prod(tensor.shape[1:])
    elements = list(oip.split_bytes_elements(raw, count * each, refuse))
    return [oip.join_bytes_elements(elements[row * each : (row + 1) * each]) for row in range(count)]


def _left_raw(at: int, part: bytes) -> Callable[[pb.ModelInferRequest], None]:
    def leave(copy: pb.ModelInferRequest) -> None:
        copy.inputs[at].shape[0] = 1
        copy.raw_input_contents[at] = part

    return leave


def _left_typed(at: int, part: list[Any]) -> Callable[[pb.ModelInferRequest], None]:
    def leave(copy: pb.ModelInferRequest) -> None:
        copy.inputs[at].shape[0] = 1
        for descriptor, _ in copy.inputs[at].contents.ListFields():
            values = getattr(copy.inputs[at].contents, descriptor.name)
            del values[:]
            values.extend(part)

    return leave


def repeat(request: pb.ModelInferRequest, at: int, times: int) -> None:
    """Input `at`, of one row, `times` over."""
    tensor = request.inputs[at]
    tensor.shape[0] = times
    if request.raw_input_contents:
        request.raw_input_contents[at] = request.raw_input_contents[at] * times
        return
    for descriptor, values in tensor.contents.ListFields():
        getattr(tensor.contents, descriptor.name).extend(list(values) * (times - 1))


def _known(tensor: Tensor, refuse: Refuse) -> tuple[str, str]:
    if tensor.datatype not in NUMBERS:
        raise refuse(f"expected tensor {tensor.name[:64]!r} of a type among {', '.join(NUMBERS)}, got {tensor.datatype[:16]!r}")
    return NUMBERS[tensor.datatype]
