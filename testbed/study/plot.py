"""Success over eps, one panel an attack, one line a point of attack: a PNG beside the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from testbed.report.format import NORMS
from testbed.study.config import Study
from testbed.study.measure import Row
from testbed.study.tables import of_grid

COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart also by the colour-blind"""


def write(study: Study, rows: Sequence[Row], out: Path) -> Path | None:
    """`<name>.png` in the folder `out`; None where no grid has several eps."""
    swept = [(subject.name, row) for grid in study.grids if grid.is_sweep for subject in study.subjects
             for row in of_grid(study, grid, [row for row in rows if row["subject"] == subject.name])
             if "skipped" not in row]  # fmt: skip
    attacks = list(dict.fromkeys((row["attack"], row["norm"]) for _, row in swept))
    subjects = list(dict.fromkeys(name for name, _ in swept))
    if not attacks:
        return None
    figure = Figure(figsize=(3 * len(attacks) + 1, 2.6 * len(subjects) + 0.7), layout="constrained")
    axes = figure.subplots(len(subjects), len(attacks), squeeze=False, sharey=True)
    for line, subject in zip(axes, subjects, strict=True):
        for axis, (attack, norm) in zip(line, attacks, strict=True):
            axis.set_title(f"{attack} {NORMS[norm]}, {study.subject(subject).title or subject}", fontsize=8)
            for place, colour in zip(study.places, COLOURS * len(study.places), strict=False):
                mine = sorted(
                    (row for name, row in swept
                     if (name, row["attack"], row["norm"], row["place"]) == (subject, attack, norm, place.name)),
                    key=lambda row: float(row["eps"]),
                )  # fmt: skip
                if not mine:
                    continue
                eps = [row["eps"] for row in mine]
                value, low, high = ([100 * row["asr"][side] for row in mine] for side in ("value", "low", "high"))
                axis.plot(eps, value, "o-", color=colour, markersize=3, linewidth=1.2, label=place.name)
                axis.fill_between(eps, low, high, color=colour, alpha=0.12, linewidth=0)
            axis.set_xscale("log")
            ticks = sorted({row["eps"] for _, row in swept if row["norm"] == norm})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.set_ylim(-3, 103)
            axis.grid(alpha=0.3)
        line[0].set_ylabel("success, %")
    for axis in axes[-1]:
        axis.set_xlabel("eps, std")
    handles = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False)
    path = out / f"{study.name}.png"
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Software": None})
    return path
