"""A network as a chain of named parts: a cut is a slice of it, and every weight keeps the name it has in the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from splitcore.errors import ScenarioError
from splitcore.nn.net.normalise import Normalise
from splitcore.nn.net.shape import shape_after

Parts: TypeAlias = Mapping[str, Callable[[], nn.Module]]
"""name to what builds the part, in order; built late, since a whole VGG is half a gigabyte and a head 4 kB"""


class Chain(ABC):
    """The arguments of a network whose head and tail are `nn.Sequential`s of its parts."""

    kind: str

    @abstractmethod
    def first(self, input_shape: tuple[int, int, int]) -> Parts:
        """The head's parts for normalised images [C, H, W]."""

    @abstractmethod
    def rest(self, latent_shape: tuple[int, ...], classes: int) -> Parts:
        """The tail's parts."""

    def pixels(self, mean: Sequence[float], std: Sequence[float]) -> Normalise:
        """The head's normalisation for data of `mean` and `std` [C]."""
        return Normalise(mean, std)

    def head(self, input_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """Images [k, C, H, W] in [0, 1] to latents [k, *latent_shape]; `mean` and `std` [C] normalise the images."""
        self.latent_shape(input_shape)
        return built({"normalise": lambda: self.pixels(mean, std), **self.first(input_shape)})

    def tail(self, latent_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Latents [k, *latent_shape] to logits [k, classes]. Raises ScenarioError."""
        try:
            shape_after(lambda: chained(self.rest(latent_shape, classes)), latent_shape)
        except ValueError as error:
            raise ScenarioError(
                f"{self.kind}: expected a latent shape of this cut, got {list(latent_shape)}: {error}"
            ) from error
        return built(self.rest(latent_shape, classes))

    def latent_shape(self, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """[C, H, W] of the latent for images [C, H, W]. Raises ScenarioError."""
        try:
            return shape_after(lambda: chained(self.first(input_shape)), input_shape)
        except ValueError as error:
            raise ScenarioError(f"{self.kind}: expected images that reach the cut, got {list(input_shape)}: {error}") from error


def chained(parts: Parts) -> nn.Sequential:
    """The parts in order."""
    return nn.Sequential(OrderedDict((name, make()) for name, make in parts.items()))


def initialised(net: nn.Sequential) -> nn.Sequential:
    """The same, weights by He et al., "Delving Deep into Rectifiers", ICCV 2015, by fan-out as in torchvision."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def built(parts: Parts) -> nn.Sequential:
    return initialised(chained(parts))
