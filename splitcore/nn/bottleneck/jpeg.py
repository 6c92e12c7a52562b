"""`jpeg` and `jpeg/rgb-triples`: the wire's own JPEG in the training loop, gradient straight through.

While training the range is the batch's own min and max, as `uniform` has it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from splitcore.codec import CodecConfig
from splitcore.codec.base import STRICT, Codec
from splitcore.codec.jpeg import Jpeg
from splitcore.codec.jpeg_triples import JpegTriples
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck.base import Bottleneck, straight_through


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JpegBottleneck:
    """Baseline JPEG of the latent as a grey picture."""

    kind: Literal["jpeg"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=95)] = 75
    """libjpeg's scale"""
    zstd: bool = False
    """each payload through Zstandard"""

    def build(self) -> Bottleneck:
        return ThroughJpeg(Jpeg(quality=self.quality, zstd=self.zstd))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JpegTriplesBottleneck:
    """Triples of channels as colour pictures, as the literature has it."""

    kind: Literal["jpeg/rgb-triples"] = "jpeg/rgb-triples"
    quality: Annotated[int, Field(ge=1, le=95)] = 95
    """libjpeg's scale"""
    zstd: bool = False
    """each payload through Zstandard"""

    def build(self) -> Bottleneck:
        return ThroughJpeg(JpegTriples(quality=self.quality, zstd=self.zstd))


class ThroughJpeg(Bottleneck):
    """The numpy codec itself, on the CPU: there is no second implementation to agree with."""

    def __init__(self, codec: Jpeg | JpegTriples) -> None:
        super().__init__()
        self._codec = codec
        self._twin: Codec | None = None

    def codec_config(self) -> CodecConfig:
        return self._codec

    def freeze(self, latent: LatentSpec) -> LatentSpec:
        self._twin = self._codec.plain(latent)
        return latent

    def forward(self, z: Tensor) -> Tensor:
        stack = z.detach().cpu().numpy()
        twin = self._twin or self._codec.plain(_of_batch(stack))
        lo, hi = (torch.from_numpy(bound).to(z.device) for bound in (twin.lo, twin.hi))
        # outside the range the value does not move with z, so neither does the gradient flow
        return straight_through(torch.from_numpy(twin.snap(stack)).to(z.device), z.clamp(lo, hi))


def _of_batch(stack: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> LatentSpec:
    axes = (0, *range(2, stack.ndim))
    lo, hi = stack.min(axes), stack.max(axes)
    # a dead channel is constant; it still needs a range that float32 can step through
    hi = np.maximum(hi, lo + np.maximum(np.float32(1e-3), np.abs(lo) * np.float32(2**-10)))
    return LatentSpec(stack.shape[1:], tuple(lo.tolist()), tuple(hi.tolist()), 1.0)
