"""Spans to an OpenTelemetry collector: OTLP over HTTP, from a thread of its own, out of a bounded queue.

What a collector does not take costs its spans, which are counted, and nothing else: no node waits for it. The exporter is
OpenTelemetry's own (extra `trace`); spans are made here, because their times were taken elsewhere, in monotonic ns.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.context import Context, new_context
from splitcore.telemetry.exposition import counter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

HIGH_WATER = 8192
"""spans that wait for the collector; more are dropped and counted"""
BATCH = 512
EVERY_S = 0.2
TIMEOUT_S = 2.0
"""of one batch, tries included"""
PATH = "/v1/traces"
Kind = Literal["INTERNAL", "SERVER", "CLIENT"]


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """Where spans go, and of how many frames."""

    endpoint: str
    """an OTLP/HTTP collector, http://host:4318"""
    rate: float = 0.0
    """share of the frames for which this node begins a trace; frames that come with a sampled context are traced anyway"""

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(f"expected an OTLP endpoint http://host:4318, got {self.endpoint!r}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"expected a trace rate of 0 to 1, got {self.rate}")

    @property
    def url(self) -> str:
        return self.endpoint if self.endpoint.endswith(PATH) else self.endpoint.rstrip("/") + PATH


def trace_config(endpoint: str | None, rate: float = 0.0) -> TraceConfig | None:
    """Of the command line; an empty endpoint is none. Raises ValueError."""
    return TraceConfig(endpoint=endpoint, rate=rate) if endpoint else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span; times are of this node's monotonic clock."""

    name: str
    at: Context
    parent: Context | None = None
    start_ns: int
    end_ns: int
    kind: Kind = "INTERNAL"
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    events: tuple[tuple[str, int], ...] = ()
    links: tuple[Context, ...] = ()
    error: str = ""


def _wall_clock_ns() -> int:
    """What to add to the monotonic clock to get the wall's: of a few looks the one that was least interrupted."""
    looks = []
    for _ in range(7):
        before = now_ns()
        wall = time.time_ns()
        after = now_ns()
        looks.append((after - before, wall - (before + after) // 2))
    return min(looks)[1]


class Tracer(Collector):
    """A node's way to the collector. `record` may be called from any thread, and never waits. Raises ValueError at once
    where the extra `trace` is not installed."""

    def __init__(self, node: str, config: TraceConfig) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise ValueError(f"--trace-endpoint needs the extra `trace`: pip install 'latentbed[trace]' ({error})") from error
        self.config = config
        self.exported = self.dropped = 0
        self._node = node
        self._waiting: deque[Span] = deque()
        self._closing = threading.Event()
        # what the exporter says of a collector that is not there, it says for every batch: we count instead
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter(config.url, timeout=TIMEOUT_S)
        self._wall_ns = _wall_clock_ns()
        self._thread = threading.Thread(target=self._serve, name="trace-export", daemon=True)
        self._thread.start()

    def begin(self) -> Context | None:
        """A new trace, for the share of frames that the configuration says."""
        rate = self.config.rate
        return new_context() if rate and (rate >= 1 or random.random() < rate) else None

    def record(self, *spans: Span) -> None:
        if len(self._waiting) + len(spans) > HIGH_WATER:
            self.dropped += len(spans)
        else:
            self._waiting.extend(spans)

    def collect(self) -> Iterator[Metric]:
        for name, count in (("exported", self.exported), ("dropped", self.dropped)):
            family = counter(f"latentbed_trace_spans_{name}_total", f"Spans {name}")
            family.add_metric((), count)
            yield family

    def close(self) -> None:
        """Waits for one batch at most; what is left then is dropped."""
        self._closing.set()
        self._thread.join(TIMEOUT_S + 1.0)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        self.dropped += len(self._waiting)

    def _serve(self) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import SpanExportResult

        resource = Resource({"service.name": f"latentbed.{self._node}", "service.namespace": "latentbed"})
        ending = False
        while not ending:
            ending = self._closing.wait(EVERY_S)
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                if self._exporter.export([self._made(span, resource) for span in batch]) is SpanExportResult.SUCCESS:
                    self.exported += len(batch)
                else:
                    self.dropped += len(batch)
                    if self._closing.is_set():
                        return

    def _made(self, span: Span, resource: Any) -> ReadableSpan:
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
        from opentelemetry.trace.status import Status, StatusCode

        def place(context: Context, *, remote: bool = False) -> SpanContext:
            return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), remote, TraceFlags(1))

        return ReadableSpan(
            name=span.name,
            context=place(span.at),
            parent=None if span.parent is None else place(span.parent, remote=span.kind == "SERVER"),
            resource=resource,
            attributes=dict(span.attributes),
            events=[Event(name, timestamp=at_ns + self._wall_ns) for name, at_ns in span.events],
            links=[Link(place(context, remote=True)) for context in span.links],
            kind=SpanKind[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.start_ns + self._wall_ns,
            end_time=span.end_ns + self._wall_ns,
            instrumentation_scope=InstrumentationScope("latentbed"),
        )
