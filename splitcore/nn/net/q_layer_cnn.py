"""`cnn_a`, `cnn_b`: the two small networks for MNIST and Fashion-MNIST that the Q-Layer paper protects and attacks with.

"Defensive Quantization Layer for Convolutional Networks against Adversarial Attack", anonymous, table 4; they
are models A and C of Samangouei, Kabkab, Chellappa, "Defense-GAN", ICLR 2018 (C with a 3x3 as its second convolution).

The paper does not say how images are padded. Here, as in Defense-GAN's code: the first convolution keeps height and width, the
second pads nothing. The softmax is left to the loss.
"""

from __future__ import annotations

from math import prod
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import nn

from splitcore.codec.base import STRICT
from splitcore.nn.net.parts import Chain, Parts, chained
from splitcore.nn.net.shape import shape_after

CONVOLUTIONS = {"cnn_a": ((64, 5), (64, 5)), "cnn_b": ((128, 3), (64, 3))}
"""channels and side of each"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QLayerCnn(Chain):
    """The arguments that build a head and a tail."""

    kind: Literal["cnn_a", "cnn_b"] = "cnn_a"
    cut: Literal["conv1", "conv2"] = "conv2"
    """the head's last convolution, with its ReLU: a Q-Layer sits after `conv2`, and in section 4.4 after `conv1`"""

    @property
    def cut_at(self) -> str:
        return f"after {self.cut}, after ReLU"

    def first(self, input_shape: tuple[int, int, int]) -> Parts:
        width, side = CONVOLUTIONS[self.kind][0]
        parts: Parts = {
            "conv1": lambda: nn.Conv2d(input_shape[0], width, side, padding=side // 2),
            "relu1": nn.ReLU,
        }
        return parts if self.cut == "conv1" else {**parts, **self._second}

    def rest(self, latent_shape: tuple[int, ...], classes: int) -> Parts:
        second = self._second if self.cut == "conv1" else {}
        features = prod(shape_after(lambda: chained(second), latent_shape))
        return {
            **second,
            "dropout1": lambda: nn.Dropout(0.25),
            "flatten": nn.Flatten,
            "fc1": lambda: nn.Linear(features, 128),
            "relu3": nn.ReLU,
            "dropout2": lambda: nn.Dropout(0.5),
            "fc2": lambda: nn.Linear(128, classes),
        }

    @property
    def _second(self) -> Parts:
        (fan_in, _), (width, side) = CONVOLUTIONS[self.kind]
        return {"conv2": lambda: nn.Conv2d(fan_in, width, side, stride=2), "relu2": nn.ReLU}
