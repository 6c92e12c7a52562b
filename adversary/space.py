"""The point of attack: where a candidate lives, what of it arrives, and how it gets onto the wire.

An attack searches in the space's own values: pixels at `input`, float latents at `latent`, decoded latents at `wire`. Every
candidate is encoded before it is sent, at every point, because the codec is between the adversary and the tail.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Literal

import numpy as np

from splitcore.codec import Codec
from splitcore.errors import ScenarioError
from splitcore.head import Head
from splitcore.latent import F32
from splitcore.threat import Scale


class Space(ABC):
    """One frame seen from one point of attack."""

    centre: F32
    """the clean point [*shape]"""
    lo: F32
    hi: F32
    """the box, broadcastable to a point; infinite where there is none"""
    scale: Scale
    codec: Codec
    template: bytes = b""
    """what a foreign endpoint's request carries besides the latent (splitcore.wire.endpoint); empty for ours"""
    coupled = False
    """one coordinate's change may move where others arrive, as in a block of JPEG"""

    @property
    def encoder(self) -> tuple[object, ...]:
        """Spaces with equal encoders snap and encode alike, so that candidates of many frames go through in one stack."""
        return (id(self.codec), self.template)

    @abstractmethod
    def encode(self, points: F32) -> list[bytes]:
        """Candidates [k, *shape], of this frame or of others with the same encoder, as payloads."""

    def snap(self, points: F32) -> F32:
        """Candidates [k, *shape], likewise, as they count: distances are measured on this."""
        return points

    def snap_towards(self, points: F32) -> F32:
        """As `snap`, but no coordinate ends farther from this frame's centre than it was."""
        return points

    def box(self, wanted: Literal["codec", "calibrated"] | tuple[float, float]) -> tuple[F32, F32]:
        """(lo, hi), broadcastable to a point: what a threat model's box leaves of this space."""
        if wanted == "codec":
            return self.lo, self.hi
        if wanted == "calibrated":
            spec = self.codec.latent
            lo, hi = spec.per_channel(spec.lo), spec.per_channel(spec.hi)
        else:
            lo, hi = np.full(1, wanted[0], np.float32), np.full(1, wanted[1], np.float32)
        if not (lo < hi).all():
            raise ScenarioError(f"expected a box whose lower bound is below its upper one, got {wanted}")
        return np.maximum(lo, self.lo), np.minimum(hi, self.hi)

    @property
    def grid(self) -> F32 | float:
        """The steps of the grid that candidates are snapped to, broadcastable to a point; 0 where there is none."""
        return 0.0

    @property
    def probe(self) -> float:
        """No probe smaller than this carries information: a quantiser's step, or what floats of the codec keep apart."""
        return max(self.scale.step, self._apart)

    @cached_property
    def _apart(self) -> float:
        return self.codec.spacing * float(np.abs(self.centre).max(initial=0))


class WireSpace(Space):
    """What a man in the middle has: the latent that the payload decodes to, and the codec's grid to move on."""

    def __init__(self, payload: bytes | memoryview, codec: Codec, std: float, *, template: bytes = b"") -> None:
        self.template = template
        codec = self.codec = codec.as_sent(payload)
        self.coupled = codec.coupled
        self.centre = codec.decode([payload])[0]
        self.lo, self.hi = codec.lo, codec.hi
        step = float(codec.step.max())
        self.scale = Scale(codec.latent.range, std, step, self.centre.size)

    @property
    def grid(self) -> F32:
        return self.codec.step

    def snap(self, points: F32) -> F32:
        return self.codec.snap(points)

    def snap_towards(self, points: F32) -> F32:
        return self.codec.snap_towards(points, self.centre)

    def encode(self, points: F32) -> list[bytes]:
        return self.codec.encode(points)


class LatentSpace(Space):
    """The literature's point: the float latent before the codec. Needs an insider on the phone."""

    def __init__(self, latent: F32, codec: Codec) -> None:
        self.codec = codec
        self.centre = latent
        self.lo, self.hi = np.full(1, -np.inf, np.float32), np.full(1, np.inf, np.float32)
        spec = codec.latent
        self.scale = Scale(spec.range, spec.std, float(codec.step.max()), latent.size)

    def encode(self, points: F32) -> list[bytes]:
        return self.codec.encode(points)


class InputSpace(Space):
    """The image in [0, 1] before the head: the papers' baseline. Needs an insider on the phone, and the head."""

    def __init__(self, image: F32, head: Head, codec: Codec) -> None:
        self.codec = codec
        self.head = head
        self.centre = image
        self.lo, self.hi = np.zeros(1, np.float32), np.ones(1, np.float32)
        # the codec's grid is not that of pixels: no probe is too small to matter behind a non-linear head
        self.scale = Scale(1.0, float(image.std()) or 1.0, 0.0, image.size)

    @property
    def encoder(self) -> tuple[object, ...]:
        return (id(self.codec), id(self.head))

    @property
    def probe(self) -> float:
        return 0.0

    def snap(self, points: F32) -> F32:
        return np.clip(points, self.lo, self.hi)

    def snap_towards(self, points: F32) -> F32:
        return np.clip(points, self.lo, self.hi)

    def box(self, wanted: Literal["codec", "calibrated"] | tuple[float, float]) -> tuple[F32, F32]:
        return self.lo, self.hi

    def encode(self, points: F32) -> list[bytes]:
        return self.codec.encode(self.head(points))
