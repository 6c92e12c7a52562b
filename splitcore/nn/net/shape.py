"""The shape that a network gives, from its layers' arithmetic.

Running it on the meta device would do too, but a first forward pass there imports 800 modules: four seconds of an edge's start.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import nn

Shape = tuple[int, ...]


@runtime_checkable
class Shaped(Protocol):
    """A module of ours that changes shapes."""

    def shape_after(self, shape: Shape) -> Shape: ...


def shape_after(make: Callable[[], nn.Module], shape: Shape) -> Shape:
    """What the network makes of an image or latent [*shape]. Raises ValueError where it does not fit."""
    with torch.device("meta"):  # no memory, no time
        return _after(make(), shape)


def _after(layer: nn.Module, shape: Shape) -> Shape:
    match layer:
        case nn.Sequential():
            for child in layer:
                shape = _after(child, shape)
            return shape
        case nn.Conv2d():
            _expect(shape, layer.in_channels)
            return layer.out_channels, *_window(shape, layer.kernel_size, layer.stride, layer.padding)
        case nn.ConvTranspose2d():
            _expect(shape, layer.in_channels)
            sizes = zip(shape[1:], _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding), strict=True)
            return layer.out_channels, *((side - 1) * s - 2 * p + k for side, k, s, p in sizes)
        case nn.MaxPool2d() | nn.AvgPool2d():
            return shape[0], *_window(shape, layer.kernel_size, layer.stride, layer.padding)
        case nn.AdaptiveAvgPool2d():
            return shape[0], *_pair(layer.output_size)
        case nn.Flatten():
            return (prod(shape),)
        case nn.Linear():
            if shape != (layer.in_features,):
                raise ValueError(f"expected {layer.in_features} features at a linear layer, got {list(shape)}")
            return (layer.out_features,)
        case Shaped():
            return layer.shape_after(shape)
    return shape


def _expect(shape: Shape, channels: int) -> None:
    if len(shape) != 3 or shape[0] != channels:
        raise ValueError(f"expected {channels} channels at a convolution, got {list(shape)}")


def _window(shape: Shape, kernel: object, stride: object, padding: object) -> Shape:
    """Height and width after a window of `kernel` moved by `stride`."""
    sizes = zip(shape[1:], _pair(kernel), _pair(stride), _pair(padding), strict=True)
    sides = tuple((side + 2 * p - k) // s + 1 for side, k, s, p in sizes)
    if min(sides) < 1:
        raise ValueError(f"nothing is left of {list(shape)} after a window of {_pair(kernel)}: it is too small")
    return sides


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    assert isinstance(value, tuple)
    height, width = value
    return int(height), int(width)
