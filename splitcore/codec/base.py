"""What a codec is: latents to bytes, bytes to latents, and `snap`, the latent that arrives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import ConfigDict

from splitcore.latent import F32, LatentSpec

STRICT = ConfigDict(extra="forbid")
"""a configuration with an unknown key is refused"""


class Codec(ABC):
    """A codec with its frozen parameters. Encoding what was decoded gives the same latent: snap∘snap = snap."""

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
    """distance between neighbouring values that can arrive, likewise; 0 where the grid is that of floats"""

    @abstractmethod
    def encode(self, latents: F32) -> list[bytes]:
        """Latents [k, *shape] to k payloads. Raises CodecError for a wrong shape, NaN or infinity."""

    @abstractmethod
    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        """k payloads to latents [k, *shape], finite, perhaps read-only. Raises CodecError for other bytes."""

    @abstractmethod
    def snap(self, latents: F32) -> F32:
        """decode(encode(latents)), [k, *shape], without the bytes; may be the argument itself."""

    @abstractmethod
    def snap_towards(self, latents: F32, centre: F32) -> F32:
        """As `snap`, but rounded so that no coordinate ends farther from `centre` [*shape], itself snapped, than it was."""

    @property
    @abstractmethod
    def max_payload_bytes(self) -> int:
        """No payload of this codec is longer."""
