"""The family of networks. Adding one touches its file and the tuple NETS."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from splitcore.nn.net.cifar_resnet import CifarResNet
from splitcore.nn.net.lenet import LeNet
from splitcore.nn.net.small_conv import SmallConv

__all__ = ["NETS", "CifarResNet", "LeNet", "NetConfig", "SmallConv"]

NETS = (SmallConv, LeNet, CifarResNet)
NetConfig: TypeAlias = Annotated[SmallConv | LeNet | CifarResNet, Field(discriminator="kind")]
