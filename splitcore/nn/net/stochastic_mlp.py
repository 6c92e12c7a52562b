"""`mlp`, `cnn_mlp`: a stochastic encoder for MNIST or CIFAR-10 as head, a linear classifier as tail; the latent is a vector.

"Improving Adversarial Robustness: An Information-Theoretic Perspective", anonymous, section 6: N dense layers of 512, N of 256,
and 2K' outputs, half of them a mean, half a standard deviation after softplus. `cnn_mlp` has two convolutions in front. After
Alemi, Fischer, Dillon, Murphy, "Deep Variational Information Bottleneck", ICLR 2017 (arXiv 1612.00410).

The paper keeps K' and the filters for its supplement: 256 is Alemi et al.'s K, the filters are ours. As there, the tail is
one linear layer. In training the latent is a sample, in evaluation its mean; Alemi et al. also average over samples.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from splitcore.codec.base import STRICT
from splitcore.nn.net.parts import Chain, Parts, chained
from splitcore.nn.net.shape import shape_after

FILTERS = (32, 64)
"""channels of `cnn_mlp`'s convolutions, 3x3 with stride 2"""
WIDTHS = (512, 256)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StochasticMlp(Chain):
    """The arguments that build a head and a tail."""

    kind: Literal["mlp", "cnn_mlp"] = "mlp"
    repeats: Annotated[int, Field(ge=1, le=16)] = 3
    """N: dense layers of each width"""
    features: Annotated[int, Field(ge=1, le=4096)] = 256
    """K': elements of the latent"""
    stochastic: bool = True
    """no: the encoder has K' outputs, and they are the latent"""

    @property
    def cut_at(self) -> str:
        return "after the encoder, at the mean of its distribution" if self.stochastic else "after the encoder"

    def first(self, input_shape: tuple[int, int, int]) -> Parts:
        filters: Parts = {"filters": lambda: _filters(input_shape[0])} if self.kind == "cnn_mlp" else {}
        flat = prod(shape_after(lambda: chained(filters), input_shape))
        parts: Parts = {**filters, "flatten": nn.Flatten, "encoder": lambda: self._encoder(flat)}
        return {**parts, "gaussian": Gaussian} if self.stochastic else parts

    def rest(self, latent_shape: tuple[int, ...], classes: int) -> Parts:
        return {"decoder": lambda: nn.Linear(self.features, classes)}

    def _encoder(self, fan_in: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width in (width for width in WIDTHS for _ in range(self.repeats)):
            layers += [nn.Linear(fan_in, width), nn.ReLU()]
            fan_in = width
        return nn.Sequential(*layers, nn.Linear(fan_in, self.features * (2 if self.stochastic else 1)))


class Gaussian(nn.Module):
    """[k, 2K'] to latents [k, K']."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.moments(x)
        return mean + std * torch.randn_like(mean) if self.training else mean

    def shape_after(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] // 2,)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [k, K'] of the latent, from the encoder's outputs [k, 2K']."""
        mean, spread = x.chunk(2, 1)
        return mean, functional.softplus(spread)


def _filters(fan_in: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in FILTERS:
        layers += [nn.Conv2d(fan_in, width, 3, 2, 1), nn.ReLU()]
        fan_in = width
    return nn.Sequential(*layers)
