"""What Prometheus and the live page read of the adversary: sessions, queries, what the relay adds."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from adversary.session import Outcome, Reason
from splitcore.telemetry.calls import Calls
from splitcore.telemetry.exposition import SECONDS, Histogram, counter, new_registry
from splitcore.telemetry.tracing import Tracer

QUERIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
HELD = (*SECONDS, 20, 60, 300)


class Deeds(Collector):
    """Of this process; the curve is of the latest run alone."""

    def __init__(self) -> None:
        self.sessions: Counter[Reason] = Counter()
        self.queries = 0
        self.run = ""
        self.ended = 0
        """sessions of the run"""
        self.succeeded_at: list[int] = []
        """of the run, in order: the number of the query that succeeded"""
        self.held, self.to_success = Histogram(HELD), Histogram(QUERIES)
        self.added = {"request": Histogram(), "reply": Histogram()}
        """what the relay adds to a message that it does not hold, and to every reply"""
        self.frames = 0
        """that went both ways"""
        self.server, self.client = Calls("server"), Calls("client")
        self.books: Callable[[], Mapping[str, int]] = dict
        """the ledgers' counts"""
        self.unaccounted: Callable[[], int] = int
        self.held_now: Callable[[], int] = int

    def begin(self, run: str) -> None:
        """Another run: another curve."""
        self.run, self.ended, self.succeeded_at = run, 0, []

    def told(self, outcome: Outcome) -> None:
        """A session's end, here and now."""
        self.sessions[outcome.reason] += 1
        self.queries += outcome.queries
        if outcome.held_ms is not None:
            self.held.add(outcome.held_ms / 1e3)
        if outcome.first_success is not None:
            self.to_success.add(outcome.first_success)
        self.ended_with(outcome)

    def ended_with(self, outcome: Outcome) -> None:
        """A session of the run, perhaps of an earlier process, in the curve."""
        if outcome.reason != "full":
            self.ended += 1
        if outcome.first_success is not None:
            insort(self.succeeded_at, outcome.first_success)

    def heard(self, times: Mapping[str, int]) -> None:
        """A frame went through."""
        self.frames += 1
        self.added["request"].add((times["relay_out"] - times["relay_in"]) / 1e9)
        self.added["reply"].add((times["reply_out"] - times["reply_in"]) / 1e9)

    def collect(self) -> Iterator[Metric]:
        books = self.books()
        by_label: dict[str, tuple[str, str, Mapping[Any, int], tuple[str, ...]]] = {
            "rows": ("Rows sent to the server, by kind", "kind", books, ("query", "forwarded", "clean")),
            "requests": ("Requests sent to the server, by end", "end", books, ("answered", "lost")),
            "sessions": ("Sessions that ended, by why", "end", self.sessions, get_args(Reason)),
        }
        for name, (documentation, label, counts, values) in by_label.items():
            family = counter(f"latentbed_adversary_{name}_total", documentation, [label])
            for value in values:
                family.add_metric([value], counts.get(value, 0))
            yield family
        totals = {
            "unaccounted": ("Messages that passed without a place in the books", self.unaccounted()),
            "session_queries": ("Queries of sessions that ended", self.queries),
            "frames": ("Frames that went through, with their answers", self.frames),
        }
        for name, (documentation, total) in totals.items():
            family = counter(f"latentbed_adversary_{name}_total", documentation)
            family.add_metric((), total)
            yield family
        yield GaugeMetricFamily("latentbed_adversary_held", "Frames held now", value=self.held_now())
        held = HistogramMetricFamily("latentbed_adversary_hold_seconds", "How long a frame was held", labels=())
        self.held.add_to(held, ())
        queries = HistogramMetricFamily("latentbed_adversary_queries_to_success", "Queries that a success took", labels=())
        self.to_success.add_to(queries, ())
        added = HistogramMetricFamily(
            "latentbed_relay_added_seconds", "From a message's arrival to its departure, holds too", labels=["direction"]
        )
        for direction, histogram in self.added.items():
            histogram.add_to(added, [direction])
        yield from (held, queries, added)


def registry_of(deeds: Deeds, tracer: Tracer | None) -> CollectorRegistry:
    registry = new_registry()
    for collector in (deeds, deeds.server, deeds.client, tracer):
        if collector is not None:
            registry.register(collector)
    return registry
