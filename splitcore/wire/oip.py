"""Frames to Open Inference Protocol messages and back. The only module that touches the protobuf classes.

An encoded latent is an element of a BYTES tensor `latent` [k] in `raw_input_contents`, with the codec and the latent's
shape in `parameters`; latents of the codec `identity` are a plain FP32 tensor [k, *shape], as any client of the protocol
sends one. Replies always use `raw_output_contents`: stock clients do not read typed contents of numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from splitcore.errors import WireError
from splitcore.frame import Frame, Origin, Reply
from splitcore.wire import open_inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
LIVE, READY, MODEL_READY = "ServerLive", "ServerReady", "ModelReady"
SERVER_METADATA, MODEL_METADATA = "ServerMetadata", "ModelMetadata"
INFER, STREAM = "ModelInfer", "ModelStreamInfer"
UNARY_METHODS = (LIVE, READY, MODEL_READY, SERVER_METADATA, MODEL_METADATA, INFER)

INPUT, SCORES, LABEL = "latent", "scores", "label"
CODEC_KEY, SHAPE_KEY, ATTEMPT_KEY, ORIGIN_KEY = "lb_codec", "lb_shape", "lb_attempt", "lb_origin"
TIMEOUT_KEY = "timeout"
"""Triton's name: a relative deadline in microseconds"""
ARTEFACT_METADATA = "latentbed-artefact"
"""call metadata of the handshake: `<name>@<digest>` of the artefact that the sender holds"""

MAX_ROWS = 4096
"""rows of one request at most"""
MAX_ID = 512


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
    if frame.labels_only:
        message.outputs.add(name=LABEL)
    tensor = message.inputs.add(name=INPUT)
    if frame.codec == "identity":
        tensor.datatype = "FP32"
        tensor.shape.extend((frame.rows, *frame.shape))
        message.raw_input_contents.append(b"".join(frame.payloads))
    else:
        tensor.datatype = "BYTES"
        tensor.shape.append(frame.rows)
        parameters[CODEC_KEY].string_param = frame.codec
        parameters[SHAPE_KEY].string_param = ",".join(map(str, frame.shape))
        message.raw_input_contents.append(join_bytes_elements(frame.payloads))
    return message.SerializeToString()


def unpack_request(message: bytes) -> Frame:
    """A frame from a serialised ModelInferRequest of this or any other client. Raises WireError."""
    request = _parse(pb.ModelInferRequest, message)
    if len(request.id) > MAX_ID:
        raise WireError(f"expected an id of at most {MAX_ID} characters, got {len(request.id)}")
    frame_id = request.id

    def refuse(text: str) -> WireError:
        return WireError(text, frame_id=frame_id)

    if len(request.inputs) != 1:
        raise refuse(f"expected one input tensor, got {len(request.inputs)}")
    tensor = request.inputs[0]
    if tensor.HasField("contents"):
        raise refuse("expected the tensor in raw_input_contents, got typed contents")
    if len(request.raw_input_contents) != 1:
        raise refuse(f"expected one entry in raw_input_contents, got {len(request.raw_input_contents)}")
    if not tensor.shape or not 1 <= tensor.shape[0] <= MAX_ROWS or len(tensor.shape) > 8:
        raise refuse(f"expected a tensor of 1 to {MAX_ROWS} latents, got shape {list(tensor.shape)[:9]}")
    rows, raw = tensor.shape[0], request.raw_input_contents[0]
    payloads: tuple[bytes | memoryview, ...]
    if tensor.datatype == "FP32":
        codec, shape = "identity", tuple(tensor.shape[1:])
        size = 4
        for n in shape:
            if not 1 <= n <= len(raw):
                raise refuse(f"expected latents [k, ...] that fill {len(raw)} bytes, got shape {list(tensor.shape)}")
            size *= n
        if not shape or size * rows != len(raw):
            raise refuse(f"expected {list(tensor.shape)} in {size * rows} bytes of float32, got {len(raw)} bytes")
        view = memoryview(raw)
        payloads = tuple(view[i * size : (i + 1) * size] for i in range(rows))
    elif tensor.datatype == "BYTES":
        codec = _string(request, CODEC_KEY) or "identity"
        shape = _shape(_string(request, SHAPE_KEY), refuse)
        payloads = tuple(split_bytes_elements(raw, rows, refuse))
    else:
        raise refuse(f"expected a tensor of type FP32 or BYTES, got {tensor.datatype[:16]!r}")
    attempt = _integer(request, ATTEMPT_KEY)
    timeout = _integer(request, TIMEOUT_KEY)
    origin: Origin = "query" if _string(request, ORIGIN_KEY) == "query" else "client"
    return Frame(
        id=frame_id,
        payloads=payloads,
        codec=codec,
        shape=shape,
        attempt=1 if attempt is None else attempt,
        origin=origin,
        model=request.model_name,
        version=request.model_version,
        timeout_us=timeout if timeout is not None and timeout > 0 else None,
        labels_only=[output.name for output in request.outputs] == [LABEL],
    )


def replace_payloads(message: bytes, payloads: Sequence[bytes | memoryview]) -> bytes:
    """The same ModelInferRequest with other latents in it; ids, parameters and unknown fields stay. Raises WireError."""
    request = _parse(pb.ModelInferRequest, message)
    if request.inputs[0].datatype == "FP32":
        request.raw_input_contents[0] = b"".join(payloads)
    else:
        request.raw_input_contents[0] = join_bytes_elements(payloads)
    return request.SerializeToString()


def pack_reply(reply: Reply) -> bytes:
    """A reply as a serialised ModelInferResponse (the unary method)."""
    return _response(reply).SerializeToString()


def pack_stream_reply(reply: Reply) -> bytes:
    """A reply as a serialised ModelStreamInferResponse; an error goes in-band, with the id of its request."""
    return pb.ModelStreamInferResponse(error_message=reply.error or "", infer_response=_response(reply)).SerializeToString()


def unpack_reply(message: bytes) -> Reply:
    """From a serialised ModelInferResponse. Raises WireError."""
    return _reply(_parse(pb.ModelInferResponse, message), None)


def unpack_stream_reply(message: bytes) -> Reply:
    """From a streamed answer in either dialect: Triton's ModelStreamInferResponse, or MLServer's bare ModelInferResponse.

    The two cannot be confused: a bare response has its id (field 3) or its outputs (field 5) at the top, where Triton's
    has only fields 1 and 2; and field 2 of a bare response is a version string, of Triton's a message. Raises WireError.
    """
    try:
        triton = pb.ModelStreamInferResponse.FromString(message)
    except DecodeError:
        return unpack_reply(message)
    if triton.HasField("infer_response") or not message:
        return _reply(triton.infer_response, triton.error_message or None)
    bare = _parse(pb.ModelInferResponse, message)
    if bare.outputs or bare.id:
        return _reply(bare, None)
    return Reply(id="", error=triton.error_message)


def _response(reply: Reply) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=reply.model, model_version=reply.version, id=reply.id)
    if reply.scores is not None:
        response.outputs.add(name=SCORES, datatype="FP32", shape=reply.scores.shape)
        response.raw_output_contents.append(np.ascontiguousarray(reply.scores, "<f4").tobytes())
    if reply.labels is not None:
        response.outputs.add(name=LABEL, datatype="INT64", shape=reply.labels.shape)
        response.raw_output_contents.append(np.ascontiguousarray(reply.labels, "<i8").tobytes())
    return response


def _reply(response: pb.ModelInferResponse, error: str | None) -> Reply:
    scores = labels = None
    if len(response.raw_output_contents) < len(response.outputs):
        raise WireError(
            f"expected raw contents for {len(response.outputs)} outputs, got {len(response.raw_output_contents)}",
            frame_id=response.id,
        )
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        shape = tuple(output.shape)
        try:
            if output.datatype == "INT64":
                labels = np.frombuffer(raw, "<i8").reshape(shape).reshape(-1)
            elif output.datatype == "FP32" and len(shape) == 2:
                scores = np.frombuffer(raw, "<f4").reshape(shape)
        except ValueError as wrong:
            raise WireError(
                f"expected output {output.name!r} {output.datatype} {list(shape)}, got {len(raw)} bytes",
                frame_id=response.id,
            ) from wrong
    return Reply(
        id=response.id, scores=scores, labels=labels, error=error, model=response.model_name, version=response.model_version
    )


def join_bytes_elements(elements: Sequence[bytes | memoryview]) -> bytes:
    """Elements of a BYTES tensor in raw form: a little-endian uint32 length before each."""
    parts: list[bytes | memoryview] = []
    for element in elements:
        parts += (struct.pack("<I", len(element)), element)
    return b"".join(parts)


def split_bytes_elements(raw: bytes, count: int, refuse: Callable[[str], WireError]) -> Iterator[bytes]:
    """The inverse. Raises what `refuse` makes of a text where lengths and bytes disagree."""
    at = 0
    for _ in range(count):
        if at + 4 > len(raw):
            raise refuse(f"expected {count} elements in raw_input_contents, got fewer in {len(raw)} bytes")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4
        if size > len(raw) - at:
            raise refuse(f"expected an element of {size} bytes, got {len(raw) - at} before the end")
        yield raw[at : at + size]
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


def pack_model_name(name: str, version: str = "") -> bytes:
    """A serialised ModelReadyRequest or ModelMetadataRequest: the two have the same fields."""
    return pb.ModelMetadataRequest(name=name, version=version).SerializeToString()


def unpack_model_name(message: bytes) -> tuple[str, str]:
    """(name, version) of a ModelReadyRequest or ModelMetadataRequest. Raises WireError."""
    request = _parse(pb.ModelMetadataRequest, message)
    return request.name, request.version


_Message = TypeVar("_Message", bound=Message)


def _parse(kind: type[_Message], message: bytes) -> _Message:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise WireError(f"expected a {kind.__name__}, got {len(message)} bytes that are none: {error}") from error


def _string(request: pb.ModelInferRequest, key: str) -> str | None:
    # `in` first: indexing a map of messages would create the entry
    if key not in request.parameters:
        return None
    return request.parameters[key].string_param


def _integer(request: pb.ModelInferRequest, key: str) -> int | None:
    if key not in request.parameters:
        return None
    parameter = request.parameters[key]
    return parameter.uint64_param if parameter.WhichOneof("parameter_choice") == "uint64_param" else parameter.int64_param


def _shape(text: str | None, refuse: Callable[[str], WireError]) -> tuple[int, ...]:
    parts = (text or "").split(",")
    if not text or len(parts) > 8 or not all(part.isascii() and part.isdecimal() and len(part) < 9 for part in parts):
        raise refuse(f"expected the latent's shape in parameter {SHAPE_KEY} as 'C,H,W', got {(text or '')[:64]!r}")
    return tuple(map(int, parts))
