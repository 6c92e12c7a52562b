"""The phone's live page: frames, accuracy so far, latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobile_client.metrics import STAGES, Counts
from splitcore.live.history import History, Sample, Since
from splitcore.live.view import Live, Table, Tile, View, age, milliseconds, number, over_time, percent

if TYPE_CHECKING:
    from mobile_client.control import Passes
    from mobile_client.phone import PhoneConfig


def live_phone(counts: Counts, passes: Passes, config: PhoneConfig) -> Live:
    since = Since()

    def measure() -> Sample:
        since.look()
        p50, p99 = since.quantiles("latency", [counts.latency], (0.5, 0.99))
        sample = {
            "frames": since.rate("frames", counts.answered + counts.errors),
            "accuracy": counts.correct / counts.labelled if counts.labelled else None,
            "recent": since.mean("correct", counts.correct, counts.labelled),
            "p50": p50, "p99": p99, "in flight": counts.in_flight, "lost": since.rate("lost", counts.lost),
            "kilobits": since.rate("bytes", counts.bytes_up) * 8 / 1e3,
        }  # fmt: skip
        for stage in STAGES:
            histogram = counts.stages[stage]
            sample[stage] = since.mean(stage, histogram.sum, histogram.count)
        return {name: _shown(name, value) for name, value in sample.items()}

    history = History(measure)

    def look() -> View:
        latest = passes.latest
        ended = counts.answered + counts.errors
        wrong = counts.labelled - counts.correct
        return View(
            node="mobile client",
            title=config.node,
            state="no pass yet" if latest is None else f"{latest.run}: {latest.state}, {latest.done:,} of {latest.count:,}",
            well=latest is None or latest.state != "failed",
            subtitle=f"head {config.setting} · to {config.target}",
            tiles=[
                Tile("Frames", f"{ended:,}", f"{number(history.last('frames'))} a second"),
                Tile("Accuracy so far", percent(counts.correct, counts.labelled), f"{wrong:,} of {counts.labelled:,} wrong"),
                Tile("Latency", _ms(history.last("p50")), f"p99 {_ms(history.last('p99'))}, of the last second"),
                Tile("In flight", f"{counts.in_flight:,}", f"{counts.late:,} came late"),
                Tile("Lost sendings", f"{counts.lost:,}", f"{counts.errors:,} errors", "bad" if counts.errors else ""),
                Tile("Sent", f"{counts.bytes_up / 1e6:,.2f} MB", f"{number(history.last('kilobits'))} kbit/s"),
            ],
            charts=[
                over_time(history, "Frames", "a second", ("answered", "frames", "blue"), ("lost", "lost", "vermillion")),
                over_time(
                    history, "Accuracy", "share of the frames", ("of each second", "recent", "sky"),
                    ("so far", "accuracy", "blue"), top=1.0,
                ),
                over_time(history, "Latency, scheduled to answered", "ms", ("p50", "p50", "blue"), ("p99", "p99", "orange")),
                over_time(
                    history, "Where the time goes", "ms, mean", ("head", STAGES[0], "sky"), ("encode", STAGES[1], "blue"),
                    ("way, relay and edge", STAGES[2], "grey"), kind="stack",
                ),
            ],
            tables=[
                Table(
                    "Streams", ("to", "sent", "answered", "for"),
                    [(call.peer, call.put_messages, call.read_messages, age(call.began_ns)) for call in counts.calls.open],
                    "no stream is open",
                )
            ],
        )  # fmt: skip

    return Live(history, look)


def _shown(name: str, value: float | None) -> float | None:
    """Times in ms."""
    return value * 1e3 if value is not None and name in ("p50", "p99", *STAGES) else value


def _ms(value: float | None) -> str:
    return milliseconds(None if value is None else value / 1e3)
