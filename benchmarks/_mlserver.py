"""MLServer with the same tail in the same ONNX Runtime, as its documentation says a custom runtime is written."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from splitcore.wire import oip
from splitcore.wire.channel import sync_channel

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("MLSERVER", ROOT / ".venv-mlserver"))
"""an environment of its own: its stubs and its pins do not go with ours. `make bench-serving` makes it"""
START_S = 90.0

RUNTIME = """
import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Tail(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        latents = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        logits = self._session.run(["logits"], {"latent": np.ascontiguousarray(latents, np.float32)})[0]
        outputs = [NumpyCodec.encode_output("scores", logits), NumpyCodec.encode_output("label", logits.argmax(axis=1))]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


def installed() -> bool:
    return (FOLDER / "bin" / "mlserver").exists()


@contextlib.contextmanager
def serve(name: str, graph: Path, shape: tuple[int, ...], folder: Path, *, batch: int) -> Iterator[str]:
    """Its address. `batch`: rows of its adaptive batching, waiting for at most a millisecond; 0: off."""
    folder.mkdir(parents=True)
    ports = _free_ports(3)
    settings = {
        "parallel_workers": 0,
        "host": "127.0.0.1",
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
    }
    tensor = {"name": "latent", "datatype": "FP32", "shape": [-1, *shape], "parameters": {"content_type": "np"}}
    model = {"name": name, "implementation": "runtime.Tail", "parameters": {"uri": str(graph)}, "inputs": [tensor]}
    if batch:
        model |= {"max_batch_size": batch, "max_batch_time": 0.001}
    (folder / "settings.json").write_text(json.dumps({**settings, "debug": False}))
    (folder / "model-settings.json").write_text(json.dumps(model))
    (folder / "runtime.py").write_text(RUNTIME)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [FOLDER / "bin" / "mlserver", "start", str(folder)], cwd=folder, stdout=log, stderr=log,
            env={**environment, "PYTHONPATH": str(folder)},
        )  # fmt: skip
    try:
        address = f"127.0.0.1:{ports[1]}"
        _wait_ready(process, address, name, folder / "log.txt")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_ready(process: subprocess.Popen[bytes], address: str, name: str, log: Path) -> None:
    until = time.monotonic() + START_S
    with sync_channel(address) as channel:
        ask = channel.unary_unary(oip.path(oip.MODEL_READY))
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(grpc.RpcError):
                if ask(oip.pack_model_name(name), timeout=2) == oip.pack_flag(oip.MODEL_READY, True):
                    return
            time.sleep(0.2)
    raise RuntimeError(f"MLServer did not start: {log.read_text()[-2000:]}")


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
