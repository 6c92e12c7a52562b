"""The figures of the hold: what more time is worth to the adversary, and what it costs the client."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from testbed.report.figures import NARROW_IN, WIDE_IN, apart, dashes, inks
from testbed.report.format import milliseconds, number, share
from testbed.report.model import Attack, Delay, Report
from testbed.report.svg import STAND_IN, inline, style

MARKERS = ("o", "D", "s", "^", "v")


def holds(report: Report, *, wide: bool) -> str:
    """Success over hold time: derived curves, and what was measured at each deadline."""
    colour, line = inks(report.attacks), dashes(report.attacks)
    by_name = {attack.name: attack for attack in report.attacks}
    shown = [(family, by_name[family.curve_of]) for family in report.hold if by_name[family.curve_of].hold_curve]
    deadlines = [p.hold_deadline_ms for family, _ in shown for p in family.points if p.hold_deadline_ms is not None]
    times = [ms for _, attack in shown for ms, _ in attack.hold_curve if ms > 0] + deadlines
    if not times:
        return ""  # nothing fell, and nobody said by when it should
    with style():
        figure = Figure(figsize=(WIDE_IN if wide else NARROW_IN, 3.6), layout="constrained")
        axes = figure.subplots()
        start, end = min(times) / 1.3, max(times) * (1.0 if not deadlines or max(times) > 1.05 * max(deadlines) else 1.06)
        labels: list[tuple[float, str, str]] = []
        for number_of, (family, attack) in enumerate(shown):
            ink = colour[attack.name]
            x = [max(start, ms) for ms, _ in attack.hold_curve]
            y = [100 * value for _, value in attack.hold_curve]
            axes.step([*x, end], [*y, y[-1]], where="post", color=ink, linestyle=line[attack.name], linewidth=2,
                      label=attack.name)  # fmt: skip
            labels.append((y[-1], attack.name, ink))
            for point in family.points:
                rate = point.asr_held
                if point.hold_deadline_ms is None or rate.value is None or rate.low is None or rate.high is None:
                    continue
                at = point.hold_deadline_ms
                axes.plot([at, at], [100 * rate.low, 100 * rate.high], color=ink, linewidth=1.2, zorder=3)
                axes.plot(at, 100 * rate.value, MARKERS[number_of % len(MARKERS)], color=ink, markersize=7, zorder=4,
                          markeredgecolor=STAND_IN["paper"], markeredgewidth=1)  # fmt: skip
        for blind in _blind(report):
            y_of = 100 * (blind.asr_held.value or 0.0)
            axes.plot([start, end], [y_of, y_of], color=colour[blind.name], linestyle=line[blind.name], linewidth=1.4,
                      label=blind.name)  # fmt: skip
            labels.append((y_of, blind.name, colour[blind.name]))
        axes.set(xscale="log", xlim=(start, end), ylim=(0, 102), xlabel="ms that a frame may be held (log scale)")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0f} %"))
        axes.minorticks_off()
        if end / start < (2000 if wide else 100):
            ticks = [factor * 10**power for power in range(-2, 7) for factor in (1, 2, 5)]
            # the deadlines that were measured, and what does not run into them
            ticks = sorted({*deadlines, *(t for t in ticks if all(abs(np.log(t / d)) > 0.35 for d in deadlines))})
            axes.set_xticks([tick for tick in ticks if 1.05 * start <= tick <= end])
        axes.set_title("held frames that came back wrong")
        if wide:
            for at, (_, name, ink) in zip(apart([y for y, *_ in sorted(labels)], 6.5), sorted(labels), strict=True):
                axes.annotate(name, (1.012, at), xycoords=("axes fraction", "data"), color=ink, va="center", fontsize=9.5)
        else:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=2)
        words = "; ".join(f"{name} ends at {last:.1f} %" for last, name, _ in labels)
        return inline(figure, f"holds-{_width(wide)}", f"Success over hold time. {words}")


def clients(report: Report, *, wide: bool) -> str:
    """Latency at the client, pass by pass: held frames, and those that were not."""
    colour = inks(report.attacks)
    rows = [side for side in report.client if side.all.total_ms.p50 is not None]
    if not rows:
        return ""
    deadlines = sorted({p.deadline_ms for p in report.passes if p.deadline_ms is not None})
    with style():
        height = 0.5 if wide else 0.62
        figure = Figure(figsize=(WIDE_IN if wide else NARROW_IN, height * len(rows) + 0.9), layout="constrained")
        axes = figure.subplots()
        for y, side in enumerate(rows):
            ink = colour.get(side.name, STAND_IN["text"])
            if side.held is not None and side.not_held is not None:
                _spread(axes, y - 0.17, side.held, ink, full=True, wide=wide)
                _spread(axes, y + 0.2, side.not_held, ink, full=False, wide=wide)
            else:
                _spread(axes, y, side.all, ink, full=side.held is not None, wide=wide)
        for deadline in deadlines:
            axes.axvline(deadline, color=STAND_IN["vermillion"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(f"deadline {milliseconds(deadline)}", (deadline, 1), (4, -2), xycoords=("data", "axes fraction"),
                          textcoords="offset points", va="top", fontsize=8.5, color=STAND_IN["vermillion"])  # fmt: skip
        spread = [v for s in rows for v in (s.all.total_ms.p50, s.all.total_ms.p99) if v] + deadlines
        axes.set(xscale="log", xlim=(min(spread) / 1.7, max(spread) * (2.2 if wide else 1.4)), ylim=(len(rows) - 0.45, -0.75))
        axes.set_yticks(range(len(rows)), [side.name for side in rows], color=STAND_IN["text"], fontsize=9.5)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
        axes.minorticks_off()
        axes.set_title("from scheduled arrival to answer, ms (log scale)" if wide else "latency, ms (log scale)")
        words = "; ".join(f"{side.name} p50 {milliseconds(side.all.total_ms.p50)}" for side in rows)
        return inline(figure, f"clients-{_width(wide)}", f"Latency at the client by pass. {words}")


def _spread(axes: Axes, y: float, delay: Delay, ink: str, *, full: bool, wide: bool) -> None:
    """p50 as a dot, p90 as a tick, a line to p99, and the share that came late."""
    figures = delay.total_ms
    if figures.p50 is None or figures.p90 is None or figures.p99 is None:
        return
    axes.plot([figures.p50, figures.p99], [y, y], color=ink, linewidth=1.8, solid_capstyle="butt")
    axes.plot(figures.p90, y, "|", color=ink, markersize=9, markeredgewidth=1.8)
    axes.plot(figures.p50, y, "o", color=ink, markersize=6.5, markerfacecolor=ink if full else STAND_IN["paper"],
              markeredgewidth=1.6)  # fmt: skip
    if wide and delay.late is not None and delay.late.value is not None:
        axes.annotate(f"{share(delay.late.value)} late", (1.012, y), xycoords=("axes fraction", "data"), va="center",
                      fontsize=8.5, color=STAND_IN["text"])  # fmt: skip


def _blind(report: Report) -> list[Attack]:
    """Those that ask nothing: they need no time."""
    return [a for a in report.attacks if a.feedback == "none" and a.asr_held.value is not None]


def _width(wide: bool) -> str:
    return "wide" if wide else "narrow"
