"""The tail as CUDA graphs: recorded once for some batch sizes, then launched whole.

On a GPU small networks cost their launches."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from edge_server.tail import OnTorchDevice, pick_device
from edge_server.warm_up import warm_up
from splitcore.artefact import Artefact
from splitcore.errors import ArtefactError
from splitcore.latent import F32
from splitcore.nn.tail import load_tail

WARM = 3
"""runs before a recording, as torch's notes on CUDA graphs ask: libraries choose their kernels then"""


class GraphTail(OnTorchDevice):
    """As `Tail`. A batch is computed in the smallest recorded size that holds it; rows beyond it are what was there before."""

    kind = "cuda-graphs"

    def __init__(
        self, artefact: Artefact, *, device: str, threads: int, max_batch_size: int, trusted: Collection[str] = ()
    ) -> None:
        torch.set_num_threads(threads)
        self._artefact = artefact
        on = pick_device(device)
        if on.type != "cuda":
            raise ValueError("expected a CUDA device for --tail cuda-graphs, got cpu: say --tail auto")
        shape = artefact.latent.shape
        super().__init__(on, max_batch_size, shape)
        self._model = load_tail(artefact, self._device, trusted)
        self._given = torch.zeros((max_batch_size, *shape), device=self._device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._sizes = sizes(max_batch_size)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        # the largest first: the smaller ones live in its memory
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            self._graphs[size] = self._recorded(size, pool)

    def _recorded(self, size: int, pool: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        given = self._given[:size]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                for _ in range(WARM):
                    self._model(given)
                graph = torch.cuda.CUDAGraph()
                # a model may be loaded while another one computes on its own thread, which must not spoil the recording
                with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                    logits = self._model(given).float()
        except RuntimeError as error:
            raise ArtefactError(f"artefact {self._artefact.manifest.name}: its tail cannot be a CUDA graph: {error}") from error
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return graph, logits

    def __call__(self, latents: F32) -> F32:
        k = self._put(latents)
        graph, logits = self._graphs[next(size for size in self._sizes if size >= k)]
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._given[:k].copy_(self._staging[:k], non_blocking=True)
            graph.replay()
            # the copy back waits for the stream, so staging and graph are free again when this returns
            out: F32 = logits[:k].cpu().numpy()
        return out

    def warm_up(self) -> None:
        """Raises ArtefactError for a wrong shape of logits."""
        warm_up(self, self._artefact, len(self._view))


def sizes(max_batch_size: int) -> list[int]:
    """Powers of two up to `max_batch_size`, and that: a batch is padded to less than twice its rows."""
    powers = [1 << n for n in range(max_batch_size.bit_length()) if 1 << n < max_batch_size]
    return [*powers, max_batch_size]
