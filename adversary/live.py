"""The adversary's live page: success so far, queries, frames held, the curve over queries, the books."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from adversary.metrics import Deeds
from splitcore.live.history import History, Sample, Since
from splitcore.live.view import Chart, Live, Series, Table, Tile, View, age, host, number, over_time, percent

if TYPE_CHECKING:
    from adversary.node import Adversary

POINTS = 200
"""of the curve at most"""


def live_adversary(adversary: Adversary, deeds: Deeds) -> Live:
    since = Since()

    def measure() -> Sample:
        since.look()
        books = adversary.counts
        request = deeds.added["request"]
        [hold] = since.quantiles("held", [deeds.held], (0.5,))
        [added] = since.quantiles("added", [request], (0.5,))
        return {
            "queries": since.rate("queries", books["query"]),
            "frames": since.rate("frames", books["clean"] + books["forwarded"]),
            "held": adversary.held,
            "success": len(deeds.succeeded_at) / deeds.ended if deeds.ended else None,
            "hold": None if hold is None else hold * 1e3,
            "added": None if added is None else added * 1e3,
        }

    history = History(measure)

    def look() -> View:
        books, behaviour = adversary.counts, adversary.behaviour
        kind = getattr(behaviour, "kind", "pass")
        attack: Any = getattr(behaviour, "attack", None)
        threat: Any = getattr(behaviour, "threat", None)
        doing = {"pass": "passing everything", "record": "listening"}.get(kind, f"attacking with {getattr(attack, 'kind', '')}")
        goal = (
            ""
            if threat is None
            else f" · {threat.norm} {threat.eps:g} {threat.eps_unit} at {threat.point}, budget {threat.budget:,}"
        )
        fell = len(deeds.succeeded_at)
        tone: Literal["", "bad"] = "bad" if fell else ""
        return View(
            node="adversary",
            title=deeds.run or "man in the middle",
            state=doing,
            well=kind != "attack",
            subtitle=f"upstream {adversary.relay.upstream}{goal}",
            tiles=[
                Tile("Success so far", percent(fell, deeds.ended), f"{fell:,} of {deeds.ended:,} sessions", tone),
                Tile("Queries", f"{books['query']:,}", f"{number(history.last('queries'))} a second"),
                Tile("Median queries", number(median(deeds.succeeded_at) if fell else None), "to a success"),
                Tile("Held now", f"{adversary.held:,}", f"{number(history.last('hold'), 'ms')} held, median"),
                Tile("Frames", f"{books['clean'] + books['forwarded']:,}", f"{deeds.held.count:,} were held"),
                Tile("Lost", f"{books['lost']:,}", f"requests; {adversary.relay.unaccounted:,} not in the books"),
            ],
            charts=[
                _curve(deeds),
                over_time(history, "Success", "share of the sessions", ("so far", "success", "vermillion"), top=1.0),
                over_time(history, "Traffic", "rows a second", ("queries", "queries", "purple"), ("frames", "frames", "blue")),
                over_time(history, "Frames held", "now", ("held", "held", "vermillion")),
                over_time(
                    history, "Delay of a frame", "ms, median", ("held, to its session's end", "hold", "vermillion"),
                    ("in the relay", "added", "grey"),
                ),
            ],
            tables=[
                Table(
                    "Sessions by end", ("end", "sessions"),
                    [(reason, count) for reason, count in deeds.sessions.most_common()], "no session has ended",
                ),
                Table(
                    "The books", ("what", "count"),
                    [
                        ("query rows", books["query"]), ("frames forwarded", books["forwarded"]),
                        ("frames passed", books["clean"]), ("requests answered", books["answered"]),
                        ("requests lost", books["lost"]), ("messages outside of the books", adversary.relay.unaccounted),
                    ],
                ),
                Table(
                    "Clients", ("client", "method", "messages in", "answers out", "for"),
                    [
                        (host(call.peer), call.name, call.read_messages, call.put_messages, age(call.began_ns))
                        for call in sorted(deeds.server.open, key=lambda call: call.began_ns)[:50]
                    ],
                    "no call is open",
                ),
            ],
        )  # fmt: skip

    return Live(history, look)


def _curve(deeds: Deeds) -> Chart:
    """Of the run's ended sessions, the share that had fallen within so many queries."""
    needed, n = deeds.succeeded_at, max(deeds.ended, 1)
    every = max(1, len(needed) // POINTS)
    steps = [
        (float(queries), (number + 1) / n)
        for number, queries in enumerate(needed)
        if (number + 1) % every == 0 or number + 1 == len(needed)
    ]
    x, y = [0.0, *(at for at, _ in steps)], [0.0, *(share for _, share in steps)]
    return Chart(
        "Success over queries", "steps", [Series("fell within so many", "vermillion", y)], "share of the sessions", x,
        "queries", top=1.0, note="of the sessions that have ended; the report counts frames, and says how sure that is",
    )  # fmt: skip
