"""`identity`: little-endian float32, as the head computed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass

from splitcore.codec.base import STRICT, Codec
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Identity:
    """Float32 as it is: 4 bytes an element, nothing lost."""

    kind: Literal["identity"] = "identity"
    zstd: bool = False
    """each payload through Zstandard"""

    def plain(self, latent: LatentSpec) -> Codec:
        return FloatCodec("identity", latent, np.dtype("<f4"))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Float16:
    """IEEE half precision: 2 bytes an element, values beyond 65504 saturate."""

    kind: Literal["float16"] = "float16"
    zstd: bool = False
    """each payload through Zstandard"""

    def plain(self, latent: LatentSpec) -> Codec:
        return FloatCodec("float16", latent, np.dtype("<f2"))


class FloatCodec(Codec):
    """A plain cast to `dtype`, saturating, so that no infinity is ever written."""

    def __init__(self, name: str, latent: LatentSpec, dtype: np.dtype[np.floating]) -> None:
        self.name = name
        self.latent = latent
        self.dtype = dtype
        self._largest = np.float32(np.finfo(dtype).max)
        bound = np.inf if dtype.itemsize == 4 else self._largest
        self.lo, self.hi = np.full(1, -bound, np.float32), np.full(1, bound, np.float32)
        self.step = np.zeros(1, np.float32)
        self.spacing = float(np.finfo(self.dtype).eps) if self.dtype.itemsize < 4 else 0.0

    def _cast(self, latents: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
        stack = self.latent.check(latents)
        if self.dtype.itemsize < 4:
            stack = np.clip(stack, -self._largest, self._largest)
        return stack.astype(self.dtype, copy=False)

    def encode(self, latents: F32) -> list[bytes]:
        return [row.tobytes() for row in self._cast(latents)]

    def _check_lengths(self, payloads: Sequence[bytes | memoryview]) -> None:
        size = self.max_payload_bytes
        for payload in payloads:
            if len(payload) != size:
                raise CodecError(
                    f"{self.name}: expected {size} bytes for shape {self.latent.shape}, "
                    f"got {len(payload)}: sender and receiver hold different artefacts"
                )

    def decode_into(self, payloads: Sequence[bytes | memoryview], out: F32) -> None:
        if self.dtype != out.dtype:
            super().decode_into(payloads, out)
            return
        self._check_lengths(payloads)
        size = self.max_payload_bytes
        into = out.reshape(-1).view(np.uint8).data
        for at, payload in enumerate(payloads):
            into[at * size : (at + 1) * size] = payload
        self.latent.check(out)

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        self._check_lengths(payloads)
        stack = np.frombuffer(b"".join(payloads), self.dtype).reshape(len(payloads), *self.latent.shape)
        return self.latent.check(stack)

    def snap(self, latents: F32) -> F32:
        return self._cast(latents).astype(np.float32, copy=False)

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        nearest = self._cast(latents)
        beyond = np.abs(nearest.astype(np.float32) - centre) > np.abs(latents - centre)
        nearer = np.nextafter(nearest, centre.astype(self.dtype))
        return np.where(beyond, nearer, nearest).astype(np.float32, copy=False)

    @property
    def max_payload_bytes(self) -> int:
        return self.latent.elements * self.dtype.itemsize
