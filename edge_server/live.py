"""The edge's live page: latency by stage, throughput, queue, clients, batches, models, failures by reason, detections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from edge_server.metrics import STAGES, Metrics
from edge_server.models import Models
from splitcore.live.history import History, Sample, Since
from splitcore.live.view import Chart, Live, Series, Table, Tile, View, age, host, number, over_time
from splitcore.telemetry.exposition import ROWS

SHOWN = 50
"""calls in the table"""


def live_edge(metrics: Metrics, models: Models, pending: Callable[[], tuple[int, int]], state: Callable[[], str]) -> Live:
    """`pending`: (requests, rows) that wait. `state`: empty when it serves."""
    since = Since()

    def measure() -> Sample:
        since.look()
        counts = list(metrics.models.values())
        p50, p99 = since.quantiles("latency", [of.latency for of in counts], (0.5, 0.99))
        answered = sum(of.success for of in counts)
        grown = {
            "requests": since.rate("requests", answered),
            "rows": since.rate("rows", metrics.rows),
            "refused": since.rate("refused", sum(metrics.failures.values())),
            "batch": since.mean("batch", metrics.rows, metrics.executions),
            "p50": None if p50 is None else p50 * 1e3,
            "p99": None if p99 is None else p99 * 1e3,
            "waiting": pending()[1],
            "streams": metrics.open_streams,
        }
        for stage in STAGES:
            mean = since.mean(stage, sum(of.stages[stage].sum for of in counts), sum(of.stages[stage].count for of in counts))
            grown[stage] = None if mean is None else mean * 1e3
        return grown

    history = History(measure)

    def look() -> View:
        why = state()
        failures = metrics.failures
        calls = sorted(metrics.calls.open, key=lambda call: call.began_ns)
        peers = {call.peer.rpartition(":")[0] for call in calls}
        refused = sum(failures.values())
        return View(
            node="edge server",
            title=", ".join(dict.fromkeys(model.name for model in models)) or "no model",
            state=why or "serving",
            well=not why,
            subtitle=" · ".join(dict.fromkeys(model.tail.device for model in models)),
            tiles=[
                Tile("Throughput", number(history.last("rows")), "rows a second"),
                Tile("Latency", number(history.last("p50"), "ms"), f"p99 {number(history.last('p99'), 'ms')}, last second"),
                Tile("Batch", number(history.last("batch")), "rows a call of the tail"),
                Tile("Queue", f"{pending()[1]:,}", f"rows, of {pending()[0]:,} requests"),
                Tile("Streams", f"{metrics.open_streams:,}", f"of {len(peers):,} {'host' if len(peers) == 1 else 'hosts'}"),
                Tile("Refused", f"{refused:,}", "requests so far", "bad" if failures["BACKEND"] else ""),
            ],
            charts=[
                over_time(
                    history, "Throughput", "a second", ("rows", "rows", "blue"), ("requests", "requests", "sky"),
                    ("refused", "refused", "vermillion"),
                ),
                over_time(
                    history, "Where the time goes", "ms a request, mean", ("queue", "queue", "grey"),
                    ("decode", "compute_input", "sky"), ("tail", "compute_infer", "green"),
                    ("reply", "compute_output", "olive"), kind="stack",
                ),
                over_time(history, "Latency, received to answered", "ms", ("p50", "p50", "blue"), ("p99", "p99", "orange")),
                over_time(
                    history, "Queue and streams", "now", ("rows waiting", "waiting", "purple"), ("streams", "streams", "grey")
                ),
                _batches(metrics),
            ],
            tables=[
                Table(
                    "Models", ("model", "version", "device", "requests", "rows", "mean batch", "refused", "load, s"),
                    [
                        (
                            model.name, model.version, model.tail.device, model.counts.success, model.counts.rows,
                            model.counts.rows / model.counts.executions if model.counts.executions else None,
                            sum(model.counts.failures.values()), model.counts.load_s,
                        )
                        for model in models
                    ],
                ),
                Table(
                    "Refused or failed", ("reason", "requests"),
                    [(reason, count) for reason, count in failures.most_common() if count], "nothing was refused",
                ),
                *_detected(metrics, models),
                Table(
                    "Calls that are open", ("client", "method", "frames in", "answers out", "for"),
                    [
                        (host(call.peer), call.name, call.read_messages, call.put_messages, age(call.began_ns))
                        for call in calls[:SHOWN]
                    ],
                    "no call is open",
                ),
            ],
        )  # fmt: skip

    return Live(history, look)


def _detected(metrics: Metrics, models: Models) -> list[Table]:
    """Where there are detectors."""
    if all(model.computer.panel is None for model in models):
        return []
    detected = sum((of.detected for of in metrics.models.values()), Counter[str]())
    rejected = sum(of.rejected_rows for of in metrics.models.values())
    rows = [*detected.most_common(), ("in all rejected, so not computed", rejected)]
    return [Table("Detected", ("detector", "rows"), rows if detected else [], "nothing was detected")]


def _batches(metrics: Metrics) -> Chart:
    """Of all models, since the start; sizes that never came are left out at the end."""
    counts = [0] * (len(ROWS) + 1)
    for of in metrics.models.values():
        counts = [a + b for a, b in zip(counts, of.batch.counts, strict=True)]
    labels = [str(high) if high - low <= 1 else f"≤{high}" for low, high in zip((0, *ROWS), ROWS, strict=False)] + [
        f">{ROWS[-1]}"
    ]
    used = max((number for number, count in enumerate(counts) if count), default=3) + 1
    return Chart(
        "Batches by size",
        "bars",
        [Series("batches", "green", counts[:used])],
        "calls of the tail, by rows",
        labels=labels[:used],
    )
