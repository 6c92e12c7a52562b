"""End-to-end latency over a link that was not there when the candidate was measured. No I/O.

Kang et al., "Neurosurgeon: Collaborative Intelligence Between the Cloud and Mobile Edge", ASPLOS 2017, chooses

    argmin_c  head(c) + enc(c) + RTT + 8·bytes(c)/rate + dec(c) + tail(c)

and estimates the terms layer by layer. Here everything but the link is one measured time, the whole way of a frame through
phone and edge on one machine, and the link is the model that shapes it (`splitcore.link.line`): RTT and 8·bytes/rate, and
jitter, loss and order besides. Total = nodes + up + down, by draws of each, so that p90 and p99 are those of the sum.

Throughput is another matter: frames that follow one another fill phone, uplink, edge and downlink at once, so the slowest of
these says how many come through: 1 / max(head + enc, 8·up/rate, dec + tail, 8·down/rate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import ScenarioError
from splitcore.link import Line, LinkProfile
from splitcore.link.relay import PIECE_BYTES
from testbed.plan.model import Candidate, LinkPlan, Place, Prediction, Profile, Spread

DRAWS = 2000
QUANTILES = 41
"""kept of a measured total"""
GRPC_PREFIX_BYTES, FRAME_HEADER_BYTES, FRAME_BYTES = 5, 9, 1 << 14
"""a message's length before it (gRPC over HTTP/2), a DATA frame's header, and the largest frame (RFC 9113, section 6.5.2)"""
APART_S = 1e5
"""between two draws, so that none waits for another"""

Times = NDArray[np.float64]


def framed_bytes(message_bytes: float) -> float:
    """What a message is on its connection."""
    data = message_bytes + GRPC_PREFIX_BYTES
    return data + FRAME_HEADER_BYTES * math.ceil(data / FRAME_BYTES)


def crossing_ms(link: LinkProfile, rate_kbps: float, size_bytes: float, rng: np.random.Generator, draws: int) -> Times:
    """[draws]: from when a message enters an idle direction of the link until its last byte leaves."""
    line, size = Line(link, rate_kbps, rng), max(1, round(size_bytes))
    times = np.empty(draws)
    for draw in range(draws):
        start_s = arrival_s = draw * APART_S
        for at in range(0, size, PIECE_BYTES):
            arrival_s = line.arrival_s(start_s, min(PIECE_BYTES, size - at))
        times[draw] = 1000 * (arrival_s - start_s)
    return times


def quantiles_of(times_ms: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.quantile(np.asarray(times_ms, np.float64), np.linspace(0, 1, QUANTILES)))


def spread_of(times_ms: Sequence[float] | Times) -> Spread:
    p50, p90, p99 = (float(value) for value in np.percentile(np.asarray(times_ms, np.float64), (50, 90, 99)))
    return Spread(p50=p50, p90=p90, p99=p99)


def predict(candidate: Candidate, link: LinkProfile, *, seed: int = 0, draws: int = DRAWS) -> Prediction:
    """What a frame of this candidate takes over the link, one in flight; and how many a second when they are many."""
    rng = np.random.default_rng([seed, round(candidate.up_bytes)])
    known = np.linspace(0, 1, len(candidate.total_ms))
    here = np.interp(rng.random(draws), known, candidate.total_ms)
    up = down = np.zeros(draws)
    if candidate.kind != "phone":
        up = crossing_ms(link, link.rate_up_kbps, candidate.up_bytes, rng, draws)
        down = crossing_ms(link, link.rate_down_kbps, candidate.down_bytes, rng, draws)
    busy = busy_ms(candidate, link)
    slowest = max(busy, key=lambda place: busy[place])
    return Prediction(
        candidate=candidate.name, total_ms=spread_of(here + up + down), up_ms=float(np.median(up)),
        down_ms=float(np.median(down)), frames_per_s=1000 / busy[slowest], slowest=slowest,
    )  # fmt: skip


def busy_ms(candidate: Candidate, link: LinkProfile) -> dict[Place, float]:
    """What each place has to do for a frame."""
    stages = candidate.stages_ms
    return {
        "phone": stages.head.p50 + stages.encode.p50,
        "uplink": 8 * candidate.up_bytes / link.rate_up_kbps,
        "edge": stages.decode.p50 + stages.tail.p50,
        "downlink": 8 * candidate.down_bytes / link.rate_down_kbps,
    }


def with_edge(profile: Profile, edge: Profile) -> Profile:
    """The phone of one profile with the edge of another, which was measured on the edge's machine. Raises ScenarioError.

    What is not head, codec or tail stays the phone's machine's: of gRPC and threads each machine has its half.
    """
    theirs = {candidate.name: candidate for candidate in edge.candidates}
    if [one.name for one in profile.candidates] != [one.name for one in edge.candidates]:
        raise ScenarioError(
            f"expected the same candidates in both profiles, got {', '.join(one.name for one in profile.candidates)} and "
            f"{', '.join(theirs)}: make both with the same arguments"
        )
    note = f"Decoding and tail as on another machine: {edge.device.cpu}, {edge.device.edge_device}."
    swapped = tuple(_with_tail_of(candidate, theirs[candidate.name]) for candidate in profile.candidates)
    return profile.model_copy(update={"candidates": swapped, "notes": (*profile.notes, note)})


def _with_tail_of(mine: Candidate, theirs: Candidate) -> Candidate:
    stages = mine.stages_ms.model_copy(update={"decode": theirs.stages_ms.decode, "tail": theirs.stages_ms.tail})
    sooner = sum(getattr(mine.stages_ms, name).p50 - getattr(stages, name).p50 for name in ("decode", "tail"))
    return mine.model_copy(update={"stages_ms": stages, "total_ms": tuple(max(0.0, ms - sooner) for ms in mine.total_ms)})


def plan_link(
    candidates: Sequence[Candidate], name: str, link: LinkProfile, *, measured: bool = False, draws: int = DRAWS
) -> LinkPlan:
    """All candidates over a link, and the fastest of them."""
    predictions = tuple(predict(candidate, link, draws=draws) for candidate in candidates)
    sent = {candidate.name for candidate in candidates if candidate.folder is not None}
    ranked = [one.candidate for one in sorted(predictions, key=lambda one: one.total_ms.p50)]
    return LinkPlan(
        name=name, link=link, source="measured" if measured else "given", best=ranked[0],
        best_sent=next(name for name in ranked if name in sent), predictions=predictions,
    )  # fmt: skip
