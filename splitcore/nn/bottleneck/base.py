"""What a bottleneck is: a torch module that training sees in the codec's place, and the codec that it stands for."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from splitcore.codec import CodecConfig
from splitcore.latent import LatentSpec


class Bottleneck(nn.Module, ABC):
    """Latents [k, *shape] to the latents [k, *shape] that arrive. Once frozen it equals its codec's `snap`."""

    @abstractmethod
    def codec_config(self) -> CodecConfig:
        """The numpy codec that computes the same."""

    def penalty(self) -> Tensor | float:
        """What training pays for the last forward pass besides the objective's loss."""
        return 0.0

    @abstractmethod
    def freeze(self, latent: LatentSpec) -> LatentSpec:
        """From now on with the ranges of `latent`, not those of the batch.

        What belongs into the manifest: `latent`, with the tables that the codec needs besides where it needs some.
        """


def straight_through(exact: Tensor, smooth: Tensor) -> Tensor:
    """The value of `exact` to the last bit, the gradient of `smooth` (Bengio et al., arXiv 1308.3432)."""
    # x + (q - x) would round; 0 added to q does not
    return exact.detach() + (smooth - smooth.detach())
