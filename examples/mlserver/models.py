"""A split model's tail behind MLServer: a runtime of its own, which knows ONNX Runtime and nothing of latentbed."""

import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from prometheus_client import Counter


class OnnxTail(MLModel):
    """`latent` float32 [k, ...] to `scores` [k, classes]."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        graph = Path(self.settings.parameters.uri)
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        # here and not beside the class: MLServer imports this file more than once
        self._rows = Counter("rows", "latents of the requests that were answered", ["model"]).labels(self.name)
        if "LATENTBED_END_WITH_STDIN" in os.environ:
            threading.Thread(target=_end_with_stdin, daemon=True).start()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        latents = np.ascontiguousarray(self.decode(payload.inputs[0], default_codec=NumpyCodec), np.float32)
        [logits] = self._session.run(None, {"latent": latents})
        self._rows.inc(len(latents))
        scores = NumpyCodec.encode_output("scores", logits)
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=[scores])

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        """An answer a request, in order; MLServer gives all of them the id of the first."""
        async for payload in payloads:
            yield await self.predict(payload)


def _end_with_stdin() -> None:
    """Whoever started this server may be killed: it ends with him."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
