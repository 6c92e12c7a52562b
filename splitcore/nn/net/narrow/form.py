"""What a form of student is: an encoder that ends with b channels, and a decoder that starts from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers that a form is built from."""

    image: int
    """channels of the images"""
    b: int
    """channels of the latent"""
    width: int
    """channels of the decoder's widest layers"""
    out: int
    """channels of the teacher's latent, which the decoder imitates"""
    ratio: int
    """height of the images over that of the teacher's latent; 0 where it is not known, in the tail"""


class Form(Protocol):
    """The layers of an encoder or a decoder, for images or latents of any height and width. Raises ValueError."""

    def __call__(self, size: Size) -> list[nn.Module]: ...


def stem_width(ratio: int) -> int:
    """Channels that leave the stem: as published for 4, ours for smaller images."""
    return 64 if ratio == 4 else 32


def stem(image: int, width: int, ratio: int) -> list[nn.Module]:
    """Images [k, image, H, W] to [k, width, H/ratio, W/ratio]. Raises ValueError for a ratio other than 4, 2 and 1."""
    if ratio not in (1, 2, 4):
        raise ValueError("its encoder has no stem for the teacher's cut: choose one where the latent is larger or smaller")
    if ratio == 4:
        return [*conv(image, width, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    # smaller images are ours
    side = 5 if ratio == 2 else 3
    return [*conv(image, width, side, stride=ratio, padding=side // 2), nn.ReLU()]


def conv(fan_in: int, fan_out: int, side: int, *, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    """A convolution and its normalisation, no ReLU."""
    return [nn.Conv2d(fan_in, fan_out, side, stride, padding, bias=False), nn.BatchNorm2d(fan_out)]
