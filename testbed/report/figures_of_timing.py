"""The figure of timing: how well the phone tells frames that somebody holds from honest ones."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from testbed.report.figures import NARROW_IN, SERIES, WIDE_IN
from testbed.report.format import number
from testbed.report.model import Report, Roc
from testbed.report.svg import STAND_IN, inline, style


def timing(report: Report, *, wide: bool) -> str:
    """Receiver operating characteristics: of single frames, and of windows of them. Empty where nobody looked."""
    if report.timing is None or not report.timing.passes:
        return ""
    ink = {p.name: STAND_IN[SERIES[n % len(SERIES)]] for n, p in enumerate(report.timing.passes)}
    frames = [
        (f"{p.name}, {what}", roc, ink[p.name], line)
        for p in report.timing.passes
        for what, roc, line in (("held", p.held, "-"), ("not held", p.not_held, "--"))
        if roc is not None
    ]
    windows = [(p.name, p.windows, ink[p.name], "-") for p in report.timing.passes if p.windows is not None]
    with style():
        figure = Figure(figsize=(WIDE_IN, 4.2) if wide else (NARROW_IN, 8.6), layout="constrained")
        left, right = figure.subplots(1, 2) if wide else figure.subplots(2, 1)
        _curves(left, frames, "single frames")
        _curves(right, windows, f"windows of {report.timing.window} frames")
        words = "; ".join(f"{name} AUC {number(roc.auc.value)}" for name, roc, *_ in frames)
        return inline(figure, f"timing-{'wide' if wide else 'narrow'}", f"ROC of detection by timing. {words}")


def _curves(axes: Axes, curves: Sequence[tuple[str, Roc, str, str]], title: str) -> None:
    axes.plot([0, 100], [0, 100], color=STAND_IN["grid"], linewidth=1)
    for name, roc, ink, line in curves:
        x, y = [100 * false for false, _ in roc.points], [100 * true for _, true in roc.points]
        axes.plot(x, y, color=ink, linestyle=line, linewidth=2,
                  label=f"{name}: AUC {number(roc.auc.value)}", clip_on=False)  # fmt: skip
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="honest ones suspected")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    axes.set_title(f"{title}: suspected, of each kind")
    axes.legend(loc="lower right", frameon=False, fontsize=8.5, handlelength=2)
