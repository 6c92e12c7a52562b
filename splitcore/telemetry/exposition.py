"""What Prometheus reads of a node: plain numbers on the event loop, made into metric families only when somebody scrapes.

A frame costs no lock. Latency buckets are gRFC A66's between 10 us and 10 s, where a frame's life lies.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric, UntypedMetricFamily
from prometheus_client.registry import Collector

SECONDS = (
    0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.001, 0.002, 0.003, 0.005, 0.008, 0.013, 0.02, 0.03, 0.05, 0.08, 0.13, 0.25, 0.5,
    1, 2, 5, 10,
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_UNTYPED = re.compile(rb"^(# TYPE \S+) untyped$", re.MULTILINE)


class Histogram:
    """Counts by upper bound. One thread writes."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """by bucket, the last one above all bounds"""
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        cumulative, buckets = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            cumulative += count
            buckets.append((bound, float(cumulative)))
        family.add_metric(labels, buckets, self.sum)


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """As Prometheus' histogram_quantile: linear within the bucket; the highest bound for what lies above. None: no counts."""
    total = sum(counts)
    if not total:
        return None
    rank, below = q * total, 0
    for number, count in enumerate(counts):
        if below + count >= rank and count:
            if number == len(bounds):
                return float(bounds[-1])
            low = bounds[number - 1] if number else 0.0
            return float(low + (bounds[number] - low) * (rank - below) / count)
        below += count
    return float(bounds[-1])


def counter(name: str, documentation: str, labels: Sequence[str] = ()) -> UntypedMetricFamily:
    """A counter under exactly this name: the library's own would append `_total`, and Triton's and gRPC's names have theirs."""
    return UntypedMetricFamily(name, documentation, labels=labels)


def exposition(registry: CollectorRegistry) -> bytes:
    """Prometheus' text format. Whatever is untyped is one of our counters, and says so."""
    return _UNTYPED.sub(rb"\1 counter", generate_latest(registry))


class _Threads(Collector):
    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("process_threads", "Threads that Python knows", value=threading.active_count())


def new_registry() -> CollectorRegistry:
    """With the process itself: processor time, memory, descriptors (where there is /proc), threads."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Threads())
    return registry


def serve_metrics(app: FastAPI, registry: CollectorRegistry) -> None:
    """GET /metrics."""

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Prometheus' text format; docs/live.md has the names."""
        return PlainTextResponse(exposition(registry), media_type=CONTENT_TYPE_LATEST)
