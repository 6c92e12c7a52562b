"""Latency over the uplink's rate, a line a candidate: where one cut gives way to another. A PNG."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from splitcore.link import LinkProfile
from testbed.plan.model import LinkPlan, Plan
from testbed.plan.predict import predict
from testbed.study.plot import COLOURS

POINTS = 33
DRAWS = 61
DASHES = {"image": "--", "cut": "-", "phone": ":"}


def write(plan: Plan, path: Path) -> None:
    """One panel a link: its delay, jitter and loss, at every rate; its own rate is marked."""
    figure = Figure(figsize=(max(6.0, 4.6 * len(plan.links)), 4.6), layout="constrained")
    axes = figure.subplots(1, len(plan.links), squeeze=False, sharey=True)[0]
    for axis, over in zip(axes, plan.links, strict=True):
        rates = rates_around(over.link)
        sends = [number for number, candidate in enumerate(plan.profile.candidates) if candidate.kind != "phone"]
        lines = np.array([_line(plan, number, over, rates) for number in range(len(plan.profile.candidates))])
        for number, (candidate, p50) in enumerate(zip(plan.profile.candidates, lines, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(rates / 1000, p50, DASHES[candidate.kind], color=colour, linewidth=1.4, label=candidate.name)
            wins = np.where(lines.argmin(axis=0) == number, p50, np.nan)
            axis.plot(rates / 1000, wins, "o", color=colour, markersize=4)
            if candidate.kind != "phone":
                wins = np.where(lines[sends].argmin(axis=0) == sends.index(number), p50, np.nan)
                axis.plot(rates / 1000, wins, "o", color=colour, markersize=4, markerfacecolor="white")
        axis.axvline(over.link.rate_up_kbps / 1000, color="0.6", linewidth=0.8)
        axis.set_title(f"{over.name}: {over.link.delay_ms:g} ms each way", fontsize=9)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("uplink, Mbit/s")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("end to end, p50, ms")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=8)
    title = "dots: the fastest; rings: the fastest that sends something; grey: the link's own rate"
    figure.suptitle(f"{plan.profile.network}. {title}", fontsize=9)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def rates_around(link: LinkProfile) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Uplink rates in kbit/s, from 0.1 Mbit/s to 1 Gbit/s, and farther where the link's own is."""
    low, high = min(100.0, link.rate_up_kbps / 3), max(1e6, link.rate_up_kbps * 3)
    return np.logspace(math.log10(low), math.log10(high), POINTS)


def _line(plan: Plan, number: int, over: LinkPlan, rates: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    ratio = over.link.rate_down_kbps / over.link.rate_up_kbps
    return [
        predict(
            plan.profile.candidates[number],
            dataclasses.replace(over.link, rate_up_kbps=float(rate), rate_down_kbps=min(1e8, float(rate) * ratio)),
            draws=DRAWS,
        ).total_ms.p50
        for rate in rates
    ]
