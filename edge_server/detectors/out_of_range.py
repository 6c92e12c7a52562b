"""A latent that the head hardly gives: too many of its values are outside of the ranges that calibration saw.

The plainest test of whether an input is where the training data was; the manifest has the ranges, [lo, hi] of each channel. It
sees large perturbations of codecs that carry any float. A codec that quantises between lo and hi carries nothing outside, and
what stays inside is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edge_server.detectors.base import Action, Asked, Detector
from splitcore.latent import F32, LatentSpec


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OutOfRange:
    sees: ClassVar[str] = "latents with values outside of what calibration saw"

    kind: Literal["out_of_range"] = "out_of_range"
    action: Action = "reject"
    margin: Annotated[float, Field(ge=0, le=100)] = 0.0
    """how far outside counts, as a share of the channel's range"""
    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    """of a latent's values, from which on it is detected"""

    def for_model(self, latent: LatentSpec) -> Detector:
        return _Watch(self, latent)


class _Watch:
    def __init__(self, config: OutOfRange, latent: LatentSpec) -> None:
        lo, hi = latent.per_channel(latent.lo), latent.per_channel(latent.hi)
        self._low, self._high = lo - config.margin * (hi - lo), hi + config.margin * (hi - lo)
        self._share = config.share

    def forget(self) -> None:
        return

    def look(self, latents: F32, requests: Sequence[Asked]) -> dict[int, str]:
        outside = ((latents < self._low) | (latents > self._high)).reshape(len(latents), -1).mean(axis=1)
        return {
            int(row): f"{outside[row]:.1%} of its values are out of range" for row in np.flatnonzero(outside >= self._share)
        }
