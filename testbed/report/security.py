"""What protected the frames of a run, what that cost, and what became of everything that the adversary tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

from testbed.report.model import Price, Probe, Refusals, SecurityReport, Span
from testbed.report.read import Pass, Run
from testbed.security import PROTECTS, Security

RESAMPLES = 2000


def of(run: Run) -> SecurityReport | None:
    """None where the scenario says nothing of security."""
    said = run.scenario.get("security")
    if not said:
        return None
    security = Security.model_validate(said)
    attacked = [p for p in run.passes if p.info.kind == "attack"]
    return SecurityReport(
        level=security.level,
        protects=PROTECTS[security.level],
        tokens=security.tokens,
        price=price_of(run.price) if run.price else None,
        refusals=[row for p in attacked for row in refusals_of(p)],
        probes=[probe for p in attacked for probe in probes_of(p)],
    )


def price_of(measured: dict[str, Any]) -> Price:
    """Of price.json."""
    plain, protected = measured["sides"]["plain"], measured["sides"]["protected"]
    before, after = (np.array([ms for part in side["total_ms"] for ms in part]) for side in (plain, protected))
    frames = int(measured["frames_a_round"])
    (up, down, own), (up_before, down_before, own_before) = (_bytes(side, frames) for side in (protected, plain))
    return Price(
        frames=len(after),
        plain_ms=float(np.median(before)),
        protected_ms=float(np.median(after)),
        added_us=added_us(plain["total_ms"], protected["total_ms"]),
        added_bytes_up=up - up_before,
        added_bytes_down=down - down_before,
        connection_bytes=own - own_before,
        first_answer_plain_ms=median(plain["first_answer_ms"]),
        first_answer_protected_ms=median(protected["first_answer_ms"]),
    )


def _bytes(side: dict[str, Any], frames: int) -> tuple[float, float, float]:
    """(a frame's up, a frame's down, a connection's own) bytes, from connections with one frame and others with `frames`."""
    one, many = (np.median(np.array(side[key], float), axis=0) for key in ("bytes_of_one", "bytes_of_many"))
    up, down = ((many - one) / (frames - 1)).tolist()
    return up, down, float(one.sum() - up - down)


def added_us(plain: Sequence[Sequence[float]], protected: Sequence[Sequence[float]]) -> Span:
    """Difference of the medians of a round, median over rounds; a round of either path lies beside one of the other.

    Rounds are drawn again for the interval: within one, frames share what the machine did just then.
    """
    differences = np.array([1e3 * (np.median(b) - np.median(a)) for a, b in zip(plain, protected, strict=True)])
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(differences, (RESAMPLES, len(differences))), axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Span(value=float(np.median(differences)), low=float(low), high=float(high))


def refusals_of(of: Pass) -> list[Refusals]:
    """By status, from the ledger: what the adversary sent and what of the phone's passed through it."""
    rows: dict[str, Counter[str]] = {"query": Counter(), "frame": Counter()}
    for entry in of.ledger.values():
        kind = "query" if entry.kind == "query" else "frame"
        rows[kind]["" if entry.answered else _status(entry.reason)] += entry.rows
    return [
        Refusals(
            name=of.info.name,
            kind=kind,
            rows=sum(counts.values()),
            answered=counts.pop("", 0),
            refused=dict(counts.most_common()),
        )
        for kind, counts in rows.items()
        if counts
    ]


def probes_of(of: Pass) -> list[Probe]:
    ways = dict.fromkeys(probe.way for probe in of.probes)
    return [_probe(way, [probe.refused for probe in of.probes if probe.way == way]) for way in ways]


def _probe(way: str, refused: Sequence[str | None]) -> Probe:
    said = [text for text in refused if text is not None]
    return Probe(
        way=way, tries=len(refused), answered=len(refused) - len(said), refused=_by_status(said), why=said[0] if said else ""
    )


def _by_status(texts: Iterable[str]) -> dict[str, int]:
    return dict(Counter(map(_status, texts)).most_common())


def _status(text: str) -> str:
    """The word before the colon, where it is a status."""
    word = text.partition(":")[0]
    return word if word.replace("_", "").isalpha() and word.isupper() else "lost"
