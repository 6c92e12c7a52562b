"""The tail on its device: latents in, logits out. The only module of this node that touches torch."""

from __future__ import annotations

import os
from collections.abc import Collection

import torch

from edge_server.warm_up import warm_up
from splitcore.artefact import Artefact
from splitcore.latent import F32
from splitcore.nn.tail import load_tail


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one. Raises ValueError for a device that is not there."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"expected --device auto, cpu or cuda, got {name!r}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("expected a CUDA device for --device cuda, torch finds none: use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def default_threads() -> int:
    """Half the cores: the other half parses, serialises and talks to sockets."""
    return max(1, (os.cpu_count() or 2) // 2)


class Tail:
    """Called with latents [k, *shape], k up to `max_batch_size`, gives logits [k, classes]. Use it from one thread."""

    def __init__(
        self, artefact: Artefact, *, device: str, threads: int, max_batch_size: int, trusted: Collection[str] = ()
    ) -> None:
        torch.set_num_threads(threads)
        self._artefact = artefact
        self._device = pick_device(device)
        self._model = load_tail(artefact, self._device, trusted)
        shape = artefact.latent.shape
        # One staging buffer for the node's life: pinned memory lets the copy to the device run without the processor,
        # and torch wants memory it may write to, which bytes from the wire are not.
        self._staging = torch.empty((max_batch_size, *shape), pin_memory=self._device.type == "cuda")
        self._view: F32 = self._staging.numpy()

    @property
    def device(self) -> str:
        """`cpu`, or for instance `cuda:0 NVIDIA H200`."""
        if self._device.type == "cpu":
            return "cpu"
        return f"{self._device} {torch.cuda.get_device_name(self._device)}"

    def __call__(self, latents: F32) -> F32:
        k = len(latents)
        self._view[:k] = latents
        with torch.inference_mode():
            logits = self._model(self._staging[:k].to(self._device, non_blocking=True))
            # the copy back waits for the device, so the staging buffer is free again when this returns
            out: F32 = logits.float().cpu().numpy()
        return out

    def warm_up(self) -> None:
        """First runs allocate, choose kernels and start threads. Raises ArtefactError for a wrong shape of logits."""
        warm_up(self, self._artefact, len(self._view))
