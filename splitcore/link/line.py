"""What a link does to bytes: when a piece that enters one direction arrives. No sockets, no clock.

The model. One direction is a first-in-first-out line of rate R with a one-way delay D. A piece of n bytes that enters at
t leaves the line at free = max(t, free') + 8 n / R, where free' is when the piece before it left, and arrives at
free + D + J + L. J is uniform on [0, jitter]. L is what TCP makes of a loss: the application sees no hole, it sees a
delay of the lost segment and of everything behind it. Each of the ceil(n / 1448) segments is lost with probability p,
again and again; a round of retransmission costs a tail loss probe, 2 SRTT (RFC 8985, section 7.2) with SRTT the mean
round trip of an idle link, at least 10 ms. Nothing overtakes: arrival = max(arrival, arrival of the piece before).

Not in the model: TCP's own slow start and congestion control on that link, the link's share that retransmitted segments
take, and the time of the connection's handshake. All connections through one relay share the line, as all of a phone's
do. The numbers of PROFILES are ours: round figures of what such links commonly give, not measurements.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

SEGMENT_BYTES = 1448
"""payload of a TCP segment on a path with an MTU of 1500 and timestamps"""
MIN_PROBE_MS = 10.0
SPARE_BYTES = 64 << 10
MAX_HELD_BYTES = 16 << 20

LinkName: TypeAlias = Literal["wifi", "lte", "5g", "lan"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LinkProfile:
    """What a link does to the bytes of each direction."""

    rate_up_kbps: Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
    """from the phone, in 1000 bits a second"""
    rate_down_kbps: Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
    """to the phone, likewise"""
    delay_ms: Annotated[float, Field(ge=0, le=2_000)]
    """one way, without jitter"""
    jitter_ms: Annotated[float, Field(ge=0, le=2_000)] = 0.0
    """widest extra delay of a piece, one way; uniform from 0"""
    loss: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """probability that a segment is lost, each time it is sent"""

    @property
    def probe_ms(self) -> float:
        """What one round of retransmission costs."""
        return max(MIN_PROBE_MS, 4 * (self.delay_ms + self.jitter_ms / 2))


PROFILES: dict[LinkName, LinkProfile] = {
    "wifi": LinkProfile(rate_up_kbps=40_000, rate_down_kbps=80_000, delay_ms=2, jitter_ms=2, loss=0.001),
    "lte": LinkProfile(rate_up_kbps=10_000, rate_down_kbps=30_000, delay_ms=25, jitter_ms=8, loss=0.002),
    "5g": LinkProfile(rate_up_kbps=50_000, rate_down_kbps=200_000, delay_ms=8, jitter_ms=3, loss=0.0005),
    "lan": LinkProfile(rate_up_kbps=1_000_000, rate_down_kbps=1_000_000, delay_ms=0.2, jitter_ms=0.05),
}

Link: TypeAlias = LinkName | LinkProfile
"""as a scenario writes it: a name of PROFILES, or a mapping"""


def profile_of(link: Link) -> LinkProfile:
    return PROFILES[link] if isinstance(link, str) else link


class Line:
    """One direction. Takes times and returns times: it has no clock of its own."""

    def __init__(self, profile: LinkProfile, rate_kbps: float, rng: np.random.Generator) -> None:
        self._rng = rng
        self._free_s = self._last_s = float("-inf")
        self.become(profile, rate_kbps)

    def become(self, profile: LinkProfile, rate_kbps: float) -> None:
        """For pieces that enter from now on; what entered before keeps its arrival, and nothing overtakes it."""
        self._profile = profile
        self._bytes_per_s = rate_kbps * 1000 / 8
        latest_s = (profile.delay_ms + profile.jitter_ms + profile.probe_ms) / 1000
        self.holds_bytes = min(MAX_HELD_BYTES, SPARE_BYTES + int(self._bytes_per_s * latest_s))
        """bytes on their way at most: what fills the line, so that the bound itself never costs rate"""

    def arrival_s(self, now_s: float, size_bytes: int) -> float:
        """When a piece that enters now arrives. Pieces enter in the order of their times."""
        self._free_s = max(now_s, self._free_s) + size_bytes / self._bytes_per_s
        late_ms = self._profile.jitter_ms * self._rng.random() + self._profile.probe_ms * self._rounds(size_bytes)
        self._last_s = max(self._last_s, self._free_s + (self._profile.delay_ms + late_ms) / 1000)
        return self._last_s

    def _rounds(self, size_bytes: int) -> int:
        """Rounds of retransmission until every segment is through; P(any) = 1 - (1 - loss)^segments."""
        rounds, missing = 0, -(-size_bytes // SEGMENT_BYTES)
        while self._profile.loss and (missing := int(self._rng.binomial(missing, self._profile.loss))):
            rounds += 1
        return rounds
