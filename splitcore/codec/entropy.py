"""`entropy`: latents rounded to a channel's step and coded with a factorised prior (`prior.py`), by rANS (`rans.py`).

The codec of entropic students: Matsubara et al., "Supervised Compression for Resource-Constrained Edge Computing Systems",
WACV 2022, section 3. A payload is a stream of `rans.py` over the latent in C order and then, int16 little-endian and in the
same order, the symbols that no table holds: each stands in the stream as its channel's escape. The coder's states must end
where they began and the bytes with them, so that few alterations pass; those that do give a valid latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import StringConstraints
from pydantic.dataclasses import dataclass

from splitcore.codec import rans
from splitcore.codec.base import STRICT, Codec
from splitcore.codec.prior import HIGHEST, LOWEST, TOTAL, Prior
from splitcore.errors import CodecError
from splitcore.latent import F32, MAX_ELEMENTS, LatentSpec

TOGETHER = 1 << 20
"""elements that are coded in one go: what bounds the memory of a long stack"""


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
        self._tables = rans.Tables.of(prior.cdf)
        self._offset = np.asarray(prior.offset).repeat(latent.elements // latent.channels)
        self._channel = np.arange(latent.channels, dtype=np.uint32).repeat(latent.elements // latent.channels)
        self._first = self._tables.first[self._channel]
        """[elements] where the tables of an element's channel begin"""
        self._escape = np.diff(self._tables.first)[self._channel] - 1
        """[elements] the escape's place in its table"""
        self._lanes = rans.lanes_of(latent.elements)

    def symbols(self, latents: F32) -> NDArray[np.int64]:
        """Latents [k, *shape] to symbols [k, elements], nearest first."""
        scaled = self._scaled(latents)
        return scaled.astype(np.int64).reshape(len(scaled), self.latent.elements)

    def _scaled(self, latents: F32) -> F32:
        with np.errstate(over="ignore"):  # a huge finite value becomes infinite here, and is clipped all the same
            scaled: F32 = self.latent.check(latents) / self.step
        np.rint(scaled, out=scaled)
        return np.clip(scaled, LOWEST, HIGHEST, out=scaled)

    def _intervals(self, symbols: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Symbols [k, elements] to the tables' intervals and whether those are escapes, likewise."""
        places = symbols - self._offset
        escaped = (places < 0) | (places >= self._escape)
        return np.where(escaped, self._escape, places) + self._first, escaped

    def bits(self, latents: F32) -> NDArray[np.float64]:
        """What the prior says that each of latents [k, *shape] costs, [k]: the coder's lower bound."""
        intervals, escaped = self._intervals(self.symbols(latents))
        cost = -np.log2(self._tables.frequency / TOTAL)
        bits: NDArray[np.float64] = cost[intervals].sum(axis=1) + 16 * escaped.sum(axis=1)
        return bits

    def encode(self, latents: F32) -> list[bytes]:
        symbols = self.symbols(latents)
        payloads: list[bytes] = []
        for part in self._parts(len(symbols)):
            intervals, escaped = self._intervals(symbols[part])
            streams = rans.encode(intervals, self._tables)
            escapes = (row[out].astype("<i2").tobytes() for row, out in zip(symbols[part], escaped, strict=True))
            payloads += [stream + rest for stream, rest in zip(streams, escapes, strict=True)]
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
        least = 4 * self._lanes
        for payload in payloads:
            if not least <= len(payload) <= self.max_payload_bytes or len(payload) % 2:
                raise CodecError(
                    f"{self.name}: expected an even number of bytes from {least} to {self.max_payload_bytes}, "
                    f"got {len(payload)}: the payload was cut or extended"
                )
        symbols = np.empty((len(payloads), self.latent.elements), np.float32)
        for part in self._parts(len(payloads)):
            symbols[part] = self._read(payloads[part])
        return symbols.reshape(len(payloads), *self.latent.shape) * self.step

    def _read(self, payloads: Sequence[bytes | memoryview]) -> NDArray[np.int64]:
        """The symbols [k, elements] of payloads whose lengths were looked at. Raises CodecError."""
        head = 4 * self._lanes
        states = np.stack([np.frombuffer(payload, "<u4", self._lanes).astype(np.uint32) for payload in payloads])
        counts = np.array([(len(payload) - head) // 2 for payload in payloads])
        words = np.zeros((len(payloads), int(counts.max()) + 1), np.uint16)
        for row, payload in enumerate(payloads):
            words[row, : counts[row]] = np.frombuffer(payload, "<u2", offset=head)
        intervals, read, ended = rans.decode(states, words, self._channel, self._tables)
        places = intervals - self._first
        escaped = places == self._escape
        whole = (states >= rans.ONE).all() and ended.all() and (read + escaped.sum(axis=1) == counts).all()
        if not whole:
            raise CodecError(f"{self.name}: the stream does not end where it should: it was altered, cut or extended")
        symbols: NDArray[np.int64] = places + self._offset
        for row in np.flatnonzero(escaped.any(axis=1)).tolist():
            out = escaped[row]
            symbols[row, out] = words[row, read[row] : counts[row]].view(np.int16)
        if not (self._intervals(symbols)[1] == escaped).all():
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
        # a word and an escape for every element
        return 4 * self._lanes + 4 * self.latent.elements
