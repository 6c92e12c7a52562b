"""What Prometheus reads. Names are Triton's (docs/user_guide/metrics.md) where one fits; units are in the names.

Plain integers on the event loop, made into metric families only when somebody scrapes: a frame costs no lock.
Counters are exposed as untyped: the client library would append `_total` to their names, and Triton's have none.
Buckets: those of gRFC A66 between 0.3 ms and 10 s, because Triton's own begin at 100 ms.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator

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

    def family(self, name: str, documentation: str, labels: dict[str, str]) -> HistogramMetricFamily:
        cumulative, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            cumulative += count
            buckets.append((bound, float(cumulative)))
        family = HistogramMetricFamily(name, documentation, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, self._sum)
        return family


class Metrics(Collector):
    """Counts of one model on this server. Written on the event loop, read on it too."""

    def __init__(self, model: str, version: str, pending: Callable[[], tuple[int, int]]) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model": model, "version": version}
        self._pending = pending
        self.success = self.rows = self.executions = 0
        self.failures: Counter[Reason] = Counter()
        self.open_streams = 0
        self._request_ns = self._queue_ns = self._input_ns = self._infer_ns = 0
        self._latency, self._batch = Histogram(SECONDS), Histogram(ROWS)
        self.registry.register(self)

    def refused(self, reason: Reason) -> None:
        """A request that never reached the queue."""
        self.failures[reason] += 1

    def done(self, done: Done) -> None:
        """A batch, with what was refused and dropped when it was taken."""
        self.failures["CANCELED"] += len(done.cancelled)
        self.executions += len(done.slices)
        self.rows += done.computed_rows
        self._input_ns += done.input_ns
        self._infer_ns += done.infer_ns
        for rows in done.slices:
            self._batch.add(rows)
        for job, outcome in done.outcomes:
            if isinstance(outcome, Refused):
                self.failures[outcome.reason] += 1
                continue
            self.success += 1
            total_ns = job.tail_done_ns - job.received_ns
            self._request_ns += total_ns
            self._queue_ns += job.dequeued_ns - job.received_ns
            self._latency.add(total_ns / 1e9)

    def collect(self) -> Iterator[Metric]:
        labels = self._labels

        def counter(name: str, documentation: str, value: float) -> UntypedMetricFamily:
            family = UntypedMetricFamily(name, documentation, labels=list(labels))
            family.add_metric(list(labels.values()), value)
            return family

        def gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
            family = GaugeMetricFamily(name, documentation, labels=list(labels))
            family.add_metric(list(labels.values()), value)
            return family

        yield counter("nv_inference_request_success", "Requests answered", self.success)
        failure = UntypedMetricFamily(
            "nv_inference_request_failure", "Requests refused or failed, by reason", labels=[*labels, "reason"]
        )
        for reason, count in self.failures.items():
            failure.add_metric([*labels.values(), reason], count)
        yield failure
        yield counter("nv_inference_count", "Rows computed", self.rows)
        yield counter("nv_inference_exec_count", "Calls of the tail, one a batch or slice", self.executions)
        yield counter("nv_inference_request_duration_us", "Received to computed, answered ones", self._request_ns / 1e3)
        yield counter("nv_inference_queue_duration_us", "Received to dequeued, answered ones", self._queue_ns / 1e3)
        yield counter("nv_inference_compute_input_duration_us", "Decoding, a batch once", self._input_ns / 1e3)
        yield counter("nv_inference_compute_infer_duration_us", "Logging and the tail, a batch once", self._infer_ns / 1e3)
        requests, rows = self._pending()
        yield gauge("nv_inference_pending_request_count", "Requests that wait in the queue", requests)
        yield gauge("latentbed_pending_rows", "Rows that wait in the queue", rows)
        yield gauge("latentbed_open_streams", "Streams that are open", self.open_streams)
        yield self._latency.family("latentbed_request_latency_seconds", "Received to computed, answered ones", labels)
        yield self._batch.family("latentbed_batch_rows", "Rows a call of the tail", labels)
