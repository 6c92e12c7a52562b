"""The figures of success: who falls how often, after how many queries, and what the queries were for.

Each is drawn twice, for a wide page and for a phone, from the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from testbed.report.format import eps, interval, milliseconds, number, share
from testbed.report.model import Attack, Rate, Report
from testbed.report.svg import STAND_IN, inline, style

SERIES = ("blue", "vermillion", "green", "purple", "orange", "sky", "olive")
WIDE_IN, NARROW_IN = 10.0, 4.4
DASHES = ("--", ":", "-.")


def inks(attacks: Sequence[Attack]) -> dict[str, str]:
    """By attack: its colour in every figure. Baselines are grey: they are what the others are compared with."""
    found = [attack.name for attack in attacks if not attack.baseline]
    colours = {name: STAND_IN[SERIES[i % len(SERIES)]] for i, name in enumerate(found)}
    return {attack.name: colours.get(attack.name, STAND_IN["grey"]) for attack in attacks}


def dashes(attacks: Sequence[Attack]) -> dict[str, str]:
    """By attack: its line, so that no figure needs colour: baselines are broken, so is every second cycle of colours."""
    count = {True: 0, False: 0}
    lines = {}
    for attack in attacks:
        n = count[attack.baseline]
        lines[attack.name] = DASHES[n % 3] if attack.baseline else ("-", "--")[n // len(SERIES) % 2]
        count[attack.baseline] += 1
    return lines


def threat(attack: Attack) -> str:
    """wire · ℓ∞ ≤ 0.5 std · scores · ≤ 1,000 queries, 400 ms."""
    parts = [
        attack.point or "",
        "" if attack.eps is None else eps(attack),
        attack.feedback if attack.feedback != "none" else "",
    ]
    within = f", {milliseconds(attack.hold_deadline_ms)}" if attack.hold_deadline_ms is not None else ""
    parts.append(f"≤ {number(attack.budget)} queries{within}" if attack.budget and attack.feedback != "none" else "no queries")
    return " · ".join(part for part in parts if part)


def headline(report: Report, *, wide: bool) -> str:
    """Dots with whiskers: clean accuracy, then ASR by attack, with counts and intervals."""
    clean = report.clean
    accuracy = Rate(
        value=clean.accuracy, low=clean.low, high=clean.high, count=round((clean.accuracy or 0) * clean.n), n=clean.n
    )
    colour = inks(report.attacks)
    rows: list[tuple[str, str, Rate, str, str]] = [("clean accuracy", "no attack", accuracy, STAND_IN["text"], "D")]
    ordered = sorted(report.attacks, key=lambda attack: attack.baseline)
    rows += [(a.name, threat(a), a.asr, colour[a.name], "o" if not a.baseline else "s") for a in ordered]
    with style():
        step = 0.44 if wide else 0.72
        figure = Figure(figsize=(WIDE_IN if wide else NARROW_IN, step * len(rows) + 0.55))
        top, bottom = 1 - 0.08 / figure.get_figheight(), 0.45 / figure.get_figheight()
        axes = figure.add_axes((0.31, bottom, 0.5, top - bottom) if wide else (0.03, bottom, 0.94, top - bottom))
        axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), yticks=[])
        axes.set_xticks(range(0, 101, 20 if wide else 25))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f} %"))
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        for y, (name, what, rate, ink, marker) in enumerate(rows):
            _dot(axes, y if wide else y + 0.2, rate, ink, marker)
            figures = "not measured" if rate.value is None else f"{share(rate.value)}  {interval(rate)}"
            counts = f"{rate.count:,} of {rate.n:,}" if rate.n else ""
            if wide:
                _label(axes, -0.03, y, name, what, "right")
                axes.text(1.03, y - 0.03, figures, va="bottom", transform=axes.get_yaxis_transform(), fontsize=9.5)
                axes.text(1.03, y + 0.06, counts, va="top", transform=axes.get_yaxis_transform(), fontsize=8,
                          color=STAND_IN["muted"])  # fmt: skip
            else:
                axes.text(0, y - 0.12, name, va="bottom", fontsize=9.5, fontweight="bold", color=STAND_IN["text"])
                axes.text(100, y - 0.12, f"{share(rate.value)} · {counts}", va="bottom", ha="right", fontsize=9)
        if len(rows) > 1:
            axes.axhline(0.5, color=STAND_IN["muted"], linewidth=0.8, linestyle=(0, (1, 3)))
        words = "; ".join(f"{name} {share(rate.value)} of {rate.n}" for name, _, rate, *_ in rows)
        return inline(figure, f"headline-{_width(wide)}", f"Clean accuracy and attack success rates. {words}")


def curves(report: Report, *, wide: bool) -> str:
    """Success over queries: what a smaller budget would have bought."""
    colour, line = inks(report.attacks), dashes(report.attacks)
    with style():
        figure = Figure(figsize=(WIDE_IN if wide else NARROW_IN, 3.6), layout="constrained")
        axes = figure.subplots()
        asking = [a for a in report.attacks if a.curve and a.queries.total]
        end = max((a.curve[-1][0] for a in asking), default=1)
        labels: list[tuple[float, str, str]] = []
        for attack in report.attacks:
            if not attack.curve:
                continue
            points = attack.curve if attack in asking else [(1, attack.curve[-1][1]), (end, attack.curve[-1][1])]
            x = [max(1, queries) for queries, _ in points]
            y = [100 * value for _, value in points]
            axes.step([*x, end], [*y, y[-1]], where="post", color=colour[attack.name], linestyle=line[attack.name],
                      linewidth=2 if attack in asking else 1.4, label=attack.name)  # fmt: skip
            labels.append((y[-1], attack.name, colour[attack.name]))
        axes.set(xscale="log", xlim=(1, max(end, 2)), ylim=(0, 102), xlabel="queries for one frame (log scale)")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0f} %"))
        axes.minorticks_off()
        axes.set_title("frames that came back wrong")
        if wide:
            for at, (_, name, ink) in zip(apart([end for end, *_ in sorted(labels)], 6.5), sorted(labels), strict=True):
                axes.annotate(name, (1.012, at), xycoords=("axes fraction", "data"), color=ink, va="center", fontsize=9.5)
        elif labels:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=2)
        words = "; ".join(f"{name} ends at {last:.1f} %" for last, name, _ in labels)
        return inline(figure, f"curves-{_width(wide)}", f"Success over queries. {words}")


def phases(report: Report, *, wide: bool) -> str:
    """What each attack spent its queries on, as shares of its own total."""
    asking = [attack for attack in report.attacks if attack.queries.total]
    names = list(dict.fromkeys(phase for attack in asking for phase in attack.queries.by_phase))
    if not asking:
        return ""
    with style():
        figure = Figure(
            figsize=(WIDE_IN if wide else NARROW_IN, 0.42 * len(asking) + (1.0 if wide else 1.5)), layout="constrained"
        )
        axes = figure.subplots()
        for row, attack in enumerate(asking):
            left = 0.0
            for phase, rows in attack.queries.by_phase.items():
                width = 100 * rows / attack.queries.total
                ink = STAND_IN[SERIES[names.index(phase) % len(SERIES)]]
                axes.barh(row, width, left=left, height=0.56, color=ink, edgecolor=STAND_IN["paper"], linewidth=1,
                          hatch="////" if names.index(phase) >= len(SERIES) else None)  # fmt: skip
                if width > (6 if wide else 14):
                    axes.text(left + width / 2, row, f"{width:.0f} %", ha="center", va="center", fontsize=8.5,
                              color=STAND_IN["paper"])  # fmt: skip
                left += width
            axes.text(101, row, f"{number(attack.queries.total)}", va="center", fontsize=9.5)
        axes.set(xlim=(0, 100), ylim=(len(asking) - 0.5, -0.5), yticks=range(len(asking)))
        axes.set_yticklabels([attack.name for attack in asking], color=STAND_IN["text"], fontsize=9.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f} %"))
        axes.grid(axis="y", visible=False)
        axes.set_title("share of all queries, and their number")
        keys = [axes.barh(0, 0, color=STAND_IN[SERIES[i % len(SERIES)]], label=name) for i, name in enumerate(names)]
        figure.legend(
            handles=keys, loc="outside lower center", ncols=6 if wide else 3, frameon=False, fontsize=9, handlelength=1
        )
        words = "; ".join(f"{a.name}: " + ", ".join(f"{k} {v}" for k, v in a.queries.by_phase.items()) for a in asking)
        return inline(figure, f"phases-{_width(wide)}", f"Queries by phase. {words}")


def _dot(axes: Axes, y: float, rate: Rate, ink: str, marker: str) -> None:
    if rate.value is None or rate.low is None or rate.high is None:
        return
    axes.plot([100 * rate.low, 100 * rate.high], [y, y], color=ink, linewidth=2.4, clip_on=False)
    hollow = marker == "s"
    axes.plot(100 * rate.value, y, marker, color=ink, markersize=7 if hollow else 8, clip_on=False, zorder=3,
              markerfacecolor=STAND_IN["paper"] if hollow else ink, markeredgewidth=1.6)  # fmt: skip


def _label(axes: Axes, x: float, y: float, name: str, what: str, align: str) -> None:
    where = axes.get_yaxis_transform()
    axes.text(x, y - 0.03, name, ha=align, va="bottom", transform=where, fontsize=10, fontweight="bold")
    axes.text(x, y + 0.06, what, ha=align, va="top", transform=where, fontsize=8, color=STAND_IN["muted"])


def apart(values: Sequence[float], gap: float) -> list[float]:
    """The same order, at least `gap` from one another, as near as may be: labels at the ends of lines."""
    placed = np.asarray(values, float)
    for _ in range(200):
        close = np.diff(placed) < gap - 1e-9
        if not close.any():
            break
        push = np.where(close, (gap - np.diff(placed)) / 2, 0)
        placed[:-1] -= push
        placed[1:] += push
        placed += max(0.0, 1.0 - placed[0])
    return [float(value) for value in placed]


def _width(wide: bool) -> str:
    return "wide" if wide else "narrow"
