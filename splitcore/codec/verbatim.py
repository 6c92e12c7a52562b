"""Numbers as a foreign endpoint's tensor has them: no codec of ours between, but the datatype is a grid all the same.

`identity` and `float16` are codecs of ours too; `float64`, `uint8` and `int8` exist for endpoints alone, so `fit` and
scenarios do not know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitcore.codec.base import Codec
from splitcore.codec.identity import FloatCodec
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec

DTYPES = {"identity": "<f4", "float16": "<f2", "float64": "<f8", "uint8": "u1", "int8": "i1"}


def verbatim(name: str, latent: LatentSpec) -> Codec:
    """The codec of that name. Raises CodecError."""
    if name not in DTYPES:
        raise CodecError(f"expected numbers as {', '.join(DTYPES)}, got {name[:32]!r}")
    dtype = np.dtype(DTYPES[name])
    return FloatCodec(name, latent, dtype) if dtype.kind == "f" else IntegerCodec(name, latent, dtype)


class IntegerCodec(Codec):
    """Whole numbers of one byte: what is between is rounded, what is outside is clipped."""

    def __init__(self, name: str, latent: LatentSpec, dtype: np.dtype[Any]) -> None:
        self.name, self.latent, self.dtype = name, latent, dtype
        bounds = np.iinfo(dtype)
        self.lo, self.hi = np.full(1, bounds.min, np.float32), np.full(1, bounds.max, np.float32)
        self.step = np.ones(1, np.float32)

    def encode(self, latents: F32) -> list[bytes]:
        whole = self.snap(latents).astype(self.dtype)
        return [row.tobytes() for row in whole]

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        for payload in payloads:
            if len(payload) != self.max_payload_bytes:
                raise CodecError(
                    f"{self.name}: expected {self.max_payload_bytes} bytes for shape {self.latent.shape}, got {len(payload)}"
                )
        stack: NDArray[np.generic] = np.frombuffer(b"".join(payloads), self.dtype)
        return stack.reshape(len(payloads), *self.latent.shape).astype(np.float32)

    def snap(self, latents: F32) -> F32:
        snapped: F32 = np.clip(np.rint(self.latent.check(latents)), self.lo, self.hi)
        return snapped

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        return self.snap(centre + np.trunc(latents - centre))

    @property
    def max_payload_bytes(self) -> int:
        return self.latent.elements
