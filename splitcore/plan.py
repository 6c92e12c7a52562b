"""Which cut for which link: the one whose predicted time for a frame is the least.

Neurosurgeon's rule (Kang et al., ASPLOS 2017, section 5.1: argmin over the cuts of TM_i + TU_i + TC_i, the time on the
phone, on the way up and at the server), with the codec's time and the link's round trip written out:

    t(cut, link) = head + encode + round trip + 8 bytes / rate + edge

An answer is small beside a latent, so its own bytes are counted with the round trip. Queueing is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CutProfile:
    """What a frame costs through one cut, wherever the link does not matter."""

    name: str
    """the artefact's"""
    head_ms: float
    encode_ms: float
    bytes_up: float
    """the whole request, as it goes up"""
    edge_ms: float
    """from its arrival at the edge to its scores"""


@dataclass(frozen=True, kw_only=True)
class LinkEstimate:
    """What a link does to a frame."""

    rate_up_kbps: float
    """1000 bits a second; infinity where the bytes cost nothing"""
    round_trip_ms: float
    """of a message without size"""


def predicted_ms(cut: CutProfile, link: LinkEstimate) -> float:
    """From the camera to the answer."""
    return cut.head_ms + cut.encode_ms + link.round_trip_ms + 8 * cut.bytes_up / link.rate_up_kbps + cut.edge_ms


def best(cuts: Iterable[CutProfile], link: LinkEstimate) -> CutProfile:
    """The first one of those that are equal. Raises ValueError where there is none."""
    return min(cuts, key=lambda cut: predicted_ms(cut, link))
