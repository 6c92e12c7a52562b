"""The protocol over HTTP: JSON with tensors in it, and Triton's binary tensor data behind it.

A request becomes the protobuf message that gRPC would have brought, so that one reader judges both. The binary form is the
JSON, whose length a header says, followed by the bytes of every tensor whose parameters say `binary_data_size`.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitcore.errors import WireError
from splitcore.frame import Reply
from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb

HEADER_LENGTH = "inference-header-content-length"
"""the HTTP header that says how much of the body is JSON"""
MAX_JSON_BYTES = 1 << 20
"""of a body's JSON: parsed, a list of lists takes 30 times its length; tensors that are larger come in binary"""

_Int64 = Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 63)]
_Value: TypeAlias = Annotated[bool, Field(strict=True)] | _Int64 | Annotated[str, Field(strict=True)] | float
_BINARY, _BINARY_OUTPUT = "binary_data_size", "binary_data_output"


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Input(_Lenient):
    """A tensor of a request: `data` in row-major order, flat or nested, or behind the JSON."""

    name: str
    shape: list[Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]]
    datatype: str
    parameters: dict[str, _Value] = {}
    data: list[Any] | None = None


class Output(_Lenient):
    """An output that is asked for. Its parameter `binary_data`: whether it comes behind the JSON."""

    name: str
    parameters: dict[str, _Value] = {}


class Request(_Lenient):
    """The JSON of an inference request. Its parameter `binary_data_output`: as if every output said `binary_data`."""

    id: str = ""
    parameters: dict[str, _Value] = {}
    inputs: list[Input]
    outputs: list[Output] = []


@dataclass(frozen=True)
class Binary:
    """Which outputs come behind the JSON."""

    otherwise: bool
    named: dict[str, bool]

    def __call__(self, name: str) -> bool:
        return self.named.get(name, self.otherwise)


def read_request(body: bytes, header_length: int | None, model: str, version: str) -> tuple[bytes, Binary]:
    """(a serialised ModelInferRequest, which outputs are wanted in binary). Raises WireError."""
    size = len(body) if header_length is None else header_length
    if not 0 <= size <= min(len(body), MAX_JSON_BYTES):
        raise WireError(
            f"expected JSON of at most {MAX_JSON_BYTES} bytes in a body of {len(body)}, got {size}: send tensors as binary "
            f"data behind it, and say its length in {HEADER_LENGTH}"
        )
    try:
        asked = Request.model_validate(orjson.loads(memoryview(body)[:size]))
    except orjson.JSONDecodeError as error:
        raise WireError(f"expected JSON, got {size} bytes that are none: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise WireError(
            f"expected an inference request, got JSON that is none ({place or 'all of it'}: {first['msg']})"
        ) from error
    binary = Binary(asked.parameters.pop(_BINARY_OUTPUT, False) is True, _binary_outputs(asked))
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=asked.id)
    _put(asked.parameters, message)
    at = size
    for tensor in asked.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        length = tensor.parameters.get(_BINARY)
        if length is None:
            message.raw_input_contents.append(_raw(tensor, asked.id))
            continue
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= len(body) - at:
            raise WireError(
                f"expected {_BINARY} of {tensor.name[:64]!r} within the {len(body) - at} bytes that are left, got {length}",
                frame_id=asked.id,
            )
        message.raw_input_contents.append(body[at : at + length])
        at += length
    if at != len(body):
        raise WireError(f"expected binary data to the end of the body, got {len(body) - at} bytes more", frame_id=asked.id)
    for output in asked.outputs:
        message.outputs.add(name=output.name)
    return message.SerializeToString(), binary


def write_reply(reply: Reply, binary: Binary) -> tuple[bytes, int | None]:
    """(body, length of its JSON where something follows it)."""
    outputs: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for name, datatype, array in _outputs(reply):
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary(name):
            behind.append(array.tobytes())
            output["parameters"] = {_BINARY: len(behind[-1])}
        else:
            output["data"] = array.ravel()
        outputs.append(output)
    head: dict[str, Any] = {"model_name": reply.model, "model_version": reply.version, "outputs": outputs}
    if reply.id:
        head["id"] = reply.id
    if reply.parameters:
        head["parameters"] = reply.parameters
    packed = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join((packed, *behind)), len(packed) if behind else None


def _outputs(reply: Reply) -> Iterator[tuple[str, str, NDArray[Any]]]:
    if reply.scores is not None:
        yield oip.SCORES, "FP32", np.ascontiguousarray(reply.scores, "<f4")
    if reply.labels is not None:
        yield oip.LABEL, "INT64", np.ascontiguousarray(reply.labels, "<i8")


def _binary_outputs(asked: Request) -> dict[str, bool]:
    named: dict[str, bool] = {}
    for output in asked.outputs:
        unknown = sorted(set(output.parameters) - {"binary_data"})
        if unknown:
            raise WireError(
                f"expected no parameters of an output but binary_data, got {', '.join(unknown)[:64]}", frame_id=asked.id
            )
        if "binary_data" in output.parameters:
            named[output.name] = output.parameters["binary_data"] is True
    return named


def _raw(tensor: Input, frame_id: str) -> bytes:
    """`data` as raw contents. Raises WireError."""
    if tensor.data is None:
        raise WireError(f"expected data or {_BINARY} for input {tensor.name[:64]!r}, got neither", frame_id=frame_id)
    try:
        if tensor.datatype == "FP32":
            return np.asarray(tensor.data, "<f4").tobytes()
        if tensor.datatype == "BYTES":
            return oip.join_bytes_elements([text.encode() for text in np.asarray(tensor.data, object).ravel()])
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise WireError(
            f"expected {tensor.datatype} data in input {tensor.name[:64]!r}, got other: {error}", frame_id=frame_id
        ) from error
    return b""  # the reader of the message says which types there are


def _put(parameters: dict[str, bool | int | str | float], message: pb.ModelInferRequest) -> None:
    for key, value in parameters.items():
        if isinstance(value, bool):
            message.parameters[key].bool_param = value
        elif isinstance(value, int):
            message.parameters[key].int64_param = value
        elif isinstance(value, str):
            message.parameters[key].string_param = value
        else:
            message.parameters[key].double_param = value
