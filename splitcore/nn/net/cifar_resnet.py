"""`cifar_resnet`: the residual networks for 32x32 images, cut after their first or second stage, or before everything.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: a 3x3 convolution, three stages of
n blocks with 16, 32 and 64 channels, average pooling, one linear layer; 6n + 2 layers. Shortcuts are option A, without
parameters: where a stage begins, every second row and column, and channels of zeros. Parameters: n = 3, 269,722.

Departure: the channels of zeros are added in equal parts before and after the others, as in the weights that are published for
these networks (the paper does not say where). The pixels are normalised with what those weights were trained on, by channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError
from splitcore.nn.net.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise

WIDTHS = (16, 32, 64)
SIDE = 32
_LATENTS = {"input": (3, SIDE, SIDE), "stage1": (16, 32, 32), "stage2": (32, 16, 16)}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CifarResNet:
    """The arguments that build a head and a tail; their parameters are named as in the published weights."""

    kind: Literal["cifar_resnet"] = "cifar_resnet"
    depth: Literal[20, 32, 44, 56] = 20
    """layers, 6n + 2"""
    cut: Literal["input", "stage1", "stage2"] = "stage1"
    """the last stage of the head; the latent is its output, after ReLU. `input`: the phone sends the image itself"""

    @property
    def cut_at(self) -> str:
        return "before the network: the image itself" if self.cut == "input" else f"after {self.cut}, after ReLU"

    @property
    def channels(self) -> int:
        """of the latent"""
        return _LATENTS[self.cut][0]

    def pixels(self, mean: Sequence[float], std: Sequence[float]) -> Normalise:
        """ImageNet's, whatever the data: the weights were trained with it."""
        return Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def head(self, input_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """Images [k, 3, 32, 32] in [0, 1] to latents [k, *latent_shape]; `mean` and `std` of the data are not used."""
        self.latent_shape(input_shape)
        return CifarResNetHead(self._blocks, self._stages) if self._stages else nn.Identity()

    def tail(self, latent_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Latents [k, *latent_shape] to logits [k, classes]."""
        if latent_shape != _LATENTS[self.cut]:
            raise ScenarioError(
                f"cifar_resnet: expected a latent shape {list(_LATENTS[self.cut])} after {self.cut}, got {list(latent_shape)}"
            )
        return CifarResNetTail(self._blocks, self._stages, classes) if self._stages else WholeCifarResNet(self._blocks, classes)

    def latent_shape(self, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """[C, H, W] of the latent for images [C, H, W]. Raises ScenarioError."""
        if input_shape != (3, SIDE, SIDE):
            raise ScenarioError(f"cifar_resnet: expected images [3, {SIDE}, {SIDE}], got {list(input_shape)}")
        return _LATENTS[self.cut]

    @property
    def _blocks(self) -> int:
        """n, of each stage"""
        return (self.depth - 2) // 6

    @property
    def _stages(self) -> int:
        """of the head"""
        return tuple(_LATENTS).index(self.cut)


class CifarResNetHead(nn.Module):
    def __init__(self, blocks: int, stages: int) -> None:
        super().__init__()
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks) if stages > 1 else nn.Identity()
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer2(self.layer1(self.bn1(self.conv1(self.normalise(x))).relu()))
        return z


class WholeCifarResNet(CifarResNetHead):
    """Images [k, 3, 32, 32] in [0, 1] to logits [k, classes]."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__(blocks, 2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        self.linear = nn.Linear(WIDTHS[2], classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.layer3(super().forward(x)).mean((2, 3)))
        return logits


class CifarResNetTail(nn.Module):
    def __init__(self, blocks: int, stages: int, classes: int) -> None:
        super().__init__()
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks) if stages < 2 else nn.Identity()
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        self.linear = nn.Linear(WIDTHS[2], classes)
        _initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.layer3(self.layer2(z)).mean((2, 3)))
        return logits


class Block(nn.Module):
    """y = relu(F(x) + shortcut(x)), F two 3x3 convolutions, each normalised (the paper's eqs. 1 and 2)."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.stride = 1 if fan_in == fan_out else 2
        self.more = fan_out - fan_in
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        f = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        y: Tensor = (f + self.shortcut(x)).relu()
        return y

    def shortcut(self, x: Tensor) -> Tensor:
        """x [k, C, H, W] itself, or where the stage begins [k, 2C, H/2, W/2] (option A)."""
        if not self.more:
            return x
        before = self.more // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.more - before))


def _stage(fan_in: int, fan_out: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(fan_in, fan_out), *(Block(fan_out, fan_out) for _ in range(blocks - 1)))


def _initialise(net: nn.Module) -> None:
    """He et al., "Delving Deep into Rectifiers", ICCV 2015: the paper's initialisation."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
