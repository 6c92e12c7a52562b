"""`+zstd`: any codec's payload through Zstandard (RFC 8878), each payload a frame of its own that states its size."""

from __future__ import annotations

from collections.abc import Sequence

import zstandard

from splitcore.codec.base import Codec
from splitcore.errors import CodecError
from splitcore.latent import F32, MAX_ELEMENTS

LEVEL = -3
"""94 to 98 % of level 1's ratio at two thirds of its time"""


class ZstdCodec(Codec):
    """`inner`, compressed. What a payload may expand to is known beforehand, so a bomb is refused unopened."""

    def __init__(self, inner: Codec) -> None:
        self.inner = inner
        self.name = f"{inner.name}+zstd"
        self.latent = inner.latent
        self.lo, self.hi, self.step, self.spacing = inner.lo, inner.hi, inner.step, inner.spacing
        self.coupled, self.settles, self.varies = inner.coupled, inner.settles, True
        self._size = inner.max_payload_bytes

    def encode(self, latents: F32) -> list[bytes]:
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        return [compressor.compress(payload) for payload in self.inner.encode(latents)]

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        if len(payloads) * self.latent.elements > MAX_ELEMENTS:
            # other codecs are bounded by the message; this one by what the message expands to
            raise CodecError(
                f"{self.name}: expected at most {MAX_ELEMENTS // self.latent.elements} latents of shape "
                f"{self.latent.shape} at once, got {len(payloads)}: send them in several requests"
            )
        decompressor = self._decompressor()
        return self.inner.decode([self._open(decompressor, payload) for payload in payloads])

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        # not safe to share between threads, and cheap to make
        return zstandard.ZstdDecompressor(max_window_size=max(1 << 20, self._size))

    def _open(self, decompressor: zstandard.ZstdDecompressor, payload: bytes | memoryview) -> bytes:
        if len(payload) > self.max_payload_bytes:
            raise CodecError(f"{self.name}: expected at most {self.max_payload_bytes} bytes, got {len(payload)}")
        try:
            declared = zstandard.frame_content_size(payload)
            # the two largest numbers stand for an error and for a frame that does not say
            if declared != self._size and not (self.inner.varies and 0 < declared < self._size):
                raise CodecError(f"{self.name}: expected a frame of {self._size} bytes, got one that says {declared}")
            return decompressor.decompress(payload, max_output_size=declared, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CodecError(f"{self.name}: not a Zstandard frame as this codec writes it: {error}") from error

    def snap(self, latents: F32) -> F32:
        return self.inner.snap(latents)

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        return self.inner.snap_towards(latents, centre)

    def as_sent(self, payload: bytes | memoryview) -> Codec:
        inner = self.inner.as_sent(self._open(self._decompressor(), payload))
        return self if inner is self.inner else ZstdCodec(inner)

    @property
    def max_payload_bytes(self) -> int:
        # Zstandard's own bound for incompressible input (ZSTD_compressBound).
        return self._size + (self._size >> 8) + 128
