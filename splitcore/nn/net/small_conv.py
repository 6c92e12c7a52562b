"""`small_conv`: a small convolutional network for images of 8x8 to 64x64, cut at the convolution that emits the latent.

The head has the form of the "ver2" bottleneck of Matsubara et al. (BottleFit, arXiv 2201.02693): convolutions with a
stride, then one that squeezes the channels, cut at its raw output, so that latents are signed. The widths are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError
from splitcore.nn.net.normalise import Normalise


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SmallConv:
    """The arguments that build a head and a tail."""

    kind: Literal["small_conv"] = "small_conv"
    latent_channels: Annotated[int, Field(ge=1, le=64)] = 8
    """C of the latent"""
    halvings: Annotated[int, Field(ge=1, le=4)] = 1
    """how often the head halves height and width"""
    head_width: Annotated[int, Field(ge=1, le=256)] = 16
    """channels of the head's first convolution; each halving doubles them, up to 4 times"""
    tail_width: Annotated[int, Field(ge=1, le=512)] = 64
    """channels of the tail's first convolutions"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of the tail's features that training drops before the classifier"""

    @property
    def cut_at(self) -> str:
        return "after the head's last convolution"

    def head(self, input_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """Images [k, C, H, W] in [0, 1] to latents [k, *latent_shape]; `mean` and `std` [C] normalise the images."""
        self.latent_shape(input_shape)
        width = self.head_width
        layers: list[nn.Module] = [Normalise(mean, std), *_conv(input_shape[0], width)]
        for _ in range(self.halvings):
            wider = min(2 * width, 4 * self.head_width)
            layers += _conv(width, wider, stride=2)
            width = wider
        layers.append(nn.Conv2d(width, self.latent_channels, 3, padding=1))
        return nn.Sequential(*layers)

    def tail(self, latent_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Latents [k, *latent_shape] to logits [k, classes]."""
        if len(latent_shape) != 3:
            raise ScenarioError(f"small_conv: expected a latent shape [C, H, W], got {list(latent_shape)}")
        channels, height, width = latent_shape
        w = self.tail_width
        layers: list[nn.Module] = [*_conv(channels, w), *_conv(w, w)]
        if min(height, width) >= 6:
            layers += [nn.MaxPool2d(2), *_conv(w, 2 * w)]
            height, width, w = height // 2, width // 2, 2 * w
        layers += [nn.Flatten(), nn.Dropout(self.dropout), nn.Linear(w * height * width, classes)]
        return nn.Sequential(*layers)

    def latent_shape(self, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """[C, H, W] of the latent for images [C, H, W]. Raises ScenarioError."""
        _, height, width = input_shape
        for _ in range(self.halvings):
            height, width = (height + 1) // 2, (width + 1) // 2
        if min(height, width) < 2:
            raise ScenarioError(
                f"small_conv: {self.halvings} halvings leave {height}x{width} of an image {list(input_shape)}, "
                "expected 2x2 or more: lower `halvings`"
            )
        return self.latent_channels, height, width


def _conv(fan_in: int, fan_out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
