"""`entropy`: latents rounded to a channel's step and coded with a factorised prior (`prior.py`), by rANS (`rans.py`).

The codec of entropic students: Matsubara et al., "Supervised Compression for Resource-Constrained Edge Computing Systems",
WACV 2022, section 3. A payload is the latent in C order in the lanes of `lanes.py` and then, int16 little-endian and in the
same order, the symbols that no table holds: each stands in its stream as its channel's escape. The coder's states must end
where they began and the bytes with them, so that few alterations pass; those that do give a valid latent, the same one
whichever coder reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import StringConstraints
from pydantic.dataclasses import dataclass

from splitcore.codec.base import STRICT, Codec
from splitcore.codec.lanes import join, lanes_for, most, split
from splitcore.codec.prior import HIGHEST, LOWEST, TOTAL, Prior
from splitcore.codec.rans import TOGETHER, Rans
from splitcore.codec.rans_constriction import fastest
from splitcore.errors import CodecError
from splitcore.latent import F32, MAX_ELEMENTS, LatentSpec


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Entropy:
    """Integers coded at their probability; needs a latent with a prior."""

    kind: Literal["entropy"] = "entropy"
    prior: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")] | None = None
    """hash of the prior that it must be; None: whatever the latent has"""
    zstd: Literal[False] = False
    """there is nothing left to compress"""

    def plain(self, latent: LatentSpec) -> Codec:
        if latent.prior is None:
            raise CodecError("entropy: expected a latent with a prior, got one without: train with an entropy bottleneck")
        if self.prior not in (None, latent.prior.hash):
            raise CodecError(
                f"entropy: expected the prior {self.prior}, the latent has {latent.prior.hash}: "
                "sender and receiver hold different artefacts"
            )
        return EntropyCodec(latent, latent.prior)


class EntropyCodec(Codec):
    """Symbols int16 on the grid of `prior.step`, values k·step."""

    varies = True

    def __init__(self, latent: LatentSpec, prior: Prior) -> None:
        self.name = f"entropy/{prior.hash}"
        self.latent = latent
        self.step = latent.per_channel(prior.step)
        self.lo, self.hi = self.step * np.float32(LOWEST), self.step * np.float32(HIGHEST)
        channel = np.arange(latent.channels).repeat(latent.elements // latent.channels)
        self._coder = fastest(Rans(prior.cdf, channel))
        self._offset = np.asarray(prior.offset)[channel]
        self._escape = np.array([len(cdf) - 2 for cdf in prior.cdf])[channel]
        """[elements] the escape's place in its table"""
        cost = [-np.log2(np.diff(cdf) / TOTAL) for cdf in prior.cdf]
        self._cost = np.concatenate(cost)
        """what each entry of each table costs, in bits, the tables in a row"""
        self._first = np.cumsum([0, *map(len, cost)])[channel]

    def symbols(self, latents: F32) -> NDArray[np.int64]:
        """Latents [k, *shape] to symbols [k, elements], nearest first."""
        scaled = self._scaled(latents)
        return scaled.astype(np.int64).reshape(len(scaled), self.latent.elements)

    def _scaled(self, latents: F32) -> F32:
        with np.errstate(over="ignore"):  # a huge finite value becomes infinite here, and is clipped all the same
            scaled: F32 = self.latent.check(latents) / self.step
        np.rint(scaled, out=scaled)
        return np.clip(scaled, LOWEST, HIGHEST, out=scaled)

    def _places(self, symbols: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Symbols [k, elements] to places in their channels' tables and whether those are escapes, likewise."""
        places = symbols - self._offset
        escaped = (places < 0) | (places >= self._escape)
        return np.where(escaped, self._escape, places), escaped

    def bits(self, latents: F32) -> NDArray[np.float64]:
        """What the prior says that each of latents [k, *shape] costs, [k]: the coder's lower bound."""
        places, escaped = self._places(self.symbols(latents))
        bits: NDArray[np.float64] = self._bits(places) + 16 * escaped.sum(axis=1)
        return bits

    def _bits(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        bits: NDArray[np.float64] = self._cost[places + self._first].sum(axis=1)
        return bits

    def encode(self, latents: F32) -> list[bytes]:
        symbols = self.symbols(latents)
        payloads: list[bytes] = []
        for part in self._parts(len(symbols)):
            places, escaped = self._places(symbols[part])
            lanes = [lanes_for(self.latent.elements, int(bits) // 8) for bits in self._bits(places)]
            streams = self._coder.write(places, lanes)
            escapes = (row[out].astype("<i2").tobytes() for row, out in zip(symbols[part], escaped, strict=True))
            payloads += [join(each) + rest for each, rest in zip(streams, escapes, strict=True)]
        return payloads

    def _parts(self, k: int) -> list[slice]:
        rows = max(1, TOGETHER // self.latent.elements)
        return [slice(at, min(at + rows, k)) for at in range(0, k, rows)]

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        if len(payloads) * self.latent.elements > MAX_ELEMENTS:
            # a stream of certain symbols has no length, so the message does not bound what it expands to
            raise CodecError(
                f"{self.name}: expected at most {MAX_ELEMENTS // self.latent.elements} latents of shape "
                f"{self.latent.shape} at once, got {len(payloads)}: send them in several requests"
            )
        for payload in payloads:
            if len(payload) > self.max_payload_bytes:
                raise CodecError(f"{self.name}: expected at most {self.max_payload_bytes} bytes, got {len(payload)}")
        cut = [split(bytes(payload), self.latent.elements) for payload in payloads]
        symbols = np.empty((len(cut), self.latent.elements), np.float32)
        for part in self._parts(len(cut)):
            symbols[part] = self._read(cut[part])
        values: F32 = symbols.reshape(len(cut), *self.latent.shape) * self.step
        return values

    def _read(self, cut: Sequence[tuple[list[bytes], bytes]]) -> NDArray[np.int64]:
        """Streams, and what stands behind them, to symbols [k, elements]. Raises CodecError."""
        places, whole = self._coder.read([streams for streams, _ in cut])
        escaped = places == self._escape
        if not whole.all() or any(len(rest) != 2 * n for (_, rest), n in zip(cut, escaped.sum(axis=1), strict=True)):
            raise CodecError(f"{self.name}: the stream does not end where it should: it was altered, cut or extended")
        symbols: NDArray[np.int64] = places + self._offset
        _, where = escaped.nonzero()
        symbols[escaped] = outside = np.frombuffer(b"".join(rest for _, rest in cut), "<i2").astype(np.int64)
        outside -= self._offset[where]
        if ((outside >= 0) & (outside < self._escape[where])).any():
            raise CodecError(f"{self.name}: expected escapes for what no table holds, got one for less: it was altered")
        return symbols

    def snap(self, latents: F32) -> F32:
        scaled = self._scaled(latents)
        scaled += np.float32(0)  # -0 becomes 0, as it comes out of the stream
        scaled *= self.step
        return scaled

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        steps = np.trunc((latents - centre) / self.step)
        return self.snap(centre + steps * self.step)

    @property
    def max_payload_bytes(self) -> int:
        # a symbol and its escape are 16 bits each, and hardly more as the coder rounds; a lane is its length and its last state
        n = self.latent.elements
        return 2 + 10 * most(n) + 4 * n + n // 256
