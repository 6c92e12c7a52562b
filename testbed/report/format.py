"""How the report writes numbers: with a unit, a denominator and an interval where they have one."""

from __future__ import annotations

from testbed.report.model import Attack, Auc, Rate

UNITS = {
    "absolute": "",
    "fraction_of_range": "of the range",
    "std": "std",
    "codec_steps": "codec steps",
    "mse": "mse",
}
NORMS = {"linf": "ℓ∞", "l2": "ℓ2"}


def number(value: float | None, digits: int = 3) -> str:
    """Whole from 1,000 on, else with so many significant digits; '–' where there is none."""
    if value is None:
        return "–"
    if value == int(value) or abs(value) >= 10**digits:
        return f"{round(value):,}"
    text = f"{value:.{digits}g}"
    return f"{value:.6f}".rstrip("0") if "e" in text and abs(value) >= 1e-6 else text


def percent(rate: Rate | None) -> str:
    """39.2 % [30.1, 49.1], 38 of 97."""
    if rate is None or rate.value is None:
        return "–"
    return f"{share(rate.value)} {interval(rate)}, {rate.count:,} of {rate.n:,}"


def auc(area: Auc) -> str:
    """0.93 [0.9, 0.95]."""
    if area.value is None or area.low is None or area.high is None:
        return "–"
    return f"{area.value:.3f} [{area.low:.3f}, {area.high:.3f}]"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(rate: Rate) -> str:
    return "" if rate.low is None or rate.high is None else f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def milliseconds(value: float | None) -> str:
    """With the unit that suits the size."""
    if value is None:
        return "–"
    if abs(value) >= 10_000:
        return f"{number(value / 1e3)} s"
    return f"{value:,.0f} ms" if abs(value) >= 1000 else f"{number(value)} ms"


def size(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{number(value)} {unit}"
        value /= 1000
    return f"{number(value)} GB"


def eps(attack: Attack) -> str:
    """ℓ∞ ≤ 0.5 std."""
    if attack.eps is None:
        return "–"
    unit = UNITS.get(attack.eps_unit or "", attack.eps_unit or "")
    return f"{NORMS.get(attack.norm or '', attack.norm or '')} ≤ {number(attack.eps)} {unit}".strip()
