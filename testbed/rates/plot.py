"""Top-1 over bytes, one line a curve: a PNG beside the tables."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from testbed.rates.config import Rates
from testbed.rates.measure import Row
from testbed.study.plot import COLOURS

MARKS = "os^DvP*X<>"


def write(rates: Rates, curves: dict[str, list[Row]], out: Path) -> Path:
    """`<name>.png` in the folder `out`."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axis = figure.subplots()
    for number, (title, rows) in enumerate(curves.items()):
        points = sorted(
            (row["bytes"]["mean"], *(100 * row["accuracy"][side] for side in ("value", "low", "high"))) for row in rows
        )
        size, value, low, high = zip(*points, strict=True)
        colour = COLOURS[number % len(COLOURS)]
        style = "-" if number < len(COLOURS) else "--"
        axis.plot(size, value, style, marker=MARKS[number % len(MARKS)], color=colour, markersize=4, linewidth=1.2, label=title)
        axis.fill_between(size, low, high, color=colour, alpha=0.1, linewidth=0)
    axis.set_xscale("log")
    ticks = [2**n for n in range(6, 22) if axis.get_xlim()[0] <= 2**n <= axis.get_xlim()[1]]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("bytes of a frame on the wire")
    axis.set_ylabel("top-1, %")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    path = out / f"{rates.name}.png"
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path
