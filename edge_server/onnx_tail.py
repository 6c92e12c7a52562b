"""A tail in ONNX Runtime: of an artefact that was cut out of an ONNX graph, or of one in torch that was exported at load.

On the CPU, or on CUDA where its build has it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime as ort

from edge_server.warm_up import warm_up
from splitcore.artefact import ONNX_TAIL, Artefact
from splitcore.errors import ArtefactError
from splitcore.latent import F32
from splitcore.onnx_session import CPU, CUDA, open_session

_PROVIDERS = {"cpu": CPU, "cuda": CUDA}


class OnnxTail:
    """As `Tail`: latents [k, *shape] to logits [k, classes]. Raises ArtefactError; ValueError for a device not there."""

    kind = "onnxruntime"

    def __init__(
        self, artefact: Artefact, *, device: str, threads: int, max_batch_size: int, graph: Path | None = None
    ) -> None:
        """`graph`: the tail's file, where it is not the artefact's own."""
        self._artefact = artefact
        self._view: F32 = np.empty((max_batch_size, *artefact.latent.shape), np.float32)
        self._max_batch_size = max_batch_size
        available = ort.get_available_providers()
        if device == "auto":
            device = "cuda" if CUDA in available else "cpu"
        if _PROVIDERS.get(device) not in available:
            raise ValueError(
                f"expected a --device of {sorted(name for name in _PROVIDERS if _PROVIDERS[name] in available)} for a tail in "
                f"ONNX, got {device!r}: this ONNX Runtime {ort.__version__} has no other provider (onnxruntime-gpu has cuda)"
            )
        path = graph or artefact.path(ONNX_TAIL)
        self._session = open_session(path, path, ArtefactError, threads=threads, provider=_PROVIDERS[device])
        inputs = [(node.name, node.shape[1:]) for node in self._session.get_inputs()]
        if inputs != [("latent", list(artefact.latent.shape))]:
            raise ArtefactError(f"{path}: expected latents {list(artefact.latent.shape)}, got {inputs}: export it again")

    @property
    def device(self) -> str:
        """`cpu onnxruntime` or `cuda onnxruntime`."""
        used = self._session.get_providers()[0]
        return f"{'cuda' if used == CUDA else 'cpu'} onnxruntime"

    def room(self, rows: int) -> F32 | None:
        """As `Tail.room`."""
        return self._view[:rows] if rows <= len(self._view) else None

    def __call__(self, latents: F32) -> F32:
        return cast(F32, self._session.run(["logits"], {"latent": np.ascontiguousarray(latents)})[0])

    def warm_up(self) -> None:
        """First runs allocate and choose kernels. Raises ArtefactError for a wrong shape of logits."""
        warm_up(self, self._artefact, self._max_batch_size)
