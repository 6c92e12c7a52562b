"""`lenet`: LeNet-5, cut after its first convolution and pooling, where the latent is [6, 14, 14].

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86 (1998), section II.B.

Departures, all common today: ReLU instead of the scaled tanh, max pooling instead of trainable averages, the second
convolution sees all six maps, and a linear layer with cross-entropy instead of radial basis functions. 61,706 parameters for
gray images and ten classes. 28x28 images are padded by two in the first convolution; the paper pads them to 32x32 beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError
from splitcore.nn.net.normalise import Normalise

SIDE = 28
LATENT = (6, 14, 14)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LeNet:
    """The arguments that build a head and a tail."""

    kind: Literal["lenet"] = "lenet"
    resize: bool = False
    """images of another size are brought to 28x28 first thing in the head, bilinear; else they are refused"""

    @property
    def cut_at(self) -> str:
        return "after conv1 and its pooling"

    @property
    def channels(self) -> int:
        """of the latent"""
        return LATENT[0]

    def pixels(self, mean: Sequence[float], std: Sequence[float]) -> Normalise:
        """The head's normalisation for data of `mean` and `std` [C]."""
        return Normalise(mean, std)

    def head(self, input_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """Images [k, C, H, W] in [0, 1] to latents [k, 6, 14, 14]; `mean` and `std` [C] normalise the images."""
        self.latent_shape(input_shape)
        return LeNetHead(input_shape[0], self.pixels(mean, std), resize=input_shape[1:] != (SIDE, SIDE))

    def tail(self, latent_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Latents [k, 6, 14, 14] to logits [k, classes]."""
        if latent_shape != LATENT:
            raise ScenarioError(f"lenet: expected a latent shape {list(LATENT)}, got {list(latent_shape)}")
        return LeNetTail(classes)

    def latent_shape(self, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """[C, H, W] of the latent for images [C, H, W]. Raises ScenarioError."""
        if not self.resize and input_shape[1:] != (SIDE, SIDE):
            raise ScenarioError(f"lenet: expected images of {SIDE}x{SIDE}, got {list(input_shape)}: say `resize: true`")
        return LATENT


class LeNetHead(nn.Module):
    def __init__(self, channels: int, normalise: Normalise, *, resize: bool) -> None:
        super().__init__()
        self.normalise = normalise
        self.resize = resize
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        if self.resize:
            x = functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return functional.max_pool2d(self.conv1(self.normalise(x)).relu(), 2)


class LeNetTail(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, z: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv2(z).relu(), 2).flatten(1)
        logits: Tensor = self.fc3(self.fc2(self.fc1(x).relu()).relu())
        return logits
