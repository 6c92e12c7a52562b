"""Where a frame's time went: stages from the spans of all nodes, joined by (frame, attempt), on one clock.

Stages are differences of neighbouring timestamps, so that they add up to the total exactly. Only `uplink` and `downlink`
compare two nodes' clocks; `network`, their sum, does not (the offset cancels), and is given beside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.report.model import Clocks, Percentiles, Stages
from testbed.report.statistics import percentiles

ON_THE_WAY = ("client_queue", "head", "encode", "uplink", "hold", "server_queue", "decode", "tail", "downlink")
"""in the order of the frame's way; they add up to `total`"""
ONE_WAY = ("uplink", "downlink")
STAGES = (*ON_THE_WAY, "network", "total")

ONCE = ("scheduled", "head_start", "head_end", "encoded")
"""what the client does once for a frame, however often it sends it"""
CLIENT = (*ONCE, "sent", "answered")
EDGE = ("received", "dequeued", "decoded", "tail_done")
RELAY = ("relay_in", "relay_out")


@dataclass(frozen=True)
class NodeClock:
    """What to add to a node's clock to get the collector's, and how far that may be off."""

    offset_ns: int
    uncertainty_ns: int


class SpanIndex:
    """Timestamps by (frame, attempt), every node's on the collector's clock."""

    def __init__(self, records: Iterable[Mapping[str, Any]], clocks: Mapping[str, NodeClock]) -> None:
        self._times: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
        self._once: dict[str, dict[str, int]] = defaultdict(dict)
        self.node_of: dict[str, str] = {}
        """by timestamp: the node that takes it"""
        for record in records:
            if record.get("kind") != "span":
                continue
            node, frame = record["node"], record["frame"]
            offset = clocks[node].offset_ns if node in clocks else 0
            for name, t_ns in record["t"].items():
                self.node_of[name] = node
                self._times[frame, record["attempt"]][name] = t_ns + offset
                if name in ONCE:
                    self._once[frame][name] = t_ns + offset

    def interval_ns(self, frame: str, attempt: int, first: str, last: str) -> tuple[int, int] | None:
        """When two of a frame's timestamps were; None where one is missing."""
        t = self._times.get((frame, attempt), {})
        return (t[first], t[last]) if first in t and last in t else None

    def stages_ns(self, frame: str, attempt: int, *, relayed: bool) -> dict[str, int] | None:
        """The stages of one frame in ns; None where a node's span is missing."""
        t = {**self._once.get(frame, {}), **self._times.get((frame, attempt), {})}
        if any(name not in t for name in (*CLIENT, *EDGE, *(RELAY if relayed else ()))):
            return None
        hold = t["relay_out"] - t["relay_in"] if relayed else 0
        stages = {
            "client_queue": (t["head_start"] - t["scheduled"]) + (t["sent"] - t["encoded"]),
            "head": t["head_end"] - t["head_start"],
            "encode": t["encoded"] - t["head_end"],
            "uplink": t["received"] - t["sent"] - hold,
            "hold": hold,
            "server_queue": t["dequeued"] - t["received"],
            "decode": t["decoded"] - t["dequeued"],
            "tail": t["tail_done"] - t["decoded"],
            "downlink": t["answered"] - t["tail_done"],
        }
        return {**stages, "network": stages["uplink"] + stages["downlink"], "total": t["answered"] - t["scheduled"]}


def clocks_of(index: SpanIndex, clocks: Mapping[str, NodeClock]) -> Clocks:
    """How well client and edge know each other's time."""
    nodes = sorted({*index.node_of.values(), *clocks})
    ends = [clocks.get(index.node_of[name]) if name in index.node_of else None for name in ("sent", "received")]
    known = [clock for clock in ends if clock is not None]
    uncertain = sum(clock.uncertainty_ns for clock in known) / 1e6 if len(known) == len(ends) else None
    return Clocks(
        shared=bool(clocks) and all(node in clocks and clocks[node] == NodeClock(0, 0) for node in nodes),
        uncertainty_ms=uncertain,
        nodes={node: clocks[node].uncertainty_ns / 1e6 if node in clocks else None for node in nodes},
    )


def summary(frames: Iterable[Mapping[str, int]], clocks: Clocks) -> Stages:
    """Percentiles of every stage in ms, over frames with all of their spans."""
    columns: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for frame in frames:
        for stage in STAGES:
            columns[stage].append(frame[stage] / 1e6)
    return {stage: _shown(stage, percentiles(values), clocks) for stage, values in columns.items()}


def _shown(stage: str, figures: Percentiles, clocks: Clocks) -> Percentiles:
    if stage not in ONE_WAY or figures.p50 is None:
        return figures
    if clocks.uncertainty_ms is None:
        reason = "the clocks of client and edge were never compared"
    elif figures.p50 < clocks.uncertainty_ms:
        reason = f"smaller than the uncertainty of the clocks, {clocks.uncertainty_ms:.3g} ms"
    else:
        return figures
    return Percentiles(p50=None, p90=None, p99=None, n=figures.n, hidden=reason)
