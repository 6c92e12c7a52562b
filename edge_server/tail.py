"""The tail on its device, in torch: latents in, logits out. Which form of it is fastest here, `choose_tail.py` measures."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Literal

import torch

from edge_server.warm_up import warm_up
from splitcore.artefact import Artefact
from splitcore.latent import F32
from splitcore.nn.tail import load_tail

Form = Literal["eager", "channels-last", "bfloat16", "compile"]
"""as it was written; with channels last in memory; in bfloat16 and channels last; through torch.compile"""


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


class OnTorchDevice:
    """What every form of a tail in torch has: its device, and the memory from which batches go there."""

    def __init__(self, device: torch.device, max_batch_size: int, shape: tuple[int, ...]) -> None:
        self._device = device
        # One staging buffer for the node's life: pinned memory lets the copy to the device run without the processor,
        # and torch wants memory it may write to, which bytes from the wire are not.
        self._staging = torch.empty((max_batch_size, *shape), pin_memory=device.type == "cuda")
        self._view: F32 = self._staging.numpy()

    @property
    def device(self) -> str:
        """`cpu`, or for instance `cuda:0 NVIDIA H200`."""
        return told(self._device)

    def room(self, rows: int) -> F32 | None:
        """Where so many latents may be put, so that the call need not copy them; None: too many. Used again by the next."""
        return self._view[:rows] if rows <= len(self._view) else None

    def _put(self, latents: F32) -> int:
        """The latents [k, *shape] into the buffer, if they are not there; k."""
        k = len(latents)
        if latents.ctypes.data != self._view.ctypes.data:
            self._view[:k] = latents
        return k


class Tail(OnTorchDevice):
    """Called with latents [k, *shape], k up to `max_batch_size`, gives logits [k, classes]. Use it from one thread."""

    def __init__(
        self,
        artefact: Artefact,
        *,
        device: str,
        threads: int,
        max_batch_size: int,
        trusted: Collection[str] = (),
        form: Form = "eager",
    ) -> None:
        torch.set_num_threads(threads)
        self.kind: str = form
        self._artefact = artefact
        shape = artefact.latent.shape
        super().__init__(pick_device(device), max_batch_size, shape)
        model = load_tail(artefact, self._device, trusted)
        self._dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
        planes = form in ("channels-last", "bfloat16") and len(shape) == 3
        self._order = torch.channels_last if planes else torch.contiguous_format
        if planes:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # sizes of batches change all the time: one program for all of them
        self._model = torch.compile(model, dynamic=True) if form == "compile" else model.to(self._dtype)

    def __call__(self, latents: F32) -> F32:
        k = self._put(latents)
        with torch.inference_mode():
            given = self._staging[:k].to(self._device, self._dtype, non_blocking=True, memory_format=self._order)
            # the copy back waits for the device, so the staging buffer is free again when this returns
            out: F32 = self._model(given).float().cpu().numpy()
        return out

    def warm_up(self) -> None:
        """First runs allocate, choose kernels and start threads. Raises ArtefactError for a wrong shape of logits."""
        warm_up(self, self._artefact, len(self._view))


def told(device: torch.device) -> str:
    """A device as people know it."""
    return "cpu" if device.type == "cpu" else f"{device} {torch.cuda.get_device_name(device)}"
