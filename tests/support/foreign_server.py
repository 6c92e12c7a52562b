"""A server of the Open Inference Protocol that is none of ours: other names, two inputs, its own datatypes, either dialect."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
from numpy.typing import NDArray

from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb
from testbed.nodes import Process

SHAPE, CLASSES = (2, 4, 4), 5
DTYPES = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "UINT8": "u1", "INT8": "i1"}


@dataclass
class Foreign:
    """A linear model `picture` [k, 2, 4, 4], `gain` [k, 1] to `likelihood` [k, 5] and `class` [k, 1]."""

    datatype: str = "FP32"
    dialect: Literal["triton", "mlserver", "unary"] = "triton"
    gives: tuple[str, ...] = ("likelihood", "class")
    typed: bool = False
    """answers in typed contents"""
    batched: bool = True
    name: str = "shop"
    target: str = ""
    ids: list[str] = field(default_factory=list)
    """of the requests, in their order"""
    rows: int = 0
    requests: list[pb.ModelInferRequest] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(4)
        self.weights = rng.standard_normal((int(np.prod(SHAPE)), CLASSES)).astype(np.float32)
        scale = 1.0 if self.datatype.startswith("FP") else 40.0
        self.pictures: NDArray[Any] = (rng.standard_normal((64, *SHAPE)) * scale).astype(np.float32)
        if self.datatype == "UINT8":
            self.pictures += 128
        if not self.datatype.startswith("FP"):
            self.pictures = np.clip(np.rint(self.pictures), 0 if self.datatype == "UINT8" else -128, 127)
        self.pictures = self.pictures.astype(DTYPES[self.datatype])

    def likelihood(self, pictures: NDArray[Any], gain: NDArray[Any]) -> NDArray[np.float32]:
        centre = 128 if self.datatype == "UINT8" else 0
        logits = (pictures.reshape(len(pictures), -1).astype(np.float32) - centre) @ self.weights
        shifted = np.exp((logits - logits.max(axis=1, keepdims=True)) * gain / (40 if "INT" in self.datatype else 1))
        likely: NDArray[np.float32] = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
        return likely

    def infer(self, message: bytes) -> bytes:
        request = pb.ModelInferRequest.FromString(message)
        with self._lock:
            self.ids.append(request.id)
            self.requests.append(request)
        found: dict[str, NDArray[Any]] = {}
        for at, tensor in enumerate(request.inputs):
            dtype = DTYPES[tensor.datatype]
            if request.raw_input_contents:
                found[tensor.name] = np.frombuffer(request.raw_input_contents[at], dtype).reshape(tuple(tensor.shape))
            else:
                [(_, values)] = tensor.contents.ListFields()
                found[tensor.name] = np.array(list(values)).astype(dtype).reshape(tuple(tensor.shape))
        pictures = found["picture"] if self.batched else found["picture"][None]
        with self._lock:
            self.rows += len(pictures)
        likely = self.likelihood(pictures, found.get("gain", np.ones((len(pictures), 1), np.float32)))
        response = pb.ModelInferResponse(model_name=self.name, model_version="1", id=request.id)
        outputs = {"likelihood": ("FP32", likely), "class": ("INT64", likely.argmax(axis=1).astype("<i8")[:, None])}
        for name in self.gives:
            datatype, array = outputs[name]
            array = array if self.batched else array[0]
            output = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            if not self.typed:
                response.raw_output_contents.append(array.tobytes())
            elif datatype == "FP32":
                output.contents.fp32_contents.extend(array.ravel().tolist())
            else:
                output.contents.int64_contents.extend(array.ravel().tolist())
        return response.SerializeToString()

    def stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        first = ""
        for message in messages:
            answer = pb.ModelInferResponse.FromString(self.infer(message))
            if self.dialect == "mlserver":
                # every answer of a stream has the id of its first request there
                first = first or answer.id
                answer.id = first
                yield answer.SerializeToString()
            else:
                yield pb.ModelStreamInferResponse(infer_response=answer).SerializeToString()

    def metadata(self, message: bytes) -> bytes:
        rows = (-1,) if self.batched else ()
        inputs = [oip.TensorMetadata("picture", self.datatype, (*rows, *SHAPE)), oip.TensorMetadata("gain", "FP32", (-1, 1))]
        outputs = {
            "likelihood": oip.TensorMetadata("likelihood", "FP32", (*rows, CLASSES)),
            "class": oip.TensorMetadata("class", "INT64", (*rows, 1)),
        }
        return oip.pack_model_metadata(
            oip.ModelMetadata(self.name, ("1",), "linear", tuple(inputs), tuple(outputs[name] for name in self.gives))
        )


@contextmanager
def served(foreign: Foreign) -> Iterator[Foreign]:
    """At `target` while the block runs."""
    unary = grpc.unary_unary_rpc_method_handler
    called = "mlserver" if foreign.dialect == "mlserver" else "shopserver"
    methods = {
        oip.LIVE: unary(lambda message, context: oip.pack_flag(oip.LIVE, True)),
        oip.SERVER_METADATA: unary(lambda message, context: oip.pack_server_metadata(called, "3", ())),
        oip.MODEL_METADATA: unary(lambda message, context: foreign.metadata(message)),
        oip.INFER: unary(lambda message, context: foreign.infer(message)),
    }
    if foreign.dialect != "unary":
        methods[oip.STREAM] = grpc.stream_stream_rpc_method_handler(foreign.stream)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(oip.SERVICE, methods),))
    foreign.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield foreign
    finally:
        server.stop(0).wait()


@contextmanager
def edge_server(artefact: Path, state: Path) -> Iterator[str]:
    """Our own server as one that is none of ours: the address of its process."""
    process = Process(
        "edge_server", state, ["--artefact", str(artefact), "--device", "cpu", "--tail", "eager", "--threads", "1"]
    )
    try:
        yield process.wait_ready()["grpc"]
    finally:
        process.stop()
