"""The tails that the serving benchmark serves: real architectures with random weights. What they say is noise, what they cost
is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from splitcore.artefact import Artefact
from splitcore.data import Dataset
from splitcore.nn.bottleneck.uniform import UniformBottleneck
from splitcore.nn.export import export, export_split
from splitcore.nn.net.cifar_resnet import CifarResNet
from splitcore.nn.net.lenet import LeNet
from splitcore.nn.net.resnet import ResNet
from splitcore.nn.recipe import Recipe
from splitcore.nn.split_model import calibrate
from splitcore.nn.training import build

ROOT = Path(__file__).resolve().parents[1]
TRUST = str(Path(__file__))
"""whose code builds the tail of `pooled`"""
IMAGES = 64
LAYERS = 16


class Pooled(nn.Module):
    """As light as a tail gets: means over 4x4 places and one linear layer. [k, 16, 32, 32] to [k, 10]; a latent is 64 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.linear = nn.Linear(256, 10)

    def forward(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.pool(latents).flatten(1))
        return logits


class Heavy(nn.Module):
    """Much to compute of little on the wire, so that the tail is what is overloaded: [k, 4, 8, 8], 256 bytes, to [k, 10]."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [layer for _ in range(LAYERS) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
        self.body = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), *convolutions)
        self.linear = nn.Linear(16, 10)

    def forward(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.body(latents).mean((2, 3)))
        return logits


def heavy() -> nn.Module:
    """The factory that the artefact names."""
    return Heavy()


def pooled() -> nn.Module:
    """The factory that the artefact names."""
    return Pooled()


def make(name: str, folder: Path) -> Artefact:
    """An artefact called `name`, made in `folder / name`: lenet, pooled, heavy, resnet20 or resnet50."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def images(shape: tuple[int, int, int], classes: int) -> Dataset:
        pixels = rng.integers(0, 256, (IMAGES, *shape), np.uint8)
        labels = rng.integers(0, classes, IMAGES)
        return Dataset(pixels, labels, tuple(map(str, range(classes))), "noise", "test")

    bottleneck = UniformBottleneck(bits=8, per="channel")
    if name in ("pooled", "heavy"):
        data = images((3, 32, 32), 10)
        head = nn.Conv2d(3, 16, 3, padding=1) if name == "pooled" else nn.Conv2d(3, 4, 4, stride=4)
        return export_split(
            nn.Sequential(head, nn.ReLU()), bottleneck.build(), pooled() if name == "pooled" else heavy(), name=name,
            tail_factory=f"_tails:{name}", tail_arguments={}, calibration=data.images, samples=(data.images, data.labels),
            classes=data.classes, folder=folder / name,
        )  # fmt: skip
    net, data = {
        "lenet": lambda: (LeNet(), images((1, 28, 28), 10)),
        "resnet20": lambda: (CifarResNet(depth=20, cut="stage1"), images((3, 32, 32), 10)),
        "resnet50": lambda: (ResNet(depth=50, cut="layer2"), images((3, 224, 224), 1000)),
    }[name]()
    recipe = Recipe(name=name, dataset="digits", net=net, bottleneck=bottleneck, epochs=1)
    model = build(recipe, data)
    model.eval()
    model.freeze(calibrate(model.head, torch.from_numpy(data.images)))
    return export(model, recipe, data, folder / name)
