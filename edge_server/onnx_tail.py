"""A tail in ONNX Runtime: of an artefact that was cut out of an ONNX graph. On the CPU, or on CUDA where its build has it."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnxruntime as ort

from edge_server.warm_up import warm_up
from splitcore.artefact import ONNX_TAIL, Artefact
from splitcore.errors import ArtefactError
from splitcore.latent import F32

_ERRORS_ONLY = 3
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxTail:
    """As `Tail`: latents [k, *shape] to logits [k, classes]. Raises ArtefactError; ValueError for a device not there."""

    def __init__(self, artefact: Artefact, *, device: str, threads: int, max_batch_size: int) -> None:
        self._artefact = artefact
        self._max_batch_size = max_batch_size
        available = ort.get_available_providers()
        if device == "auto":
            device = "cuda" if _PROVIDERS["cuda"] in available else "cpu"
        if _PROVIDERS.get(device) not in available:
            raise ValueError(
                f"expected a --device of {sorted(name for name in _PROVIDERS if _PROVIDERS[name] in available)} for a tail in "
                f"ONNX, got {device!r}: this ONNX Runtime {ort.__version__} has no other provider (onnxruntime-gpu has cuda)"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _ERRORS_ONLY
        path = artefact.path(ONNX_TAIL)
        try:
            self._session = ort.InferenceSession(path, options, providers=[_PROVIDERS[device]])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ArtefactError(f"{path} is no network that this ONNX Runtime {ort.__version__} can run: {error}") from error
        inputs = [(node.name, node.shape[1:]) for node in self._session.get_inputs()]
        if inputs != [("latent", list(artefact.latent.shape))]:
            raise ArtefactError(f"{path}: expected latents {list(artefact.latent.shape)}, got {inputs}: export it again")

    @property
    def device(self) -> str:
        """`cpu onnxruntime` or `cuda onnxruntime`."""
        used = self._session.get_providers()[0]
        return f"{'cuda' if used == _PROVIDERS['cuda'] else 'cpu'} onnxruntime"

    def __call__(self, latents: F32) -> F32:
        return cast(F32, self._session.run(["logits"], {"latent": np.ascontiguousarray(latents)})[0])

    def warm_up(self) -> None:
        """First runs allocate and choose kernels. Raises ArtefactError for a wrong shape of logits."""
        warm_up(self, self._artefact, self._max_batch_size)
