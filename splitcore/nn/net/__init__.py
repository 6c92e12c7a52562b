"""The family of networks. Adding one touches its file and the tuple NETS."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from splitcore.nn.net.cifar_resnet import CifarResNet
from splitcore.nn.net.lenet import LeNet
from splitcore.nn.net.narrow import Narrow
from splitcore.nn.net.q_layer_cnn import QLayerCnn
from splitcore.nn.net.resnet import ResNet
from splitcore.nn.net.small_conv import SmallConv
from splitcore.nn.net.stochastic_mlp import StochasticMlp
from splitcore.nn.net.vgg import Vgg

__all__ = [
    "NETS",
    "CifarResNet",
    "LeNet",
    "Narrow",
    "NetConfig",
    "QLayerCnn",
    "ResNet",
    "SmallConv",
    "StochasticMlp",
    "Vgg",
]

NETS = (SmallConv, LeNet, CifarResNet, ResNet, Vgg, QLayerCnn, StochasticMlp, Narrow)
NetConfig: TypeAlias = Annotated[
    SmallConv | LeNet | CifarResNet | ResNet | Vgg | QLayerCnn | StochasticMlp | Narrow, Field(discriminator="kind")
]
