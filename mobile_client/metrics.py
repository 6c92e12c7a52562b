"""What Prometheus reads of the phone: of all passes of this process, written where their journals are."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mobile_client.shot import Shot
from splitcore.telemetry.calls import Calls
from splitcore.telemetry.exposition import Histogram, counter, new_registry
from splitcore.telemetry.spans import Telemetry

STAGES = ("head", "encode", "edge and way")


class Counts(Collector):
    """Plain numbers on the event loop."""

    def __init__(self) -> None:
        self.sent = self.answered = self.errors = self.lost = self.late = self.labelled = self.correct = self.bytes_up = 0
        """sendings; frames with a label, and with an error; sendings lost; frames late; with a true label, and right"""
        self.latency = Histogram()
        self.stages = {stage: Histogram() for stage in STAGES}
        self.calls = Calls("client")

    @property
    def in_flight(self) -> int:
        """Frames that were sent and have no answer."""
        return self.sent - self.answered - self.errors - self.lost

    def left(self, shot: Shot) -> None:
        self.sent += 1
        self.bytes_up += shot.message_bytes

    def came_back(self, shot: Shot, predicted: int | None, error: str | None, total_s: float, *, late: bool) -> None:
        self.latency.add(total_s)
        self.late += late
        if error is not None:
            self.errors += 1
            return
        self.answered += 1
        if shot.label is not None:
            self.labelled += 1
            self.correct += predicted == shot.label
        head_s, encode_s = (shot.head_end_ns - shot.head_start_ns) / 1e9, (shot.encoded_ns - shot.head_end_ns) / 1e9
        for stage, seconds in zip(STAGES, (head_s, encode_s, total_s - head_s - encode_s), strict=True):
            self.stages[stage].add(seconds)

    def collect(self) -> Iterator[Metric]:
        frames = counter("latentbed_phone_frames_total", "Frames that ended, by how", ["end"])
        for end, count in (("answered", self.answered), ("error", self.errors)):
            frames.add_metric([end], count)
        yield frames
        numbers = {
            "sent": "Sendings of frames, retries too", "lost": "Sendings that got no answer",
            "late": "Frames past their deadline",
            "labelled": "Answered frames whose true label is known", "correct": "Of these, with the right label",
        }  # fmt: skip
        for name, documentation in numbers.items():
            family = counter(f"latentbed_phone_{name}_total", documentation)
            family.add_metric((), getattr(self, name))
            yield family
        sent = counter("latentbed_phone_request_bytes_total", "Bytes of request messages")
        sent.add_metric((), self.bytes_up)
        yield sent
        yield GaugeMetricFamily("latentbed_phone_in_flight", "Frames that were sent and have no answer", value=self.in_flight)
        latency = HistogramMetricFamily("latentbed_phone_latency_seconds", "Scheduled to answered", labels=())
        self.latency.add_to(latency, ())
        stages = HistogramMetricFamily("latentbed_phone_stage_seconds", "Of an answered frame, by stage", labels=["stage"])
        for stage, histogram in self.stages.items():
            histogram.add_to(stages, [stage])
        yield from (latency, stages)


def registry_of(counts: Counts, telemetry: Telemetry) -> CollectorRegistry:
    registry = new_registry()
    for collector in (counts, counts.calls, telemetry.tracer):
        if collector is not None:
            registry.register(collector)
    return registry
