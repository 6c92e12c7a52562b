"""What a codec is: latents to bytes, bytes to latents, and `snap`, the latent that arrives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import ConfigDict

from splitcore.latent import F32, LatentSpec

STRICT = ConfigDict(extra="forbid")
"""a configuration with an unknown key is refused"""


class Codec(ABC):
    """A codec with its frozen parameters. Encoding what arrived gives the same latent: snap∘snap = snap, if it `settles`.

    That is said of what `encode` wrote. A payload by other hands decodes to a valid latent or is refused, and where its
    latent could not have come from `encode` (a range that nobody measured, a JPEG that is no fixed point), encoding it again
    may move it.
    """

    name: str
    """canonical name; it travels in every frame, and `splitcore.codec.fit` gives the codec back from it"""
    latent: LatentSpec
    lo: F32
    """smallest value that can arrive, broadcastable to a latent; -inf where there is none"""
    hi: F32
    """largest value that can arrive, likewise"""
    spacing: float = 0.0
    """distance between neighbouring floats that can arrive, as a fraction of their size; 0 where `step` says it, or nearly"""
    step: F32
    """distance between neighbouring values that can arrive, likewise; 0 where the grid is that of floats. Where each payload
    brings a grid of its own, what the calibrated ranges would make it: a scale, and `as_sent` has the grid"""
    coupled: bool = False
    """one coordinate's change may move where others arrive: what is put together of two snapped latents is not snapped"""
    settles: bool = True
    """encoding what arrived gives the same latent; where not, `as_sent` does so for what it snapped"""
    varies: bool = False
    """payloads are of different lengths, `max_payload_bytes` at most; else all have that length"""

    @abstractmethod
    def encode(self, latents: F32) -> list[bytes]:
        """Latents [k, *shape] to k payloads. Raises CodecError for a wrong shape, NaN or infinity."""

    @abstractmethod
    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        """k payloads to latents [k, *shape], finite, perhaps read-only. Raises CodecError for other bytes."""

    def decode_into(self, payloads: Sequence[bytes | memoryview], out: F32) -> None:
        """As `decode`, into `out` [k, *shape], contiguous: where a codec can, without a copy between. `out` is spoilt by bytes
        that are refused."""
        out[...] = self.decode(payloads)

    @abstractmethod
    def snap(self, latents: F32) -> F32:
        """decode(encode(latents)), [k, *shape], without the bytes; may be the argument itself."""

    @abstractmethod
    def snap_towards(self, latents: F32, centre: F32) -> F32:
        """As `snap`, but rounded so that no coordinate ends farther from `centre` [*shape], itself snapped, than it was."""

    def as_sent(self, payload: bytes | memoryview) -> Codec:
        """The codec that writes on the very grid of `payload`, for whoever changes a latent on its way: mostly this one."""
        return self

    @property
    @abstractmethod
    def max_payload_bytes(self) -> int:
        """No payload of this codec is longer."""
