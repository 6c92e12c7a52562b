"""`uniform<b>/<tensor|channel>/sample`: affine quantisation on each latent's own range, which travels before its codes.

lo float32 [R], hi float32 [R], little-endian, then the codes as `uniform` packs them; R is 1 or the number of channels, and the
top code stands for hi itself, so that the smallest and the largest value arrive as they are and the range measured again is the
same. Whoever writes the payload chooses the range, up to LIMIT: the calibrated one binds nobody. An adversary who moves values
moves the grid under all others (`coupled`), unless it keeps the range of the payload that it found: that is `as_sent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitcore.codec.base import Codec
from splitcore.codec.packing import pack, unpack
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec

LIMIT = np.float32(1e6)
"""no range reaches beyond: what LatentSpec allows a calibrated one"""
FINEST = np.float32(2**-20)
"""smallest step as a fraction of the values: finer than that, lo + q·s is rounded to its neighbours"""
TINY = np.finfo(np.float32).tiny


class SampledCodec(Codec):
    """Ranges [k, R, 1, ..., 1] in front of the codes."""

    coupled = True

    def __init__(self, bits: int, per: Literal["tensor/sample", "channel/sample"], latent: LatentSpec) -> None:
        self.bits = bits
        self.name = f"uniform{bits}/{per}"
        self.latent = latent
        self.levels = (1 << bits) - 1
        self.lo, self.hi = np.full(1, -LIMIT), np.full(1, LIMIT)
        within = latent.per_channel(latent.lo), latent.per_channel(latent.hi)
        if per == "tensor/sample":
            within = within[0].min(keepdims=True), within[1].max(keepdims=True)
        self.step = ((within[1] - within[0]) / np.float32(self.levels)).astype(np.float32)
        self._ranges = within[0].shape
        self._axes = tuple(range(1 if per == "tensor/sample" else 2, len(latent.shape) + 1))
        self._header = 8 * within[0].size

    def quantised(self, latents: F32) -> tuple[F32, F32, NDArray[np.uint8]]:
        """Latents [k, *shape] to lo and hi [k, R, 1, ...] and codes uint8 [k, *shape]."""
        stack = np.clip(self.latent.check(latents), -LIMIT, LIMIT)
        stack += np.float32(0)  # -0 becomes 0: two zeros would write two payloads
        lo, hi = stack.min(self._axes, keepdims=True), stack.max(self._axes, keepdims=True)
        levels = np.float32(self.levels)
        narrow = self._narrow(lo, hi)
        # what is constant, as far as float32 can step through it, is one end of a range as wide as need be, towards zero
        width = np.maximum(np.abs(lo) * (4 * FINEST * levels), np.float32(1e-6))
        up = narrow & (lo <= 0)
        down = narrow & ~up
        lo, hi = np.where(down, lo - width, lo), np.where(up, lo + width, np.where(down, lo, hi))
        scaled = (stack - lo) / ((hi - lo) / levels)
        np.rint(scaled, out=scaled)
        np.clip(scaled, np.where(down, levels, np.float32(0)), np.where(up, np.float32(0), levels), out=scaled)
        return lo, hi, scaled.astype(np.uint8)

    def _narrow(self, lo: F32, hi: F32) -> NDArray[np.bool_]:
        """Where float32 cannot step through a range."""
        narrow: NDArray[np.bool_] = hi - lo < np.float32(self.levels) * np.maximum(np.maximum(-lo, hi) * FINEST, TINY)
        return narrow

    def values(self, lo: F32, hi: F32, codes: NDArray[np.uint8]) -> F32:
        """What arrives [k, *shape]; lo and hi broadcast to it."""
        values = codes.astype(np.float32)
        values *= (hi - lo) / np.float32(self.levels)
        values += lo
        np.copyto(values, hi, where=codes == self.levels)
        return values

    def write(self, lo: F32, hi: F32, codes: NDArray[np.uint8]) -> list[bytes]:
        k = len(codes)
        ranges = np.stack([lo, hi], axis=1).reshape(k, self._header // 4).astype("<f4")
        packed = pack(codes.reshape(k, self.latent.elements), self.bits)
        return [header.tobytes() + row.tobytes() for header, row in zip(ranges, packed, strict=True)]

    def read(self, payloads: Sequence[bytes | memoryview]) -> tuple[F32, F32, NDArray[np.uint8]]:
        """The inverse of `write`. Raises CodecError for a range that no sender of ours has."""
        k, size = len(payloads), self.max_payload_bytes
        for payload in payloads:
            if len(payload) != size:
                raise CodecError(
                    f"{self.name}: expected {size} bytes for shape {self.latent.shape}, got {len(payload)}: "
                    "sender and receiver hold different artefacts, or the payload was cut"
                )
        rows = np.frombuffer(b"".join(payloads), np.uint8).reshape(k, size)
        ranges = np.ascontiguousarray(rows[:, : self._header]).view("<f4").astype(np.float32, copy=False)
        lo, hi = ranges.reshape(k, 2, *self._ranges).swapaxes(0, 1)
        if not ((lo < hi) & (lo >= -LIMIT) & (hi <= LIMIT)).all():  # false for NaN too
            raise CodecError(f"{self.name}: expected ranges with -{LIMIT:g} <= lo < hi <= {LIMIT:g}: the payload was altered")
        if self._narrow(lo, hi).any():
            # values between which float32 cannot tell would be encoded again as others
            raise CodecError(f"{self.name}: expected ranges wide enough for {self.levels} steps: the payload was altered")
        codes = unpack(rows[:, self._header :], self.bits, self.latent.elements)
        return lo, hi, codes.reshape(k, *self.latent.shape)

    def encode(self, latents: F32) -> list[bytes]:
        return self.write(*self.quantised(latents))

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        return self.values(*self.read(payloads))

    def snap(self, latents: F32) -> F32:
        return self.values(*self.quantised(latents))

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        """The range moves with the values, so a latent of which one coordinate would end farther goes to the centre whole."""
        nearest = self.snap(latents)
        farther = (np.abs(nearest - centre) > np.abs(latents - centre)).any(axis=tuple(range(1, latents.ndim)), keepdims=True)
        return np.where(farther, centre, nearest)

    def as_sent(self, payload: bytes | memoryview) -> Codec:
        return AsSent(self, payload)

    @property
    def max_payload_bytes(self) -> int:
        return self._header - (-self.latent.elements * self.bits // 8)


class AsSent(Codec):
    """Writes with the range of one payload, so that the grid stands still; reads what SampledCodec reads."""

    def __init__(self, codec: SampledCodec, payload: bytes | memoryview) -> None:
        lo, hi, _ = codec.read([payload])
        self._codec = codec
        self.name, self.latent = codec.name, codec.latent
        self.lo, self.hi = lo[0], hi[0]
        self.step = (self.hi - self.lo) / np.float32(codec.levels)

    def _codes(self, latents: F32) -> NDArray[np.uint8]:
        stack = np.clip(self.latent.check(latents), self.lo, self.hi)
        scaled = np.rint((stack - self.lo) / self.step)
        codes: NDArray[np.uint8] = np.clip(scaled, 0, self._codec.levels).astype(np.uint8)
        return codes

    def encode(self, latents: F32) -> list[bytes]:
        codes = self._codes(latents)
        ranges = (len(codes), *self.lo.shape)
        return self._codec.write(np.broadcast_to(self.lo, ranges), np.broadcast_to(self.hi, ranges), codes)

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        return self._codec.decode(payloads)

    def snap(self, latents: F32) -> F32:
        return self._codec.values(self.lo, self.hi, self._codes(latents))

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        steps = np.trunc((latents - centre) / self.step)
        return self.snap(centre + steps * self.step)

    @property
    def max_payload_bytes(self) -> int:
        return self._codec.max_payload_bytes
