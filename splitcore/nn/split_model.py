"""The split model in torch: head, bottleneck, tail, and the calibration of the latent between them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from splitcore.errors import ScenarioError
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck import Bottleneck

MARGIN = 0.01
"""share of its width by which a calibrated range is widened at either end; ours"""


class SplitModel(nn.Module):
    """Images [k, C, H, W] in [0, 1] to logits [k, classes], through the bottleneck."""

    def __init__(self, head: nn.Module, bottleneck: Bottleneck, tail: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.bottleneck = bottleneck
        self.tail = tail
        self._latent: LatentSpec | None = None

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.received(images))
        return logits

    def received(self, images: Tensor) -> Tensor:
        """The latents [k, *shape] that arrive of images [k, C, H, W]: float32 also where a head computes in less."""
        z: Tensor = self.bottleneck(self.head(images).float())
        return z

    def unsplit(self, images: Tensor) -> Tensor:
        """The same network with no bottleneck."""
        logits: Tensor = self.tail(self.head(images))
        return logits

    @property
    def latent(self) -> LatentSpec:
        if self._latent is None:
            raise ScenarioError("expected a calibrated model, got one whose ranges are not frozen: call `freeze` first")
        return self._latent

    def freeze(self, latent: LatentSpec) -> None:
        """Fixes the ranges at the cut; the model is for evaluation from now on."""
        self._latent = self.bottleneck.freeze(latent)
        self.eval()


@torch.inference_mode()
def calibrate(head: nn.Module, images: Tensor, *, batch: int = 64) -> LatentSpec:
    """Shape, range and spread of the head's latents of `images` uint8 [n, C, H, W]; none of them is outside.

    Small batches: larger ones leave the cache, and cost three times as much for a residual network.
    """
    was_training = head.training
    head.eval()
    device = next((parameter.device for parameter in head.parameters()), images.device)
    latent = measure(head(as_unit(part.to(device))).cpu() for part in torch.split(images, batch))
    head.train(was_training)
    return latent


def measure(parts: Iterable[Tensor]) -> LatentSpec:
    """Shape, range and spread of latents [k, *shape], part by part: those of a whole data set may be larger than memory."""
    lo: Tensor | None = None
    hi: Tensor | None = None
    n, total, squares = 0, 0.0, 0.0
    shape: tuple[int, ...] = ()
    for latents in parts:
        shape = tuple(latents.shape[1:])
        spatial = [0, *range(2, latents.ndim)]
        least, most = latents.amin(spatial), latents.amax(spatial)
        lo, hi = least if lo is None else torch.minimum(lo, least), most if hi is None else torch.maximum(hi, most)
        exact = latents.double()
        n += exact.numel()
        total += float(exact.sum())
        squares += float(exact.square().sum())
    assert lo is not None and hi is not None, "expected images to calibrate with"
    variance = max(squares - total * total / n, 0.0) / max(n - 1, 1)
    return _spec(shape, lo.numpy().astype(np.float64), hi.numpy().astype(np.float64), variance**0.5)


def _spec(shape: tuple[int, ...], lo: NDArray[np.float64], hi: NDArray[np.float64], std: float) -> LatentSpec:
    """From what was measured: `lo` and `hi` [C], and the standard deviation of all elements."""
    # a dead channel is constant; it still needs a range
    margin = np.maximum(MARGIN * (hi - lo), 1e-3)
    return LatentSpec(
        shape=shape,
        lo=tuple(float(np.float32(value)) for value in lo - margin),
        hi=tuple(float(np.float32(value)) for value in hi + margin),
        std=max(std, 1e-6),
    )


def as_unit(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [0, 1]: the division that the phone does too."""
    return images.to(torch.float32) / 255
