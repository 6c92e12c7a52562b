"""report.html: one file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from testbed.report import figures, figures_of_cost, figures_of_time, figures_of_timing, format
from testbed.report.measure import Measured
from testbed.report.model import Attack, Rate, Report
from testbed.report.stages import STAGES

HERE = Path(__file__).parent


def page(report: Report, passes: Sequence[Measured]) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for name in ("number", "percent", "share", "interval", "milliseconds", "size", "eps", "auc"):
        environment.filters[name] = getattr(format, name)
    return environment.get_template("report.html.j2").render(
        report=report,
        attacks=sorted(report.attacks, key=lambda attack: attack.baseline),
        clean=clean_rate(report),
        strongest=strongest(report),
        noise=next((attack for attack in report.attacks if attack.baseline and attack.eps is not None), None),
        stages=STAGES,
        by_name={attack.name: attack for attack in report.attacks},
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        figures={name: _both(draw) for name, draw in _figures(report, passes).items()},
        threat=figures.threat,
        yaml=_yaml,
    )


def clean_rate(report: Report) -> Rate:
    c = report.clean
    return Rate(value=c.accuracy, low=c.low, high=c.high, count=round((c.accuracy or 0) * c.n), n=c.n)


def strongest(report: Report) -> Attack | None:
    """The highest success rate that is no baseline."""
    attacks = [attack for attack in report.attacks if not attack.baseline and attack.asr.value is not None]
    return max(attacks, key=lambda attack: attack.asr.value or 0, default=None)


def _figures(report: Report, passes: Sequence[Measured]) -> dict[str, Any]:
    return {
        "headline": lambda wide: figures.headline(report, wide=wide),
        "curves": lambda wide: figures.curves(report, wide=wide),
        "phases": lambda wide: figures.phases(report, wide=wide),
        "holds": lambda wide: figures_of_time.holds(report, wide=wide),
        "clients": lambda wide: figures_of_time.clients(report, wide=wide),
        "waterfall": lambda wide: figures_of_cost.waterfall(report, wide=wide),
        "distribution": lambda wide: figures_of_cost.distribution(report, passes, wide=wide),
        "timing": lambda wide: figures_of_timing.timing(report, wide=wide),
        "wire": lambda wide: figures_of_cost.wire(report, wide=wide),
    }


def _both(draw: Any) -> Markup:
    """The wide drawing and the narrow one; the page's width says which is seen. Empty where there is nothing to draw."""
    drawn = draw(True)
    return Markup(f'<div class="wide">{drawn}</div><div class="narrow">{draw(False)}</div>' if drawn else "")


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=78)
    return text
