"""`uniform`: affine quantisation in the training loop, gradient straight through.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
section 3. Departure: while training the range is the batch's own min and max, not a moving average; it is calibrated on
the whole training set afterwards and frozen. Ranges of each sample's own (`/sample`) are measured in training as on the wire.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from splitcore.codec import CodecConfig
from splitcore.codec.base import STRICT
from splitcore.codec.sampled import FINEST, LIMIT
from splitcore.codec.uniform import Per, Uniform, UniformCodec
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck.base import Bottleneck, straight_through


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UniformBottleneck:
    """Equal steps over the latent's range."""

    kind: Literal["uniform"] = "uniform"
    bits: Annotated[int, Field(ge=1, le=8)] = 8
    """bits an element, 1 to 8"""
    per: Per = "channel"
    """one range for the whole latent, or one for each channel; calibrated, or with `/sample` each latent's own"""
    zstd: bool = False
    """each payload through Zstandard"""

    def build(self) -> Bottleneck:
        codec = Uniform(bits=self.bits, per=self.per, zstd=self.zstd)
        return SampleQuantiser(codec) if self.per.endswith("/sample") else Quantiser(codec)


class Quantiser(Bottleneck):
    lo: Tensor
    step: Tensor

    def __init__(self, codec: Uniform) -> None:
        super().__init__()
        self._codec = codec
        self._levels = (1 << codec.bits) - 1
        self._frozen = False
        self.register_buffer("lo", torch.zeros(1), persistent=False)
        self.register_buffer("step", torch.ones(1), persistent=False)

    def codec_config(self) -> CodecConfig:
        return self._codec

    def freeze(self, latent: LatentSpec) -> LatentSpec:
        twin = UniformCodec(self._codec, latent)
        self.lo = torch.from_numpy(twin.lo.copy()).to(self.lo.device)
        self.step = torch.from_numpy(twin.step.copy()).to(self.step.device)
        self._frozen = True
        return latent

    def forward(self, z: Tensor) -> Tensor:
        lo, step = (self.lo, self.step) if self._frozen else self._of_batch(z.detach())
        codes = torch.round((z - lo) / step).clamp(0, self._levels)
        # outside the range the value does not move with z, so neither does the gradient flow
        return straight_through(lo + codes * step, z.clamp(lo, lo + self._levels * step))

    def _of_batch(self, z: Tensor) -> tuple[Tensor, Tensor]:
        dims = [0, *range(2, z.ndim)] if self._codec.per == "channel" else list(range(z.ndim))
        lo, hi = z.amin(dims, keepdim=True), z.amax(dims, keepdim=True)
        return lo, ((hi - lo) / self._levels).clamp_min(1e-6)


class SampleQuantiser(Bottleneck):
    """SampledCodec.snap, step by step, and the gradient straight through: nothing is outside of its own range."""

    def __init__(self, codec: Uniform) -> None:
        super().__init__()
        self._codec = codec
        self._levels = (1 << codec.bits) - 1

    def codec_config(self) -> CodecConfig:
        return self._codec

    def freeze(self, latent: LatentSpec) -> LatentSpec:
        """Every sample brings its own range."""
        return latent

    def forward(self, z: Tensor) -> Tensor:
        smooth = z.clamp(-float(LIMIT), float(LIMIT))
        stack = smooth.detach() + 0
        dims = list(range(1 if self._codec.per == "tensor/sample" else 2, z.ndim))
        # of no dimensions torch takes the extreme over all, numpy over none
        lo, hi = (stack.amin(dims, keepdim=True), stack.amax(dims, keepdim=True)) if dims else (stack, stack)
        levels = torch.full_like(lo, self._levels)  # a tensor: some devices divide by a number as times its reciprocal
        finest, tiny = float(FINEST), torch.finfo(torch.float32).tiny
        narrow = hi - lo < levels * (torch.maximum(-lo, hi) * finest).clamp_min(tiny)
        width = (lo.abs() * (4 * finest * levels)).clamp_min(1e-6)
        up = narrow & (lo <= 0)
        down = narrow & ~up
        lo, hi = torch.where(down, lo - width, lo), torch.where(up, lo + width, torch.where(down, lo, hi))
        step = (hi - lo) / levels
        codes = torch.round((stack - lo) / step)
        codes = codes.clamp(torch.where(down, levels, 0), torch.where(up, 0, levels))
        return straight_through(torch.where(codes == levels, hi, codes * step + lo), smooth)
