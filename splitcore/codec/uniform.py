"""`uniform`: affine quantisation to 2..8 bits on a calibrated range, bit-packed.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
eq. 1, with the range [lo, hi] frozen at export: code q in 0..2^b - 1 stands for lo + q·s, s = (hi - lo)/(2^b - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitcore.codec.base import STRICT, Codec
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Uniform:
    """Equal steps between the calibrated bounds; what lies outside is clipped."""

    kind: Literal["uniform"] = "uniform"
    bits: Annotated[int, Field(ge=2, le=8)] = 8
    """bits an element, 2 to 8"""
    per: Literal["tensor", "channel"] = "channel"
    """one range for the whole latent, or one for each channel"""
    zstd: bool = False
    """each payload through Zstandard"""

    def plain(self, latent: LatentSpec) -> Codec:
        return UniformCodec(self, latent)


class UniformCodec(Codec):
    """Codes on the grid of `config`, packed without gaps: 8 codes of b bits fill b bytes, most significant first."""

    def __init__(self, config: Uniform, latent: LatentSpec) -> None:
        self.bits = config.bits
        self.name = f"uniform{config.bits}/{config.per}"
        self.latent = latent
        if config.per == "channel":
            self.lo, top = latent.per_channel(latent.lo), latent.per_channel(latent.hi)
        else:
            whole = (1,) * len(latent.shape)
            self.lo = np.full(whole, min(latent.lo), np.float32)
            top = np.full(whole, max(latent.hi), np.float32)
        self.levels = (1 << self.bits) - 1
        self.step = ((top - self.lo) / np.float32(self.levels)).astype(np.float32)
        self.hi = self._values(np.full(top.shape, self.levels, np.uint8))
        # finer than that, lo + q·s is rounded to its neighbours, and encoding again would wander
        finest = np.maximum(np.abs(self.lo), np.abs(top)) * np.float32(2**-20)
        if not (self.step >= np.maximum(finest, np.finfo(np.float32).tiny)).all():
            raise CodecError(
                f"{self.name}: expected ranges that float32 can cut into {self.levels} steps, got steps from "
                f"{self.step.min():.3g} at values up to {np.abs(top).max():.3g}: widen the nearly constant channels"
            )

    def codes(self, latents: F32) -> NDArray[np.uint8]:
        """Latents [k, *shape] to codes uint8 [k, *shape], nearest first."""
        stack = self.latent.check(latents)
        with np.errstate(over="ignore"):  # a huge finite value becomes infinite here, and is clipped all the same
            scaled = stack - self.lo
            scaled /= self.step
        np.rint(scaled, out=scaled)
        np.clip(scaled, 0, self.levels, out=scaled)
        codes: NDArray[np.uint8] = scaled.astype(np.uint8)
        return codes

    def _values(self, codes: NDArray[np.uint8]) -> F32:
        values = codes.astype(np.float32)
        values *= self.step
        values += self.lo
        return values

    def encode(self, latents: F32) -> list[bytes]:
        packed = pack(self.codes(latents).reshape(len(latents), self.latent.elements), self.bits)
        return [row.tobytes() for row in packed]

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        size = self.max_payload_bytes
        for payload in payloads:
            if len(payload) != size:
                raise CodecError(
                    f"{self.name}: expected {size} bytes for shape {self.latent.shape}, got {len(payload)}: "
                    "sender and receiver hold different artefacts, or the payload was cut"
                )
        packed = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), size)
        codes = unpack(packed, self.bits, self.latent.elements)
        return self._values(codes.reshape(len(payloads), *self.latent.shape))

    def snap(self, latents: F32) -> F32:
        return self._values(self.codes(latents))

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        steps = np.trunc((latents - centre) / self.step)
        return self.snap(centre + steps * self.step)

    @property
    def max_payload_bytes(self) -> int:
        return -(-self.latent.elements * self.bits // 8)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes uint8 [k, n] below 2^bits to bytes uint8 [k, ceil(n·bits/8)]; the last byte is filled with zero bits."""
    if bits == 8:
        return codes
    k, n = codes.shape
    if bits == 4:  # the same bytes as below, in three passes
        nibbles = codes if n % 2 == 0 else np.pad(codes, ((0, 0), (0, 1)))
        packed: NDArray[np.uint8] = nibbles[:, 0::2] << np.uint8(4) | nibbles[:, 1::2]
        return packed
    groups = -(-n // 8)
    padded = np.zeros((k, groups * 8), np.uint64)
    padded[:, :n] = codes
    shifts = np.arange(7, -1, -1, dtype=np.uint64) * np.uint64(bits)
    words = (padded.reshape(k, groups, 8) << shifts).sum(axis=2, dtype=np.uint64)
    as_bytes = words.astype(">u8").view(np.uint8).reshape(k, groups, 8)[:, :, 8 - bits :]
    return np.ascontiguousarray(as_bytes).reshape(k, groups * bits)[:, : -(-n * bits // 8)]


def unpack(packed: NDArray[np.uint8], bits: int, n: int) -> NDArray[np.uint8]:
    """The inverse of `pack`: bytes [k, ceil(n·bits/8)] to codes [k, n]. Raises CodecError for a set filling bit."""
    if bits == 8:
        return packed
    k = len(packed)
    if bits == 4:
        nibbles = np.empty((k, 2 * packed.shape[1]), np.uint8)
        np.right_shift(packed, 4, out=nibbles[:, 0::2])
        np.bitwise_and(packed, 15, out=nibbles[:, 1::2])
        return _whole(nibbles, n)
    groups = -(-n // 8)
    room = np.zeros((k, groups * bits), np.uint8)
    room[:, : packed.shape[1]] = packed
    words = np.zeros((k, groups, 8), np.uint8)
    words[:, :, 8 - bits :] = room.reshape(k, groups, bits)
    shifts = np.arange(7, -1, -1, dtype=np.uint64) * np.uint64(bits)
    codes = (words.view(">u8").astype(np.uint64) >> shifts) & np.uint64((1 << bits) - 1)
    return _whole(codes.astype(np.uint8).reshape(k, groups * 8), n)


def _whole(codes: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """The first n codes of each row; the filling after them is zero. Raises CodecError."""
    if codes[:, n:].any():
        raise CodecError("uniform: the bits after the last code must be zero: the payload was altered")
    return codes[:, :n]
