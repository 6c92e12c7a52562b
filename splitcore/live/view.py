"""What a live page shows, as data: numbers in tiles, lines over time, bars, tables. The page draws it for any node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

from splitcore.live.history import EVERY_S, History
from splitcore.telemetry.clock import now_ns

Cell = str | float | int | None
Ink = Literal["blue", "vermillion", "green", "purple", "orange", "sky", "grey", "olive"]


@dataclass(frozen=True)
class Tile:
    """One number that matters."""

    what: str
    value: str
    note: str = ""
    tone: Literal["", "good", "bad"] = ""


@dataclass(frozen=True)
class Series:
    name: str
    ink: Ink
    y: Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """`lines` and `stack` over `x`; `bars` over `labels`; `steps`: a curve that rises at each x."""

    title: str
    kind: Literal["lines", "stack", "bars", "steps"]
    series: Sequence[Series]
    unit: str = ""
    x: Sequence[float] = ()
    x_unit: str = "s"
    labels: Sequence[str] = ()
    note: str = ""
    top: float | None = None
    """of the scale; None: what the values need"""


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    empty: str = "none"
    """what is said where there are no rows"""


@dataclass(frozen=True)
class View:
    """One look at a node."""

    node: str
    title: str
    state: str
    well: bool
    subtitle: str = ""
    tiles: Sequence[Tile] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Live:
    """A node's page: its history, and how to look at it."""

    history: History
    look: Callable[[], View] = field(repr=False)


def over_time(
    history: History, title: str, unit: str, *lines: tuple[str, str, Ink],
    kind: Literal["lines", "stack"] = "lines", note: str = "", top: float | None = None,
) -> Chart:  # fmt: skip
    """`lines`: (name in the legend, name in the history, ink)."""
    series = [Series(name, ink, history.of(key)) for name, key, ink in lines]
    n = max((len(one.y) for one in series), default=0)
    return Chart(title, kind, series, unit, [-(n - 1 - i) * EVERY_S for i in range(n)], note=note, top=top)


def number(value: float | None, unit: str = "") -> str:
    """For a person: three digits, thousands apart; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def host(peer: str) -> str:
    """gRPC's name for a peer as people write it: host:port."""
    return unquote(peer.removeprefix("ipv4:").removeprefix("ipv6:"))


def age(began_ns: int) -> str:
    """How long ago, in one unit."""
    seconds = (now_ns() - began_ns) / 1e9
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else number(seconds * 1e3, "ms")


def percent(count: float, of: float) -> str:
    return "–" if not of else f"{count / of:.1%}"
