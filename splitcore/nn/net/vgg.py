"""`vgg`: VGG16 with and without batch normalisation, with torchvision's names, cut after any of its layers.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015 (arXiv 1409.1556), table 1,
configuration D: thirteen 3x3 convolutions in five blocks, a pooling after each, three linear layers.

Departure, torchvision's: what leaves the last pooling is averaged to 7x7, so that images of any size from 32x32 pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from splitcore.codec.base import STRICT
from splitcore.nn.net.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from splitcore.nn.net.parts import Chain, Parts

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""channels and convolutions of each"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Vgg(Chain):
    """The arguments that build a head and a tail; parameters are named as in torchvision's `vgg16` and `vgg16_bn`."""

    kind: Literal["vgg"] = "vgg"
    batch_norm: bool = True
    """after each convolution"""
    cut: (
        Literal["block1", "block2", "block3", "block4", "block5", "pool1", "pool2", "pool3", "pool4", "pool5"]
        | Annotated[int, Field(ge=1, le=44)]
    ) = "pool3"
    """the last part of the head: a block with its last ReLU, a block's pooling, or n for torchvision's `features[:n]`; the
    literature's is 8 of vgg16_bn, a convolution before its normalisation (Zhang et al., arXiv 2309.17401)"""

    @model_validator(mode="after")
    def _has_the_cut(self) -> Vgg:
        if self._cut > len(self._layers()):
            raise ValueError(f"expected a cut up to {len(self._layers())}, the layers of `features`, got {self.cut}")
        return self

    @property
    def cut_at(self) -> str:
        return f"after features[:{self.cut}]" if isinstance(self.cut, int) else f"after {self.cut}, after ReLU"

    @property
    def channels(self) -> int:
        """of the latent"""
        return next(int(layer.args[-1]) for layer in reversed(self._layers()[: self._cut]) if isinstance(layer, partial))

    def pixels(self, mean: Sequence[float], std: Sequence[float]) -> Normalise:
        """ImageNet's, whatever the data: the weights were trained with it."""
        return Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def first(self, input_shape: tuple[int, int, int]) -> Parts:
        return {"features": lambda: self._features(0, self._cut)}

    def rest(self, latent_shape: tuple[int, ...], classes: int) -> Parts:
        return {
            "features": lambda: self._features(self._cut, None),
            "avgpool": lambda: nn.AdaptiveAvgPool2d(7),
            "flatten": nn.Flatten,
            "classifier": lambda: _classifier(classes),
        }

    @property
    def _cut(self) -> int:
        """layers of `features` in the head"""
        if isinstance(self.cut, int):
            return self.cut
        k = int(self.cut[-1])
        convolutions = sum(n for _, n in BLOCKS[:k])
        return (3 if self.batch_norm else 2) * convolutions + k - (not self.cut.startswith("pool"))

    def _features(self, start: int, stop: int | None) -> nn.Sequential:
        """Layers by their index in the whole, which is their name."""
        layers = list(enumerate(self._layers()))[start:stop]
        return nn.Sequential(OrderedDict((str(i), make()) for i, make in layers))

    def _layers(self) -> list[Callable[[], nn.Module]]:
        layers: list[Callable[[], nn.Module]] = []
        fan_in = 3
        for width, convolutions in BLOCKS:
            for _ in range(convolutions):
                layers.append(partial(nn.Conv2d, fan_in, width, kernel_size=3, padding=1))
                if self.batch_norm:
                    layers.append(partial(nn.BatchNorm2d, width))
                layers.append(nn.ReLU)
                fan_in = width
            layers.append(lambda: nn.MaxPool2d(2))
        return layers


def _classifier(classes: int) -> nn.Sequential:
    sides = 512 * 7 * 7
    return nn.Sequential(
        nn.Linear(sides, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
        nn.Linear(4096, classes),
    )  # fmt: skip
