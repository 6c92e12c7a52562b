"""`resnet`: the residual networks for ImageNet, with torchvision's names, cut after the stem or after any stage.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1: a 7x7 convolution and a pooling, four
stages of blocks with 64 to 512 channels (blocks of 50 layers and more emit four times that), average pooling, one linear layer.

Departure, torchvision's: a stage's first block of three convolutions has its stride in the 3x3, not in the 1x1. The network is
convolutional up to the average, so images of any size pass; it was made for 224x224.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from splitcore.codec.base import STRICT
from splitcore.nn.net.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from splitcore.nn.net.parts import Chain, Parts
from splitcore.nn.net.shape import Shape

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""depth: blocks of each stage"""
WIDTHS = (64, 128, 256, 512)
_LAST = {"stem": "relu", "pool": "maxpool"}
"""cut: the head's last part, where it has another name"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ResNet(Chain):
    """The arguments that build a head and a tail; parameters are named as in torchvision's weights."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101, 152] = 50
    """layers"""
    cut: Literal["stem", "pool", "layer1", "layer2", "layer3", "layer4", "avgpool"] = "layer2"
    """the last part of the head: `stem` ends with the first ReLU, `pool` with the pooling after it"""

    @property
    def cut_at(self) -> str:
        return f"after {self.cut}, after ReLU"

    @property
    def channels(self) -> int:
        """of the latent"""
        stages = {f"layer{k}": width * self._block.expansion for k, width in enumerate(WIDTHS, start=1)}
        return {"stem": 64, "pool": 64, "avgpool": stages["layer4"], **stages}[self.cut]

    def pixels(self, mean: Sequence[float], std: Sequence[float]) -> Normalise:
        """ImageNet's, whatever the data: the weights were trained with it."""
        return Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def first(self, input_shape: tuple[int, int, int]) -> Parts:
        parts = self._parts(classes=0)
        return {name: parts[name] for name in list(parts)[: self._cut]}

    def rest(self, latent_shape: tuple[int, ...], classes: int) -> Parts:
        parts = self._parts(classes)
        return {name: parts[name] for name in list(parts)[self._cut :]}

    @property
    def _cut(self) -> int:
        """parts of the head"""
        return list(self._parts(classes=0)).index(_LAST.get(self.cut, self.cut)) + 1

    @property
    def _block(self) -> type[Basic] | type[Bottleneck]:
        return Basic if self.depth < 50 else Bottleneck

    def _parts(self, classes: int) -> Parts:
        block = self._block
        return {
            "conv1": lambda: nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            "bn1": lambda: nn.BatchNorm2d(64),
            "relu": nn.ReLU,
            "maxpool": lambda: nn.MaxPool2d(3, 2, 1),
            **{f"layer{k + 1}": partial(_stage, block, k, BLOCKS[self.depth][k]) for k in range(4)},
            "avgpool": lambda: nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten,
            "fc": lambda: nn.Linear(WIDTHS[3] * block.expansion, classes),
        }


class Residual(nn.Module):
    """y = relu(F(x) + shortcut(x)), the paper's eqs. 1 and 2; where the shape changes, a 1x1 convolution (option B)."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.fan_in, self.fan_out, self.stride = fan_in, fan_out, stride
        self.relu = nn.ReLU()
        self.downsample = (
            nn.Identity() if (fan_in, stride) == (fan_out, 1) else nn.Sequential(*_conv(fan_in, fan_out, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.residue(x) + self.downsample(x))
        return y

    def shape_after(self, shape: Shape) -> Shape:
        """[C, H, W] of y for x [C, H, W]: F keeps to the shortcut's."""
        channels, height, width = shape
        if channels != self.fan_in:
            raise ValueError(f"expected {self.fan_in} channels at a block, got {list(shape)}")
        return self.fan_out, -(-height // self.stride), -(-width // self.stride)

    def residue(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Basic(Residual):
    """F: two 3x3 convolutions (figure 5, left)."""

    expansion = 1

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__(fan_in, width, stride)
        self.conv1, self.bn1 = _conv(fan_in, width, 3, stride)
        self.conv2, self.bn2 = _conv(width, width, 3)

    def residue(self, x: Tensor) -> Tensor:
        f: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return f


class Bottleneck(Residual):
    """F: 1x1, 3x3 and 1x1 convolutions (figure 5, right)."""

    expansion = 4

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__(fan_in, width * self.expansion, stride)
        self.conv1, self.bn1 = _conv(fan_in, width, 1)
        self.conv2, self.bn2 = _conv(width, width, 3, stride)
        self.conv3, self.bn3 = _conv(width, width * self.expansion, 1)

    def residue(self, x: Tensor) -> Tensor:
        narrow = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        f: Tensor = self.bn3(self.conv3(narrow))
        return f


def _conv(fan_in: int, fan_out: int, side: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(fan_in, fan_out, side, stride, side // 2, bias=False), nn.BatchNorm2d(fan_out)


def _stage(block: type[Basic] | type[Bottleneck], k: int, blocks: int) -> nn.Sequential:
    """Stage k from 0: the first block halves height and width, but not that of stage 0."""
    fan_in = WIDTHS[k - 1] * block.expansion if k else 64
    fan_out, width = WIDTHS[k] * block.expansion, WIDTHS[k]
    later = (block(fan_out, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(fan_in, width, 2 if k else 1), *later)
