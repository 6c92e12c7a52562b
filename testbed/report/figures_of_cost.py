"""The figures of cost: where a frame's time went, how it is spread, and the bytes on the wire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from testbed.report.figures import NARROW_IN, WIDE_IN, dashes, inks
from testbed.report.format import milliseconds, number, size
from testbed.report.measure import Measured
from testbed.report.model import Report, Stages
from testbed.report.svg import STAND_IN, inline, style

# one family of colour for each place where a frame is: phone, link, edge
STAGE_INKS = {
    "client_queue": "client1",
    "head": "client2",
    "encode": "client3",
    "uplink": "link1",
    "server_queue": "edge1",
    "decode": "edge2",
    "tail": "edge3",
    "downlink": "link2",
}
STAGE_NAMES = {stage: stage.replace("_", " ") for stage in STAGE_INKS} | {"network": "up + downlink"}


def waterfall(report: Report, *, wide: bool) -> str:
    """Medians of the stages along time, one bar a pass; what the adversary adds by holding stands on a scale of its own."""
    rows: list[tuple[str, Stages]] = [("clean", report.latency_ms.clean)]
    rows += [(attack.name, attack.latency_held_ms or attack.latency_ms) for attack in report.attacks]
    rows = [(name, stages) for name, stages in rows if stages["total"].p50 is not None]
    if not rows:
        return ""
    with style():
        height = 0.42 * len(rows)
        figure = Figure(figsize=(WIDE_IN, height + 1.15) if wide else (NARROW_IN, 2 * height + 2.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1)) if wide else figure.subplots(2, 1, sharey=True)
        segments = _segments(rows)
        for y, (_, stages) in enumerate(rows):
            start = 0.0
            for stage, ink in segments:
                width = max(0.0, stages[stage].p50 or 0.0)
                left.barh(y, width, left=start, height=0.56, color=STAND_IN[ink], edgecolor=STAND_IN["paper"], linewidth=0.7)
                start += width
            _beside(left, start, y, milliseconds(start))
            hold = stages["hold"].p50 or 0.0
            right.barh(y, hold, height=0.56, color=STAND_IN["hold"])
            _beside(right, hold, y, milliseconds(hold) if hold else "no adversary", "text" if hold else "muted")
        for axes, title in ((left, "without the hold, ms (sum of the medians)"), (right, "held by the adversary, ms (median)")):
            axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
            axes.set_yticklabels([name for name, _ in rows], color=STAND_IN["text"], fontsize=9.5)
            axes.grid(axis="y", visible=False)
            axes.margins(x=0.22)
            axes.set_xlim(left=0)
            # numbers of up to five digits: more than these few would run into one another
            axes.xaxis.set_major_locator(MaxNLocator(4 if axes is right or not wide else 7))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
            axes.set_title(title)
        keys = [Patch(color=STAND_IN[ink], label=STAGE_NAMES[stage]) for stage, ink in segments]
        figure.legend(handles=keys, loc="outside lower center", ncols=8 if wide else 3, frameon=False, fontsize=9,
                      handlelength=1, columnspacing=1.2)  # fmt: skip
        words = "; ".join(f"{name}: total {milliseconds(stages['total'].p50)}" for name, stages in rows)
        return inline(figure, f"waterfall-{'wide' if wide else 'narrow'}", f"Median latency by stage. {words}")


def distribution(report: Report, passes: Sequence[Measured], *, wide: bool) -> str:
    """Share of frames answered within a time, with and without the adversary."""
    colour, line = inks(report.attacks), dashes(report.attacks)
    shown = [m for m in passes if m.of.info.kind == "attack"]
    shown = [*[m for m in passes if m.of.info.kind == "clean"][:1], *shown]
    with style():
        figure = Figure(figsize=(WIDE_IN if wide else NARROW_IN, 3.4 if wide else 3.9), layout="constrained")
        axes = figure.subplots()
        for m in shown:
            total = np.sort([f.total_ms for f in m.of.frames if f.answered and f.total_ms is not None])
            if not len(total):
                continue
            name, is_clean, n = m.of.info.name, m.of.info.kind == "clean", len(total)
            axes.step(total, 100 * np.arange(1, n + 1) / n, where="post", label=f"{name} (n = {n:,})",
                      color=STAND_IN["text"] if is_clean else colour[name], linewidth=2.6 if is_clean else 1.8,
                      linestyle="-" if is_clean else line[name])  # fmt: skip
        axes.set(xscale="log", ylim=(0, 102), xlabel="from scheduled arrival to answer, ms (log scale)")
        if np.isfinite(axes.dataLim.x0):
            # from a power of ten, so that the axis has a number at its start
            axes.set_xlim(10 ** np.floor(np.log10(axes.dataLim.x0)), 1.15 * axes.dataLim.x1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0f} %"))
        axes.set_title("answered frames")
        figure.legend(loc="outside right center" if wide else "outside lower center", ncols=1 if wide else 2, frameon=False,
                      fontsize=9)  # fmt: skip
        return inline(figure, f"distribution-{'wide' if wide else 'narrow'}", "Distribution of the total latency, by pass.")


def wire(report: Report, *, wide: bool) -> str:
    """Payload that goes up to the server for one frame: the frame itself, and with the queries asked for it."""
    colour, clean = inks(report.attacks), report.bytes_on_wire.clean
    rows = [("clean", clean, clean, STAND_IN["text"])] if clean else []
    for a in report.attacks:
        frame = a.bytes.forwarded_per_frame
        if frame:
            rows.append((a.name, frame, frame + a.bytes.queries_per_frame, colour[a.name]))
    if not rows:
        return ""
    with style():
        figure = Figure(figsize=(WIDE_IN if wide else NARROW_IN, 0.38 * len(rows) + 0.75), layout="constrained")
        axes = figure.subplots()
        for y, (_, frame, server, ink) in enumerate(rows):
            axes.plot([frame, server], [y, y], color=ink, linewidth=2.4)
            axes.plot(frame, y, "o", color=ink, markersize=7, markerfacecolor=STAND_IN["paper"], markeredgewidth=1.6)
            if server > frame:
                axes.plot(server, y, "o", color=ink, markersize=7)
            factor = size(server) + (f" (×{number(server / frame, 2)})" if server > 1.05 * frame else "")
            _beside(axes, server, y, factor, points=8)
        values = [value for row in rows for value in row[1:3] if value > 0]
        axes.set(xscale="log", xlim=(min(values) / 1.6, max(values) * (9 if wide else 40)), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows], color=STAND_IN["text"], fontsize=9.5)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size(x)))
        axes.minorticks_off()
        axes.set_title(
            "payload bytes per frame, up to the server (log scale): ○ the frame, ● with its queries"
            if wide
            else "payload per frame: ○ itself, ● with queries"
        )
        words = "; ".join(f"{name} {size(server)}" for name, _, server, _ in rows)
        return inline(figure, f"wire-{'wide' if wide else 'narrow'}", f"Payload bytes per frame. {words}")


def _beside(axes: Axes, x: float, y: float, text: str, ink: str = "text", points: float = 4) -> None:
    axes.annotate(text, (x, y), (points, 0), textcoords="offset points", va="center", fontsize=9, color=STAND_IN[ink])


def _segments(rows: Sequence[tuple[str, Stages]]) -> list[tuple[str, str]]:
    """The stages on the way but the hold; where any pass cannot tell up from down, their sum for both, in all passes."""
    hidden = any(stages[stage].p50 is None for _, stages in rows for stage in ("uplink", "downlink"))
    found = []
    for stage, ink in STAGE_INKS.items():
        if hidden and stage == "uplink":
            found.append(("network", ink))
        elif not (hidden and stage == "downlink"):
            found.append((stage, ink))
    return found
