"""The family of codecs. Adding one touches its file and the tuple CODECS."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias, cast

from pydantic import Field

from splitcore.codec.base import Codec
from splitcore.codec.entropy import Entropy
from splitcore.codec.identity import Float16, Identity
from splitcore.codec.jpeg import Jpeg
from splitcore.codec.jpeg_triples import JpegTriples
from splitcore.codec.uniform import Per, Uniform
from splitcore.codec.zstd import ZstdCodec
from splitcore.errors import CodecError
from splitcore.latent import LatentSpec

__all__ = ["CODECS", "Codec", "CodecConfig", "fit", "parse"]

CODECS = (Identity, Float16, Uniform, Entropy, Jpeg, JpegTriples)
CodecConfig: TypeAlias = Annotated[Identity | Float16 | Uniform | Entropy | Jpeg | JpegTriples, Field(discriminator="kind")]

_NAME = re.compile(
    r"entropy/(?P<prior>[0-9a-f]{8})"
    r"|(?:(?P<float>identity|float16)|uniform(?P<bits>[1-8])/(?P<per>(?:tensor|channel)(?:/sample)?)"
    r"|jpeg(?P<quality>[1-9]|[1-8][0-9]|9[0-5])(?P<triples>/rgb-triples)?)(?P<zstd>\+zstd)?"
)
_KNOWN = (
    "expected identity, float16, uniform<1-8>/<tensor|channel>[/sample] or jpeg<1-95>[/rgb-triples], with +zstd or without, "
    "or entropy/<hash of the prior>"
)


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
        raise CodecError(f"unknown codec {name[:64]!r}: {_KNOWN}")
    zstd = match["zstd"] is not None
    if match["prior"]:
        return Entropy(prior=match["prior"])
    if match["float"]:
        return Identity(zstd=zstd) if match["float"] == "identity" else Float16(zstd=zstd)
    if match["quality"]:
        kind = JpegTriples if match["triples"] else Jpeg
        return kind(quality=int(match["quality"]), zstd=zstd)
    return Uniform(bits=int(match["bits"]), per=cast(Per, match["per"]), zstd=zstd)
