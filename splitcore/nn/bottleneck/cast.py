"""`identity` and `float16`: the latent as it is, or rounded to half precision."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from splitcore.codec import CodecConfig
from splitcore.codec.base import STRICT
from splitcore.codec.identity import Float16, Identity
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck.base import Bottleneck, straight_through


@dataclass(frozen=True, kw_only=True, config=STRICT)
class IdentityBottleneck:
    """Nothing between head and tail."""

    kind: Literal["identity"] = "identity"
    zstd: bool = False
    """each payload through Zstandard"""

    def build(self) -> Bottleneck:
        return Pass(Identity(zstd=self.zstd))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Float16Bottleneck:
    """IEEE half precision, values beyond 65504 saturate."""

    kind: Literal["float16"] = "float16"
    zstd: bool = False
    """each payload through Zstandard"""

    def build(self) -> Bottleneck:
        return HalfPrecision(Float16(zstd=self.zstd))


class Pass(Bottleneck):
    def __init__(self, codec: Identity) -> None:
        super().__init__()
        self._codec = codec

    def codec_config(self) -> CodecConfig:
        return self._codec

    def freeze(self, latent: LatentSpec) -> LatentSpec:
        """Knows no range."""
        return latent

    def forward(self, z: Tensor) -> Tensor:
        return z


class HalfPrecision(Bottleneck):
    def __init__(self, codec: Float16) -> None:
        super().__init__()
        self._codec = codec

    def codec_config(self) -> CodecConfig:
        return self._codec

    def freeze(self, latent: LatentSpec) -> LatentSpec:
        """The range is float16's own."""
        return latent

    def forward(self, z: Tensor) -> Tensor:
        largest = torch.finfo(torch.float16).max
        clipped = z.clamp(-largest, largest)
        return straight_through(clipped.to(torch.float16).to(torch.float32), clipped)
