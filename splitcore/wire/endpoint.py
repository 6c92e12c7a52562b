"""A model of somebody else's server: its requests as frames, its answers as replies, by the names that its metadata says.

The tensor that is attacked is the frame's latents; whatever else a request carries (other inputs, parameters, wanted outputs)
is the frame's template, and travels with every query for it. Without a template the request is made from the metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from splitcore.errors import HandshakeError, WireError
from splitcore.frame import Frame, Reply
from splitcore.wire import oip, tensors
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.answers import reply_of
from splitcore.wire.described import Dialect, EndpointConfig
from splitcore.wire.tensors import Refuse

CODECS = {"FP32": "identity", "FP16": "float16", "FP64": "float64", "UINT8": "uint8", "INT8": "int8"}
"""by datatype, how the numbers of an attacked tensor travel: as they are"""
_DATATYPES = {codec: datatype for datatype, codec in CODECS.items()}
_OF_THE_MOMENT = ("timeout", "priority", "traceparent", "tracestate", "sequence_id", "sequence_start", "sequence_end")
"""parameters of one request that mean nothing to the next: queries leave them out, and those of ours (`lb_`)"""


@dataclass(frozen=True)
class Endpoint:
    """One model of a foreign server. A `Form` (splitcore.wire.form)."""

    config: EndpointConfig
    metadata: oip.ModelMetadata
    dialect: Dialect = "triton"
    server: str = ""
    """what it calls itself"""
    max_batch_size: int = 0
    """as its configuration says; 0: it does not"""

    def __post_init__(self) -> None:
        """Raises HandshakeError where the metadata has not what the configuration names."""
        inputs = {tensor.name: tensor for tensor in self.metadata.inputs}
        name = self.config.input
        if inputs and (name not in inputs if name else len(inputs) > 1):
            wanted = f"an input {name!r}" if name else "one input"
            raise HandshakeError(
                f"model {self.config.model}: expected {wanted}, its metadata has {', '.join(inputs)}: "
                "say one of them as --input"
            )
        tensor = self.input
        if tensor is not None and tensor.datatype not in CODECS:
            raise HandshakeError(
                f"model {self.config.model}: expected input {tensor.name} of type {', '.join(CODECS)}, its metadata says "
                f"{tensor.datatype}: nothing of it can be perturbed"
            )
        outputs = [tensor.name for tensor in self.metadata.outputs]
        if outputs and self.config.output and self.config.output not in outputs:
            raise HandshakeError(
                f"model {self.config.model}: expected an output {self.config.output!r}, its metadata has {', '.join(outputs)}"
            )

    @property
    def input(self) -> oip.TensorMetadata | None:
        """The attacked one; None where the metadata has none."""
        named = [t for t in self.metadata.inputs if t.name == self.config.input or not self.config.input]
        return named[0] if named else None

    @property
    def batched(self) -> bool:
        if self.config.batched is not None:
            return self.config.batched
        return self.input is None or (len(self.input.shape) > 1 and self.input.shape[0] in (-1, 1))

    @property
    def max_rows(self) -> int:
        """Of one request."""
        if self.config.max_rows is not None:
            return self.config.max_rows
        single = not self.batched or (self.input is not None and self.input.shape[0] == 1)
        return 1 if single else self.max_batch_size or oip.MAX_ROWS

    @property
    def classes(self) -> int:
        """0 where neither configuration nor metadata says."""
        if self.config.classes is not None:
            return self.config.classes
        widths = [
            t.shape[-1] for t in self.metadata.outputs if t.datatype.startswith("FP") and self._wanted(t.name) and t.shape
        ]
        return next((width for width in widths if width > 1), 0)

    @property
    def correlates(self) -> bool:
        """Whether answers of a stream say by their ids whom they answer."""
        return self.dialect != "mlserver"

    def _wanted(self, name: str) -> bool:
        return not self.config.output or name == self.config.output

    # requests

    def unpack_request(self, message: bytes) -> Frame:
        request = tensors.request_of(message)
        if len(request.id) > oip.MAX_ID:
            raise WireError(f"expected an id of at most {oip.MAX_ID} characters, got {len(request.id)}")
        refuse = _refusal(request.id)
        if request.model_name not in ("", self.config.model):
            return _others(request)
        at = self._attacked(request, refuse)
        tensor = request.inputs[at]
        codec = CODECS.get(tensor.datatype)
        if codec is None:
            raise refuse(f"expected input {tensor.name[:64]!r} of type {', '.join(CODECS)}, got {tensor.datatype[:16]!r}")
        data = tensors.content(tensor, tensors.entries(request.inputs, request.raw_input_contents, refuse)[at], refuse)
        rows, shape = self._rows(tuple(tensor.shape), refuse)
        size, view = len(data) // rows, memoryview(data)
        attempt, timeout_us = _whole(request, oip.ATTEMPT_KEY), _whole(request, oip.TIMEOUT_KEY)
        numbered = attempt is not None and 1 <= attempt <= oip.MAX_ATTEMPT
        return Frame(
            id=request.id,
            payloads=tuple(view[row * size : (row + 1) * size] for row in range(rows)),
            codec=codec,
            shape=shape,
            attempt=attempt if numbered and attempt is not None else 1,
            model=request.model_name,
            version=request.model_version,
            timeout_us=timeout_us if timeout_us is not None and timeout_us > 0 else None,
            numbered=numbered,
            template=_template(request, at),
        )

    def pack_request(self, frame: Frame) -> bytes:
        if not frame.template:
            return self._made(frame)
        request, refuse = tensors.request_of(frame.template), _refusal(frame.id)
        request.id = frame.id
        at, k = self._attacked(request, refuse), frame.rows
        if self.batched and (before := request.inputs[at].shape[0]) != k:
            for other, tensor in enumerate(request.inputs):
                if other != at and len(tensor.shape) and tensor.shape[0] == before == 1:
                    tensors.repeat(request, other, k)
            request.inputs[at].shape[0] = k
        tensors.put(request, at, b"".join(frame.payloads))
        return request.SerializeToString()

    def _made(self, frame: Frame) -> bytes:
        """For a phone, which has no template: what the metadata wants, with what a relay of ours would account by."""
        request = pb.ModelInferRequest(model_name=self.config.model, model_version=self.config.version, id=frame.id)
        request.parameters[oip.ATTEMPT_KEY].int64_param = frame.attempt
        if frame.timeout_us is not None:
            request.parameters[oip.TIMEOUT_KEY].int64_param = frame.timeout_us
        name = self.config.input or (self.input.name if self.input else oip.INPUT)
        shape = (frame.rows, *frame.shape) if self.batched else frame.shape
        request.inputs.add(name=name, datatype=_DATATYPES[frame.codec], shape=shape)
        request.raw_input_contents.append(b"".join(frame.payloads))
        return request.SerializeToString()

    def split(self, frame: Frame) -> list[Frame]:
        refuse = _refusal(frame.id)
        template = tensors.request_of(frame.template)
        at = self._attacked(template, refuse)
        beside = [
            tensors.rows_of(template, other, refuse)
            for other, tensor in enumerate(template.inputs)
            if other != at and len(tensor.shape) and tensor.shape[0] == frame.rows
        ]
        parts = []
        for row, payload in enumerate(frame.payloads):
            copy = pb.ModelInferRequest()
            copy.CopyFrom(template)
            copy.inputs[at].shape[0] = 1
            for leaves in beside:
                leaves[row](copy)
            one = copy.SerializeToString(deterministic=True)
            parts.append(replace(frame, id=f"{frame.id}#{row}", payloads=(payload,), template=one))
        return parts

    def replace_payloads(self, message: bytes, payloads: Sequence[bytes | memoryview]) -> bytes:
        request = tensors.request_of(message)
        refuse = _refusal(request.id)
        at = self._attacked(request, refuse)
        before = tensors.content(
            request.inputs[at], tensors.entries(request.inputs, request.raw_input_contents, refuse)[at], refuse
        )
        data = b"".join(payloads)
        if len(data) != len(before):
            raise refuse(f"expected {len(before)} bytes to replace those of {request.inputs[at].name[:64]!r}, got {len(data)}")
        tensors.put(request, at, data)
        return request.SerializeToString()

    def _attacked(self, request: pb.ModelInferRequest, refuse: Refuse) -> int:
        name = self.config.input or (self.input.name if self.input else "")
        found = [
            at for at, tensor in enumerate(request.inputs) if tensor.name == name or (not name and len(request.inputs) == 1)
        ]
        if len(found) != 1:
            raise refuse(f"expected one input {name!r}, got {[tensor.name[:64] for tensor in request.inputs][:8]}")
        return found[0]

    def _rows(self, whole: tuple[int, ...], refuse: Refuse) -> tuple[int, tuple[int, ...]]:
        """(rows, shape of one) of a tensor's shape."""
        if not self.batched:
            rows, shape = 1, whole
        else:
            rows, shape = (whole[0], whole[1:]) if whole else (0, ())
        if not 1 <= rows <= oip.MAX_ROWS or not shape or len(whole) > oip.MAX_DIMENSIONS or min(shape) < 1:
            raise refuse(f"expected 1 to {oip.MAX_ROWS} rows of some numbers each, got shape {list(whole)}")
        return rows, shape

    # answers

    def unpack_reply(self, message: bytes) -> Reply:
        return self._read(tensors.response_of(message), None)

    def unpack_stream_reply(self, message: bytes) -> Reply:
        return self._read(*oip.split_stream_reply(message))

    def _read(self, response: pb.ModelInferResponse, error: str | None) -> Reply:
        return reply_of(response, error, output=self.config.output, reads=self.config.reads, batched=self.batched)


def _template(request: pb.ModelInferRequest, at: int) -> bytes:
    """What is left of the request without its id, the attacked numbers, and what concerns this one sending."""
    request.id = ""
    if request.raw_input_contents:
        request.raw_input_contents[at] = b""
    else:
        request.inputs[at].contents.Clear()
    for key in [key for key in request.parameters if key in _OF_THE_MOMENT or key.startswith("lb_")]:
        del request.parameters[key]
    return request.SerializeToString(deterministic=True)


def _others(request: pb.ModelInferRequest) -> Frame:
    """A frame for another model: its rows and bytes, for the books. Nothing else of it is looked at."""
    first = request.inputs[0].shape[0] if request.inputs and request.inputs[0].shape else 1
    rows = min(max(1, first), oip.MAX_ROWS)
    attempt = _whole(request, oip.ATTEMPT_KEY)
    return Frame(
        id=request.id, payloads=(b"".join(request.raw_input_contents), *[b""] * (rows - 1)), codec="", shape=(),
        attempt=attempt or 1, model=request.model_name, version=request.model_version, numbered=attempt is not None,
    )  # fmt: skip


def _whole(request: pb.ModelInferRequest, key: str) -> int | None:
    """A whole number among the parameters; None where there is none."""
    if key not in request.parameters:
        return None
    choice = request.parameters[key].WhichOneof("parameter_choice")
    return int(getattr(request.parameters[key], choice)) if choice in ("int64_param", "uint64_param") else None


def _refusal(frame_id: str) -> Refuse:
    return lambda text: WireError(text, frame_id=frame_id)
