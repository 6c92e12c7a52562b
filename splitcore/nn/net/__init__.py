"""The family of networks. Adding one touches its file and the tuple NETS."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from splitcore.nn.net.small_conv import SmallConv

__all__ = ["NETS", "NetConfig", "SmallConv"]

NETS = (SmallConv,)
NetConfig: TypeAlias = Annotated[SmallConv, Field()]
"""one of NETS; becomes a union discriminated by `kind` with the second network"""
