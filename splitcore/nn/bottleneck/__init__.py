"""The family of bottlenecks: what sits at the split. Adding one touches its file and the tuple BOTTLENECKS."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from splitcore.nn.bottleneck.base import Bottleneck
from splitcore.nn.bottleneck.cast import Float16Bottleneck, IdentityBottleneck
from splitcore.nn.bottleneck.entropy import EntropyBottleneck
from splitcore.nn.bottleneck.jpeg import JpegBottleneck, JpegTriplesBottleneck
from splitcore.nn.bottleneck.uniform import UniformBottleneck

__all__ = [
    "BOTTLENECKS",
    "Bottleneck",
    "BottleneckConfig",
    "EntropyBottleneck",
    "Float16Bottleneck",
    "IdentityBottleneck",
    "JpegBottleneck",
    "JpegTriplesBottleneck",
    "UniformBottleneck",
]

BOTTLENECKS = (
    IdentityBottleneck,
    Float16Bottleneck,
    UniformBottleneck,
    EntropyBottleneck,
    JpegBottleneck,
    JpegTriplesBottleneck,
)
BottleneckConfig: TypeAlias = Annotated[
    IdentityBottleneck | Float16Bottleneck | UniformBottleneck | EntropyBottleneck | JpegBottleneck | JpegTriplesBottleneck,
    Field(discriminator="kind"),
]
