"""The family of codecs. Adding one touches its file and the tuple CODECS."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from splitcore.codec.base import Codec
from splitcore.codec.identity import Float16, Identity
from splitcore.codec.uniform import Uniform
from splitcore.codec.zstd import ZstdCodec
from splitcore.errors import CodecError
from splitcore.latent import LatentSpec

__all__ = ["CODECS", "Codec", "CodecConfig", "fit", "parse"]

CODECS = (Identity, Float16, Uniform)
CodecConfig: TypeAlias = Annotated[Identity | Float16 | Uniform, Field(discriminator="kind")]

_NAME = re.compile(r"(?P<kind>identity|float16|uniform(?P<bits>[2-8])/(?P<per>tensor|channel))(?P<zstd>\+zstd)?")


def fit(config: CodecConfig | str, latent: LatentSpec) -> Codec:
    """The codec of a configuration, or with a canonical name, with its parameters frozen for `latent`."""
    if isinstance(config, str):
        config = parse(config)
    plain = config.plain(latent)
    return ZstdCodec(plain) if config.zstd else plain


def parse(name: str) -> CodecConfig:
    """The configuration that a canonical name stands for. Raises CodecError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise CodecError(
            f"unknown codec {name[:64]!r}: expected identity, float16 or uniform<2-8>/<tensor|channel>, with +zstd or without"
        )
    zstd = match["zstd"] is not None
    match match["kind"]:
        case "identity":
            return Identity(zstd=zstd)
        case "float16":
            return Float16(zstd=zstd)
        case _:
            per: Literal["channel", "tensor"] = "channel" if match["per"] == "channel" else "tensor"
            return Uniform(bits=int(match["bits"]), per=per, zstd=zstd)
