"""What Prometheus reads of the edge. Names are Triton's (docs/user_guide/metrics.md) where one fits; units are in the names.

Plain integers on the event loop, made into metric families only when somebody scrapes: a frame costs no lock. As in
Triton, the durations are sums over requests, each request of a batch having taken what its batch took; the label `reason`
has Triton's four words, and `detail` says which of our reasons it was.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric, UntypedMetricFamily
from prometheus_client.registry import Collector

from edge_server.batch import Done
from edge_server.gpu import Gpus
from edge_server.queue import Job
from edge_server.refusal import Reason, Refused
from splitcore.telemetry.calls import Calls
from splitcore.telemetry.exposition import ROWS, Histogram, counter, new_registry

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
"""Triton's words: waiting, decoding, the tail, the answer on its way out"""


def tritons(reason: Reason) -> str:
    """The word that Triton has for a reason, which its dashboards look for."""
    if reason.startswith("REJECTED"):
        return "REJECTED"
    return reason if reason in ("CANCELED", "BACKEND") else "OTHER"


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
        self.request_ns = self.queue_ns = self.failed_ns = 0
        self.requests = Stages()
        """by request, as Triton's statistics count: each request of a batch takes the whole batch's time"""
        self.batches: dict[int, Stages] = {}
        """by rows of a call of the tail"""
        self.last_inference_ms = 0
        """wall clock, since 1970; 0: never"""
        self.output_ns = 0
        """computed to answered, of answers that have left"""
        self.detect_ns = self.rejected_rows = 0
        self.detected: Counter[str] = Counter()
        """rows, by the detector that detected them"""
        self.load_s = 0.0
        """how long the model took to be ready, the last time"""
        self.latency, self.batch = Histogram(), Histogram(ROWS)
        self.stages = {stage: Histogram() for stage in STAGES}

    def refused(self, reason: Reason) -> None:
        """A request that never reached the queue."""
        self.failures[reason] += 1

    def done(self, done: Done) -> None:
        """A batch, with what was refused and dropped when it was taken."""
        if done.cancelled:
            self.failures["CANCELED"] += len(done.cancelled)
        self.executions += len(done.slices)
        self.rows += done.computed_rows
        self.detect_ns += done.detect_ns
        self.rejected_rows += done.rejected_rows
        if done.detected:
            self.detected.update(done.detected)
        if done.slices:
            self.last_inference_ms = time.time_ns() // 1_000_000
        for rows in done.slices:
            self.batch.add(rows)
            # sizes up to max_batch_size only: what is kept is bounded
            size = self.batches.get(rows)
            if size is None:
                size = self.batches[rows] = Stages()
            size.add(done, rows / done.computed_rows)
        before = self.success
        for job, outcome in done.outcomes:
            if isinstance(outcome, Refused):
                self.failures[outcome.reason] += 1
                self.failed_ns += (job.tail_done_ns or job.dequeued_ns) - job.received_ns
                continue
            self.success += 1
            queue_ns = job.dequeued_ns - job.received_ns
            self.request_ns += job.tail_done_ns - job.received_ns
            self.queue_ns += queue_ns
            self.stages["queue"].add(queue_ns / 1e9)
        answered = self.success - before
        self.requests.add(done, count=answered)
        self.stages["compute_input"].add(done.input_ns / 1e9, answered)
        self.stages["compute_infer"].add(done.infer_ns / 1e9, answered)

    def replied(self, job: Job, now_ns: int) -> None:
        """An answer has left."""
        output_ns = now_ns - job.tail_done_ns
        self.output_ns += output_ns
        self.request_ns += output_ns
        self.stages["compute_output"].add(output_ns / 1e9)
        self.latency.add((now_ns - job.received_ns) / 1e9)


class Metrics(Collector):
    """Of the whole server: the counts of its models, and what belongs to none of them."""

    def __init__(self, models: Mapping[tuple[str, str], Counts], pending: Callable[[str, str], tuple[int, int]]) -> None:
        """`models`: by (name, version). `pending`: (requests, rows) that wait for one of them."""
        self.registry = new_registry()
        self.models, self._pending = models, pending
        self.open_streams = 0
        self.calls = Calls("server")
        for collector in (self.calls, Gpus()):
            self.registry.register(collector)
        self.registry.register(self)

    @property
    def executions(self) -> int:
        """Calls of all tails."""
        return sum(counts.executions for counts in self.models.values())

    @property
    def rows(self) -> int:
        """Rows computed, of all models."""
        return sum(counts.rows for counts in self.models.values())

    @property
    def failures(self) -> Counter[Reason]:
        """Of all models."""
        return sum((counts.failures for counts in self.models.values()), Counter())

    def collect(self) -> Iterator[Metric]:
        labels = ("model", "version")
        models = list(self.models.items())

        def summed(name: str, documentation: str, value: Callable[[Counts], float]) -> UntypedMetricFamily:
            family = counter(name, documentation, labels)
            for of, counts in models:
                family.add_metric(of, value(counts))
            return family

        yield summed("nv_inference_request_success", "Requests answered", lambda of: of.success)
        failure = counter("nv_inference_request_failure", "Requests refused or failed", [*labels, "reason", "detail"])
        for of, counts in models:
            for reason in get_args(Reason):
                # from the start, so that a rate sees the first one
                failure.add_metric([*of, tritons(reason), reason], counts.failures[reason])
        yield failure
        yield summed("nv_inference_count", "Rows computed", lambda of: of.rows)
        yield summed("nv_inference_exec_count", "Calls of the tail, one a batch or slice", lambda of: of.executions)
        yield summed("nv_inference_request_duration_us", "Received to answered", lambda of: of.request_ns / 1e3)
        yield summed("nv_inference_queue_duration_us", "Received to dequeued", lambda of: of.queue_ns / 1e3)
        yield summed("nv_inference_compute_input_duration_us", "Decoding", lambda of: of.requests.input_ns / 1e3)
        yield summed("nv_inference_compute_infer_duration_us", "Logging and the tail", lambda of: of.requests.infer_ns / 1e3)
        yield summed("nv_inference_compute_output_duration_us", "The answer on its way out", lambda of: of.output_ns / 1e3)
        yield summed("latentbed_detect_duration_us", "Detectors, a batch once", lambda of: of.detect_ns / 1e3)
        yield summed("latentbed_rejected_rows", "Rows that a detector rejected: not computed", lambda of: of.rejected_rows)
        detected = counter("latentbed_detected_rows", "Rows that a detector detected, flagged too", [*labels, "detector"])
        for of, counts in models:
            for detector, count in counts.detected.items():
                detected.add_metric([*of, detector], count)
        yield detected
        load = GaugeMetricFamily("nv_model_load_duration_secs", "How long the model took to be ready", labels=labels)
        for of, counts in models:
            load.add_metric(of, counts.load_s)
        yield load
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
        latency = HistogramMetricFamily("latentbed_request_latency_seconds", "Received to answered", labels=labels)
        stages = HistogramMetricFamily("latentbed_stage_seconds", "Of a request, by stage", labels=[*labels, "stage"])
        batch = HistogramMetricFamily("latentbed_batch_rows", "Rows a call of the tail", labels=labels)
        for of, counts in models:
            counts.latency.add_to(latency, of)
            counts.batch.add_to(batch, of)
            for stage, histogram in counts.stages.items():
                histogram.add_to(stages, [*of, stage])
        yield from (latency, stages, batch)
