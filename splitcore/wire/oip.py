"""Frames to Open Inference Protocol messages and back. (What servers say of themselves: catalogue.py.)

An encoded latent is an element of a BYTES tensor `latent` [k] in `raw_input_contents`, with the codec and the latent's
shape in `parameters`; latents of the codec `identity` are a plain FP32 tensor [k, *shape], as any client of the
protocol sends one. Requests of other clients may carry the tensor in typed `contents` instead. Replies always use
`raw_output_contents`: stock clients do not read typed contents of numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.bounds import MAX_LOOSE_BYTES, fields, weigh, weighed

SERVICE = "inference.GRPCInferenceService"
LIVE, READY, MODEL_READY = "ServerLive", "ServerReady", "ModelReady"
SERVER_METADATA, MODEL_METADATA = "ServerMetadata", "ModelMetadata"
INFER, STREAM = "ModelInfer", "ModelStreamInfer"
CONFIG, STATISTICS = "ModelConfig", "ModelStatistics"
INDEX, LOAD, UNLOAD = "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"
UNARY_METHODS = (
    LIVE, READY, MODEL_READY, SERVER_METADATA, MODEL_METADATA, INFER, CONFIG, STATISTICS, INDEX, LOAD, UNLOAD,
)  # fmt: skip

INPUT, SCORES, LABEL = "latent", "scores", "label"
CODEC_KEY, SHAPE_KEY, ATTEMPT_KEY, ORIGIN_KEY = "lb_codec", "lb_shape", "lb_attempt", "lb_origin"
TIMED_KEY = "lb_timed"
TRACE_KEY = "lb_traceparent"
"""a stream has metadata once, a frame its own trace context"""
TIMEOUT_KEY = "timeout"
"""Triton's name: a relative deadline in microseconds"""
PRIORITY_KEY, SEQUENCE_KEY = "priority", "sequence_id"
MARK_FINAL_KEY, FINAL_KEY = "triton_enable_empty_final_response", "triton_final_response"
ARTEFACT_METADATA = "latentbed-artefact"
"""call metadata of the handshake: `<name>@<digest>` of the artefact that the sender holds"""

MAX_ROWS = 4096
"""rows of one request at most"""
MAX_ID = 512
MAX_ATTEMPT = (1 << 31) - 1
MAX_DIMENSIONS = 8
RAW_INPUTS, RAW_OUTPUTS, INFER_RESPONSE, INPUTS = 7, 6, 2, 5
"""the protocol's numbers of the fields in which tensors travel, and of the response inside a streamed answer"""
RESPONSE_ID = 3
PADDING = 15
"""a number that no request has"""
_RAW_INPUTS_TAG = bytes([RAW_INPUTS << 3 | 2])
_INFER_RESPONSE_TAG = bytes([INFER_RESPONSE << 3 | 2])
_FP32, _INT64 = np.dtype("<f4"), np.dtype("<i8")

_Parameters: TypeAlias = Mapping[str, pb.InferParameter]


def path(method: str) -> str:
    """The full gRPC method name."""
    return f"/{SERVICE}/{method}"


def pack_request(frame: Frame) -> bytes:
    """A frame as a serialised ModelInferRequest."""
    message = pb.ModelInferRequest(model_name=frame.model, model_version=frame.version, id=frame.id)
    parameters = message.parameters
    parameters[ATTEMPT_KEY].int64_param = frame.attempt
    if frame.origin != "client":
        parameters[ORIGIN_KEY].string_param = frame.origin
    if frame.timeout_us is not None:
        parameters[TIMEOUT_KEY].int64_param = frame.timeout_us
    if frame.timed:
        parameters[TIMED_KEY].bool_param = True
    if frame.priority:
        parameters[PRIORITY_KEY].uint64_param = frame.priority
    if frame.mark_final:
        parameters[MARK_FINAL_KEY].bool_param = True
    if frame.traceparent:
        parameters[TRACE_KEY].string_param = frame.traceparent
    for name in (LABEL,) if frame.labels_only else frame.outputs:
        message.outputs.add(name=name)
    tensor = message.inputs.add(name=frame.tensor)
    if frame.codec == "identity":
        tensor.datatype = "FP32"
        tensor.shape.extend((frame.rows, *frame.shape))
        raw: Sequence[bytes | memoryview] = frame.payloads
    else:
        tensor.datatype = "BYTES"
        tensor.shape.append(frame.rows)
        parameters[CODEC_KEY].string_param = frame.codec
        parameters[SHAPE_KEY].string_param = ",".join(map(str, frame.shape))
        raw = bytes_elements(frame.payloads)
    # raw_input_contents is the message's last field: written behind the others it is copied once, not three times
    return b"".join((message.SerializeToString(), _RAW_INPUTS_TAG, _varint(sum(map(len, raw))), *raw))


def unpack_request(message: bytes) -> Frame:
    """A frame from a serialised ModelInferRequest of this or any other client. Raises WireError."""
    request, raws = _apart(message)
    frame_id, inputs = request.id, request.inputs
    if len(frame_id) > MAX_ID:
        raise WireError(f"expected an id of at most {MAX_ID} characters, got {len(frame_id)}")

    def refuse(text: str) -> WireError:
        return WireError(text, frame_id=frame_id)

    if len(inputs) != 1:
        raise refuse(f"expected one input tensor, got {len(inputs)}")
    tensor = inputs[0]
    typed = tensor.HasField("contents")
    if typed and raws:
        raise refuse("expected the tensor in raw_input_contents or in typed contents, got both")
    if not typed and len(raws) != 1:
        raise refuse(f"expected one entry in raw_input_contents, or typed contents, got {len(raws)} (no memory is shared)")
    said_shape = tuple(tensor.shape[: MAX_DIMENSIONS + 1])
    if not said_shape or not 1 <= said_shape[0] <= MAX_ROWS or len(said_shape) > MAX_DIMENSIONS:
        raise refuse(f"expected a tensor of 1 to {MAX_ROWS} latents, got shape {list(said_shape)}")
    rows, shape = said_shape[0], said_shape[1:]
    # a copy of the map: most requests have none, and asking the map itself for a key would create it
    parameters = dict(request.parameters)
    payloads: tuple[bytes | memoryview, ...]
    if tensor.datatype == "FP32":
        raw: bytes | memoryview = np.array(tensor.contents.fp32_contents, "<f4").tobytes() if typed else raws[0]
        codec, size = "identity", 4
        for n in shape:
            if not 1 <= n <= len(raw):
                raise refuse(f"expected latents [k, ...] that fill {len(raw)} bytes, got shape {list(said_shape)}")
            size *= n
        if not shape or size * rows != len(raw):
            raise refuse(f"expected {list(said_shape)} in {size * rows} bytes of float32, got {len(raw)} bytes")
        view = memoryview(raw)
        payloads = tuple(view[i * size : (i + 1) * size] for i in range(rows))
    elif tensor.datatype == "BYTES":
        codec = _string(parameters, CODEC_KEY, refuse) or "identity"
        shape = _shape(_string(parameters, SHAPE_KEY, refuse), refuse)
        if not typed:
            payloads = tuple(split_bytes_elements(raws[0], rows, refuse))
        elif len(payloads := tuple(tensor.contents.bytes_contents)) != rows:
            raise refuse(f"expected {rows} elements in bytes_contents, got {len(payloads)}")
    else:
        raise refuse(f"expected a tensor of type FP32 or BYTES, got {tensor.datatype[:16]!r}")
    outputs = tuple([output.name for output in request.outputs])
    labels_only = outputs == (LABEL,)
    return Frame(
        id=frame_id,
        payloads=payloads,
        codec=codec,
        shape=shape,
        model=request.model_name,
        version=request.model_version,
        labels_only=labels_only,
        tensor=tensor.name,
        outputs=() if labels_only else outputs,
        numbered=ATTEMPT_KEY in parameters,
        **_options(parameters, refuse),
    )


def _options(parameters: _Parameters, refuse: Callable[[str], WireError]) -> dict[str, Any]:
    """What a request says of itself in its parameters, as fields of a frame."""
    if not parameters:
        return {}
    attempt = _integer(parameters, ATTEMPT_KEY, refuse)
    if attempt is not None and not 1 <= attempt <= MAX_ATTEMPT:
        raise refuse(f"expected an attempt number of 1 to {MAX_ATTEMPT} in parameter {ATTEMPT_KEY}, got {attempt}")
    timeout = _integer(parameters, TIMEOUT_KEY, refuse)
    priority = _integer(parameters, PRIORITY_KEY, refuse) or 0
    if priority < 0:
        raise refuse(f"expected parameter {PRIORITY_KEY} of 0 or more, got {priority}")
    said = _string(parameters, ORIGIN_KEY, refuse) or "client"
    if said not in ("client", "query"):
        raise refuse(f"expected parameter {ORIGIN_KEY} to be client or query, got {said[:64]!r}")
    return {
        "attempt": 1 if attempt is None else attempt,
        "origin": said,
        "timeout_us": timeout if timeout is not None and timeout > 0 else None,
        "timed": _flag(parameters, TIMED_KEY),
        "priority": priority,
        "stateful": SEQUENCE_KEY in parameters,
        "mark_final": _flag(parameters, MARK_FINAL_KEY),
        # whoever sends nonsense is not traced
        "traceparent": parameters[TRACE_KEY].string_param[:MAX_ID] if TRACE_KEY in parameters else "",
    }


def split(frame: Frame) -> list[Frame]:
    """A frame of k rows as k of one row each, named `<id>#<row>`."""
    return [replace(frame, id=f"{frame.id}#{row}", payloads=(payload,)) for row, payload in enumerate(frame.payloads)]


def with_traceparent(message: bytes, before: str, after: str) -> bytes:
    """The same request under another parent: of equal length, so that nothing else of the message changes."""
    if len(before) != len(after):
        raise ValueError(f"expected trace contexts of one length, got {len(before)} and {len(after)} characters")
    return message.replace(before.encode(), after.encode(), 1)


def replace_payloads(message: bytes, payloads: Sequence[bytes | memoryview]) -> bytes:
    """The same ModelInferRequest with as many other latents; ids, parameters, unknown fields stay. Raises WireError."""
    request = _parse(pb.ModelInferRequest, message, RAW_INPUTS, INPUTS)
    if len(request.inputs) != 1 or not request.inputs[0].shape:
        raise WireError("expected one input tensor to replace, got another message", frame_id=request.id)
    tensor = request.inputs[0]
    plain, typed = tensor.datatype == "FP32", tensor.HasField("contents")
    if len(request.raw_input_contents) != (not typed):
        raise WireError("expected one input tensor, raw or typed, to replace, got another message", frame_id=request.id)
    before = 4 * len(tensor.contents.fp32_contents) if typed else len(request.raw_input_contents[0])
    raw = b"".join(payloads) if plain else join_bytes_elements(payloads)
    if len(payloads) != tensor.shape[0] or (plain and len(raw) != before):
        raise WireError(
            f"expected {tensor.shape[0]} latents to replace those in {before} bytes, got {len(payloads)} in {len(raw)}",
            frame_id=request.id,
        )
    if not typed:
        request.raw_input_contents[0] = raw
    elif plain:
        tensor.contents.fp32_contents[:] = np.frombuffer(raw, "<f4").tolist()
    else:
        tensor.contents.bytes_contents[:] = [bytes(payload) for payload in payloads]
    return request.SerializeToString()


def pack_reply(reply: Reply) -> bytes:
    """A reply as a serialised ModelInferResponse (the unary method)."""
    return b"".join(_response(reply))


def pack_stream_reply(reply: Reply) -> bytes:
    """A reply as a serialised ModelStreamInferResponse; an error goes in-band, with the id of its request."""
    parts = _response(reply)
    error = pack_field(1, reply.error.encode()) if reply.error else b""
    return b"".join((error, _INFER_RESPONSE_TAG, _varint(sum(map(len, parts))), *parts))


def unpack_reply(message: bytes) -> Reply:
    """From a serialised ModelInferResponse. Raises WireError."""
    return _reply(_parse(pb.ModelInferResponse, message, RAW_OUTPUTS), None)


def unpack_stream_reply(message: bytes) -> Reply:
    """From a streamed answer: Triton's ModelStreamInferResponse or MLServer's bare ModelInferResponse.

    Told apart by the numbers of the fields, not by what happens to parse: a bare one has its id (3), outputs (5) or raw
    contents (6) at the top, where Triton's has only an error (1) and a response (2). Parsing decides nothing: a bare
    one's model name reads as an error, and version `01` as an empty response. A bare one with neither id nor outputs
    cannot be told; it answers none of our requests, which all have ids. Raises WireError.
    """
    return _reply(*split_stream_reply(message))


def split_stream_reply(message: bytes) -> tuple[pb.ModelInferResponse, str | None]:
    """(response, error) of a streamed answer in either dialect. Raises WireError."""
    parts = list(fields(message))
    if any(number > INFER_RESPONSE for number, _, _ in parts):
        return _parse(pb.ModelInferResponse, message, RAW_OUTPUTS), None
    if len(parts) > 2:
        raise WireError(f"expected an error and a response in a streamed answer, got {len(parts)} fields")
    for number, start, end in parts:
        weigh(memoryview(message)[start:end], RAW_OUTPUTS if number == INFER_RESPONSE else 0)
    triton = _parse(pb.ModelStreamInferResponse, message, INFER_RESPONSE)
    return triton.infer_response, triton.error_message or None


def _response(reply: Reply) -> list[bytes]:
    """The fields of a ModelInferResponse, serialised, in the order of their numbers. Those that answer after answer says are
    serialised once; the message as a whole never is, as that would copy the tensors into it and out again."""
    parts = [_of_model(reply.model, reply.version)]
    if reply.id:
        parts.append(pack_field(RESPONSE_ID, reply.id.encode()))
    if reply.parameters:
        parts.append(_said(reply.parameters))
    scores, labels = reply.scores, reply.labels
    parts.append(_outputs(None if scores is None else scores.shape, None if labels is None else labels.shape))
    if scores is not None:
        parts.append(pack_field(RAW_OUTPUTS, np.asarray(scores, _FP32).tobytes()))
    if labels is not None:
        parts.append(pack_field(RAW_OUTPUTS, np.asarray(labels, _INT64).tobytes()))
    return parts


@lru_cache(maxsize=64)
def _of_model(name: str, version: str) -> bytes:
    return pb.ModelInferResponse(model_name=name, model_version=version).SerializeToString()


@lru_cache(maxsize=256)
def _outputs(scores: tuple[int, ...] | None, labels: tuple[int, ...] | None) -> bytes:
    """What stands before the tensors, by their shapes."""
    response = pb.ModelInferResponse()
    if scores is not None:
        response.outputs.add(name=SCORES, datatype="FP32", shape=scores)
    if labels is not None:
        response.outputs.add(name=LABEL, datatype="INT64", shape=labels)
    return response.SerializeToString()


def _said(parameters: Mapping[str, bool | int | str | float]) -> bytes:
    response = pb.ModelInferResponse()
    for key, value in parameters.items():
        if isinstance(value, bool):
            response.parameters[key].bool_param = value
        elif isinstance(value, int):
            response.parameters[key].int64_param = value
        elif isinstance(value, str):
            response.parameters[key].string_param = value
        else:
            response.parameters[key].double_param = value
    return response.SerializeToString()


def _reply(response: pb.ModelInferResponse, error: str | None) -> Reply:
    """The first matrix of float32 is the scores, the first int64 the labels, whatever a foreign server calls them."""

    def refuse(text: str) -> WireError:
        return WireError(text, frame_id=response.id)

    scores = labels = None
    outputs, raws = response.outputs, response.raw_output_contents
    if len(outputs) != len(raws):
        raise refuse(f"expected raw contents for {len(outputs)} outputs, got {len(raws)}")
    for output, raw in zip(outputs, raws, strict=True):
        if output.datatype == "FP32" and len(output.shape) == 2 and scores is None:
            scores = _array(output, raw, "<f4", refuse)
            if np.isnan(scores).any():
                raise refuse(f"expected scores in output {output.name[:64]!r}, got NaN: the server's tail is at fault")
        elif output.datatype == "INT64" and labels is None:
            labels = _array(output, raw, "<i8", refuse).reshape(-1)
    parameters = {
        key: getattr(value, choice)
        for key, value in response.parameters.items()
        if (choice := value.WhichOneof("parameter_choice")) is not None
    }
    return Reply(
        id=response.id,
        scores=scores,
        labels=labels,
        error=error,
        model=response.model_name,
        version=response.model_version,
        parameters=parameters,
    )


def _array(
    output: pb.ModelInferResponse.InferOutputTensor, raw: bytes, dtype: str, refuse: Callable[[str], WireError]
) -> NDArray[Any]:
    shape = tuple(output.shape[: MAX_DIMENSIONS + 1])
    fits = 1 <= len(shape) <= MAX_DIMENSIONS and all(1 <= n <= len(raw) for n in shape) and shape[0] <= MAX_ROWS
    if not fits or math.prod(shape) * np.dtype(dtype).itemsize != len(raw):
        raise refuse(
            f"expected output {output.name[:64]!r} as {output.datatype} {list(shape)} of 1 to {MAX_ROWS} rows, "
            f"got {len(raw)} bytes"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def bytes_elements(elements: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Elements of a BYTES tensor in raw form, in pieces: a little-endian uint32 length before each."""
    parts: list[bytes | memoryview] = []
    for element in elements:
        parts += (struct.pack("<I", len(element)), element)
    return parts


def join_bytes_elements(elements: Sequence[bytes | memoryview]) -> bytes:
    """The same in one."""
    return b"".join(bytes_elements(elements))


def _varint(n: int) -> bytes:
    """protobuf's base-128 form of n."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def split_bytes_elements(raw: bytes | memoryview, count: int, refuse: Callable[[str], WireError]) -> Iterator[bytes]:
    """The inverse. Raises what `refuse` makes of a text where lengths and bytes disagree."""
    at = 0
    for _ in range(count):
        if at + 4 > len(raw):
            raise refuse(f"expected {count} elements in raw_input_contents, got fewer in {len(raw)} bytes")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if size > len(raw) - at:
            raise refuse(f"expected an element of {size} bytes, got {len(raw) - at} before the end")
        yield bytes(raw[at : at + size])
        at += size
    if at != len(raw):
        raise refuse(f"expected {count} elements in raw_input_contents, got {len(raw) - at} bytes more")


@dataclass(frozen=True)
class TensorMetadata:
    """Name, datatype and shape (-1: any) of a model's input or output."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """What a server says of one model."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()


def pack_model_metadata(metadata: ModelMetadata) -> bytes:
    """As a serialised ModelMetadataResponse."""
    message = pb.ModelMetadataResponse(name=metadata.name, versions=metadata.versions, platform=metadata.platform)
    for tensors, into in ((metadata.inputs, message.inputs), (metadata.outputs, message.outputs)):
        for tensor in tensors:
            into.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return message.SerializeToString()


def unpack_model_metadata(message: bytes) -> ModelMetadata:
    """From a serialised ModelMetadataResponse. Raises WireError."""
    response = _parse(pb.ModelMetadataResponse, message)
    inputs, outputs = (
        tuple(TensorMetadata(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)
        for tensors in (response.inputs, response.outputs)
    )
    return ModelMetadata(response.name, tuple(response.versions), response.platform, inputs, outputs)


def pack_server_metadata(name: str, version: str, extensions: Sequence[str]) -> bytes:
    """As a serialised ServerMetadataResponse."""
    return pb.ServerMetadataResponse(name=name, version=version, extensions=extensions).SerializeToString()


def pack_flag(method: str, value: bool) -> bytes:
    """The answer of ServerLive, ServerReady or ModelReady."""
    if method == LIVE:
        return pb.ServerLiveResponse(live=value).SerializeToString()
    if method == READY:
        return pb.ServerReadyResponse(ready=value).SerializeToString()
    return pb.ModelReadyResponse(ready=value).SerializeToString()


def pack_padding(content: bytes) -> bytes:
    """Any request made heavier: a field that no message of the protocol has, and every reader skips."""
    return pack_field(PADDING, content)


def pack_field(number: int, content: bytes) -> bytes:
    """One field of bytes or text, as it stands within a message; `number` below 16."""
    return b"".join((bytes([number << 3 | 2]), _varint(len(content)), content))


def pack_model_name(name: str, version: str = "") -> bytes:
    """A serialised ModelReadyRequest or ModelMetadataRequest: the two have the same fields."""
    return pb.ModelMetadataRequest(name=name, version=version).SerializeToString()


def unpack_model_name(message: bytes) -> tuple[str, str]:
    """(name, version) of a ModelReadyRequest or ModelMetadataRequest. Raises WireError."""
    request = _parse(pb.ModelMetadataRequest, message)
    return request.name, request.version


_Message = TypeVar("_Message", bound=Message)


def _parse(kind: type[_Message], message: bytes, raw: int = 0, typed: int = 0) -> _Message:
    """`raw`, `typed`: the numbers of the fields that hold tensors, and tensors with contents; 0 where there is none."""
    weigh(message, raw, typed)
    return _parsed(kind, message)


def _parsed(kind: type[_Message], message: bytes) -> _Message:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise WireError(f"expected a {kind.__name__}, got {len(message)} bytes that are none: {error}") from error


def _apart(message: bytes) -> tuple[pb.ModelInferRequest, Sequence[bytes | memoryview]]:
    """A request and its raw tensors, which of a large one are views of the message: protobuf would copy them twice.

    Of a small one looking for them costs more than the copies. Raises WireError.
    """
    if len(message) <= MAX_LOOSE_BYTES:
        request = _parsed(pb.ModelInferRequest, message)
        return request, request.raw_input_contents
    view, at = memoryview(message), 0
    others, raws = list[memoryview](), list[bytes | memoryview]()
    for number, start, end in weighed(message, RAW_INPUTS, INPUTS):
        if number == RAW_INPUTS and message[at] == _RAW_INPUTS_TAG[0]:
            raws.append(view[start:end])
        else:
            others.append(view[at:end])
        at = end
    request = _parsed(pb.ModelInferRequest, b"".join(others))
    # protobuf lets a tag be longer than it need be
    return request, [*raws, *request.raw_input_contents]


def _string(parameters: _Parameters, key: str, refuse: Callable[[str], WireError]) -> str | None:
    parameter = parameters.get(key)
    if parameter is None:
        return None
    choice = parameter.WhichOneof("parameter_choice")
    if choice != "string_param":
        raise refuse(f"expected parameter {key} as string_param, got {choice}")
    return parameter.string_param


def _flag(parameters: _Parameters, key: str) -> bool:
    return key in parameters and parameters[key].bool_param


def _integer(parameters: _Parameters, key: str, refuse: Callable[[str], WireError]) -> int | None:
    parameter = parameters.get(key)
    if parameter is None:
        return None
    match parameter.WhichOneof("parameter_choice"):
        case "int64_param":
            return parameter.int64_param
        case "uint64_param":
            return parameter.uint64_param
        case choice:
            raise refuse(f"expected parameter {key} as int64_param, got {choice}")


def _shape(text: str | None, refuse: Callable[[str], WireError]) -> tuple[int, ...]:
    parts = (text or "").split(",", MAX_DIMENSIONS)
    well_formed = all(part.isascii() and part.isdecimal() and len(part) < 9 and int(part) for part in parts)
    if len(parts) > MAX_DIMENSIONS or not well_formed:
        raise refuse(f"expected the latent's shape in parameter {SHAPE_KEY} as 'C,H,W', got {(text or '')[:64]!r}")
    return tuple(map(int, parts))
