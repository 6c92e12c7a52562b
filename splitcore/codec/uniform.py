"""`uniform`: affine quantisation to 1..8 bits, bit-packed, on a calibrated range or on each latent's own.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
eq. 1, with the range [lo, hi] frozen at export: code q in 0..2^b - 1 stands for lo + q·s, s = (hi - lo)/(2^b - 1). With one
bit that leaves lo and hi. Ranges that travel with each latent are in `sampled.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitcore.codec.base import STRICT, Codec
from splitcore.codec.packing import pack, unpack
from splitcore.codec.sampled import SampledCodec
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec

Per: TypeAlias = Literal["tensor", "channel", "tensor/sample", "channel/sample"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Uniform:
    """Equal steps between bounds; what lies outside of calibrated ones is clipped."""

    kind: Literal["uniform"] = "uniform"
    bits: Annotated[int, Field(ge=1, le=8)] = 8
    """bits an element, 1 to 8"""
    per: Per = "channel"
    """one range for the whole latent, or one for each channel; calibrated, or with `/sample` each latent's own"""
    zstd: bool = False
    """each payload through Zstandard"""

    def plain(self, latent: LatentSpec) -> Codec:
        if self.per in ("tensor/sample", "channel/sample"):
            return SampledCodec(self.bits, self.per, latent)
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
        self.hi = self.values(np.full(top.shape, self.levels, np.uint8))
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

    def values(self, codes: NDArray[np.uint8]) -> F32:
        """What codes [k, *shape] stand for, likewise."""
        values = np.empty(codes.shape, np.float32)
        self._values_into(codes, values)
        return values

    def _values_into(self, codes: NDArray[np.uint8], out: F32) -> None:
        # two passes and no array between them: every pass of a thread that serves lets the others have the interpreter
        np.multiply(codes, self.step, out=out)
        out += self.lo

    def encode(self, latents: F32) -> list[bytes]:
        packed = pack(self.codes(latents).reshape(len(latents), self.latent.elements), self.bits)
        return [row.tobytes() for row in packed]

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        return self.values(self._codes_in(payloads))

    def decode_into(self, payloads: Sequence[bytes | memoryview], out: F32) -> None:
        self._values_into(self._codes_in(payloads), out)

    def _codes_in(self, payloads: Sequence[bytes | memoryview]) -> NDArray[np.uint8]:
        """[k, *shape]. Raises CodecError."""
        size = self.max_payload_bytes
        for payload in payloads:
            if len(payload) != size:
                raise CodecError(
                    f"{self.name}: expected {size} bytes for shape {self.latent.shape}, got {len(payload)}: "
                    "sender and receiver hold different artefacts, or the payload was cut"
                )
        packed = np.frombuffer(b"".join(payloads), np.uint8).reshape(len(payloads), size)
        codes = unpack(packed, self.bits, self.latent.elements)
        return codes.reshape(len(payloads), *self.latent.shape)

    def snap(self, latents: F32) -> F32:
        return self.values(self.codes(latents))

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        steps = np.trunc((latents - centre) / self.step)
        return self.snap(centre + steps * self.step)

    @property
    def max_payload_bytes(self) -> int:
        return -(-self.latent.elements * self.bits // 8)
