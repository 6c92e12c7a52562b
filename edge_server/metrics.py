"""What Prometheus reads. Names are Triton's (docs/user_guide/metrics.md) where one fits; units are in the names.

Plain integers on the event loop, made into metric families only when somebody scrapes: a frame costs no lock.
Counters are exposed as untyped: the client library would append `_total` to their names, and Triton's have none.
Buckets: those of gRFC A66 between 0.3 ms and 10 s, because Triton's own begin at 100 ms.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric, UntypedMetricFamily
from prometheus_client.registry import Collector

from edge_server.batch import Done
from edge_server.refusal import Reason, Refused

SECONDS = (
    0.0003,
    0.0006,
    0.001,
    0.002,
    0.003,
    0.005,
    0.008,
    0.013,
    0.02,
    0.03,
    0.05,
    0.08,
    0.13,
    0.25,
    0.5,
    1,
    2,
    5,
    10,
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Histogram:
    """Counts by upper bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        cumulative, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            cumulative += count
            buckets.append((bound, float(cumulative)))
        family.add_metric(labels, buckets, self._sum)


@dataclass(slots=True)
class Stages:
    """How often, and how long in sum, the three stages of computing took."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0

    def add(self, done: Done, share: float = 1.0, count: int = 1) -> None:
        self.count += count
        self.input_ns += int(done.input_ns * share) * count
        self.infer_ns += int(done.infer_ns * share) * count
        self.output_ns += int(done.output_ns * share) * count


class Counts:
    """Of one version of a model. Written on the event loop, read on it too."""

    def __init__(self) -> None:
        self.success = self.rows = self.executions = 0
        self.failures: Counter[Reason] = Counter()
        self.request_ns = self.queue_ns = self.input_ns = self.infer_ns = self.failed_ns = 0
        self.requests = Stages()
        """by request, as Triton's statistics count: each request of a batch takes the whole batch's time"""
        self.batches: dict[int, Stages] = {}
        """by rows of a call of the tail"""
        self.last_inference_ms = 0
        """wall clock, since 1970; 0: never"""
        self.latency, self.batch = Histogram(SECONDS), Histogram(ROWS)

    def refused(self, reason: Reason) -> None:
        """A request that never reached the queue."""
        self.failures[reason] += 1

    def done(self, done: Done) -> None:
        """A batch, with what was refused and dropped when it was taken."""
        self.failures["CANCELED"] += len(done.cancelled)
        self.executions += len(done.slices)
        self.rows += done.computed_rows
        self.input_ns += done.input_ns
        self.infer_ns += done.infer_ns
        if done.slices:
            self.last_inference_ms = time.time_ns() // 1_000_000
        for rows in done.slices:
            self.batch.add(rows)
            # sizes up to max_batch_size only: what is kept is bounded
            self.batches.setdefault(rows, Stages()).add(done, rows / done.computed_rows)
        before = self.success
        for job, outcome in done.outcomes:
            if isinstance(outcome, Refused):
                self.failures[outcome.reason] += 1
                self.failed_ns += (job.tail_done_ns or job.dequeued_ns) - job.received_ns
                continue
            self.success += 1
            total_ns = job.tail_done_ns - job.received_ns
            self.request_ns += total_ns
            self.queue_ns += job.dequeued_ns - job.received_ns
            self.latency.add(total_ns / 1e9)
        self.requests.add(done, count=self.success - before)


class Metrics(Collector):
    """Of the whole server: the counts of its models, and what belongs to none of them."""

    def __init__(self, models: Mapping[tuple[str, str], Counts], pending: Callable[[str, str], tuple[int, int]]) -> None:
        """`models`: by (name, version). `pending`: (requests, rows) that wait for one of them."""
        self.registry = CollectorRegistry()
        self._models, self._pending = models, pending
        self.open_streams = 0
        self.registry.register(self)

    @property
    def executions(self) -> int:
        """Calls of all tails."""
        return sum(counts.executions for counts in self._models.values())

    @property
    def rows(self) -> int:
        """Rows computed, of all models."""
        return sum(counts.rows for counts in self._models.values())

    @property
    def failures(self) -> Counter[Reason]:
        """Of all models."""
        return sum((counts.failures for counts in self._models.values()), Counter())

    def collect(self) -> Iterator[Metric]:
        labels = ("model", "version")
        models = list(self._models.items())

        def counter(name: str, documentation: str, value: Callable[[Counts], float]) -> UntypedMetricFamily:
            family = UntypedMetricFamily(name, documentation, labels=labels)
            for of, counts in models:
                family.add_metric(of, value(counts))
            return family

        yield counter("nv_inference_request_success", "Requests answered", lambda of: of.success)
        failure = UntypedMetricFamily(
            "nv_inference_request_failure", "Requests refused or failed, by reason", labels=[*labels, "reason"]
        )
        for of, counts in models:
            for reason, count in counts.failures.items():
                failure.add_metric([*of, reason], count)
        yield failure
        yield counter("nv_inference_count", "Rows computed", lambda of: of.rows)
        yield counter("nv_inference_exec_count", "Calls of the tail, one a batch or slice", lambda of: of.executions)
        yield counter("nv_inference_request_duration_us", "Received to computed, answered ones", lambda of: of.request_ns / 1e3)
        yield counter("nv_inference_queue_duration_us", "Received to dequeued, answered ones", lambda of: of.queue_ns / 1e3)
        yield counter("nv_inference_compute_input_duration_us", "Decoding, a batch once", lambda of: of.input_ns / 1e3)
        yield counter(
            "nv_inference_compute_infer_duration_us", "Logging and the tail, a batch once", lambda of: of.infer_ns / 1e3
        )
        requests = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests that wait in the model's queue", labels=labels
        )
        rows = GaugeMetricFamily("latentbed_pending_rows", "Rows that wait in the model's queue", labels=labels)
        for of, _ in models:
            waiting = self._pending(*of)
            requests.add_metric(of, waiting[0])
            rows.add_metric(of, waiting[1])
        yield from (requests, rows)
        yield GaugeMetricFamily("latentbed_open_streams", "Streams that are open", value=self.open_streams)
        latency = HistogramMetricFamily(
            "latentbed_request_latency_seconds", "Received to computed, answered ones", labels=labels
        )
        batch = HistogramMetricFamily("latentbed_batch_rows", "Rows a call of the tail", labels=labels)
        for of, counts in models:
            counts.latency.add_to(latency, of)
            counts.batch.add_to(batch, of)
        yield from (latency, batch)
