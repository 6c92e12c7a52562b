"""A study's rows as Markdown and JSON: for each artefact a matrix of attacks by points, and success over eps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from testbed.report.format import NORMS, number
from testbed.report.model import Rate
from testbed.study.config import Cell, Grid, Study, cells
from testbed.study.measure import Row
from testbed.versions import versions

HOW = """\
Every cell is a campaign against a live edge server over gRPC, of the first samples that are classified as their label says
through the codec of the column. **Success** is a query that was sent and that the server answered with another class, on a
latent that lies in the ball after decoding; for attacks that ask nothing, the frame that they send on. In percent, [Wilson 95 %
interval]; behind the dot the queries of the median success. The budget is {asked} queries for one sample, the clean one among
them. Shares of all samples, distances and costs of every cell are in the JSON file. The adversary's ledger and the server's log
of every cell were compared row by row, and agree."""
EPS = """\
**eps** is in standard deviations of what is attacked: of the pixels at `input`, of the calibrated latent at `latent` and
`wire`. For ℓ∞ it bounds every coordinate, for ℓ2 the root mean square over coordinates. So one eps is one ratio of signal to
noise, whatever the point, the cut and the network. `n/a`: eps is below one step of the quantiser, so that no coordinate can
move."""


def write(study: Study, rows: Sequence[Row], out: Path, command: str, *, unmeasured: int = 0) -> None:
    """`<name>.md` and `<name>.json` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    head = {"schema_version": 1, "study": study.model_dump(mode="json"), "versions": versions()}
    # a cell a line: small, and a changed one is a changed line
    lines = ",\n".join(json.dumps(row) for row in rows)
    (out / f"{study.name}.json").write_text(json.dumps(head)[:-1] + f',\n"rows": [\n{lines}\n]}}\n')
    (out / f"{study.name}.md").write_text(markdown(study, rows, command, unmeasured=unmeasured))


def markdown(study: Study, rows: Sequence[Row], command: str, *, unmeasured: int = 0) -> str:
    parts = [_head(study, rows, command, unmeasured), _clean(study, rows), _eps(study, rows)]
    for grid in study.grids:
        if of_grid(study, grid, rows):
            parts.append(f"## {grid.title[:1].upper()}{grid.title[1:]}\n")
        for subject in grid.subjects or [subject.name for subject in study.subjects]:
            mine = of_grid(study, grid, [row for row in rows if row["subject"] == subject])
            if mine:
                parts.append(f"### {study.subject(subject).title or subject}\n")
                parts.append(_sweep(mine) if grid.is_sweep else _matrix(mine))
    parts.append(_cost(study, rows))
    return "\n".join(parts)


def of_grid(study: Study, grid: Grid, rows: Iterable[Row]) -> list[Row]:
    """Those of `rows` that are cells of `grid`, in its order."""
    order = {_name_of(cell): number for number, cell in enumerate(cells(study, grid))}
    mine = {order[name]: row for row in rows if (name := _name(row)) in order}
    return [mine[number] for number in sorted(mine)]


def _name_of(cell: Cell) -> tuple[object, ...]:
    return (cell.subject, cell.place.name, cell.label, cell.norm, cell.eps, cell.samples, cell.budget)


def _name(row: Row) -> tuple[object, ...]:
    return tuple(row[word] for word in ("subject", "place", "attack", "norm", "eps", "samples", "budget"))


def _head(study: Study, rows: Sequence[Row], command: str, unmeasured: int) -> str:
    budgets = sorted({row["budget"] for row in rows})
    late = sum(row.get("ends", {}).get("deadline", 0) for row in rows)
    few = f", {unmeasured} more are not measured yet" if unmeasured else ""
    recorded = f" The adversary holds {study.pool} other samples with the server's answers to them." if study.pool else ""
    asked = " or ".join(f"{budget:,}" for budget in budgets)
    made = f"Made by `{command}`. {len(rows)} cells{few}."
    lines = [f"# Study {study.name}", "", made, "", HOW.format(asked=asked) + recorded, "", EPS]
    if late:
        lines += ["", f"{late} sessions were ended by the limit of {study.limit_s:g} s for a cell, without success."]
    return "\n".join(lines) + "\n"


def _clean(study: Study, rows: Sequence[Row]) -> str:
    table = [["network and cut", "latent, elements", *(place.name for place in study.places)]]
    for subject in study.subjects:
        mine = [row for row in rows if row["subject"] == subject.name]
        if not mine:
            continue
        elements = next((row["elements"] for row in mine if row["point"] != "input"), None)
        accuracies = []
        for place in study.places:
            rate = next((row["clean_accuracy"] for row in mine if row["place"] == place.name), None)
            accuracies.append("–" if rate is None else f"{100 * rate['value']:.1f} of {rate['n']:,}")
        table.append([subject.title or subject.name, number(elements), *accuracies])
    return "## Clean accuracy, %, as the server answers\n\n" + _table(table)


def _eps(study: Study, rows: Sequence[Row]) -> str:
    """What an eps means: absolute, as the papers' MSE, in steps of the quantiser, in dB."""
    table = [["network and cut", "point", "norm", "eps, std", "absolute", "MSE", "widest steps", "SNR, dB"]]
    seen = set()
    for row in sorted(rows, key=lambda row: (row["norm"] == "l2", row["eps"])):
        name = (row["subject"], row["place"], row["norm"], row["eps"])
        if name in seen:
            continue
        seen.add(name)
        title = study.subject(row["subject"]).title or row["subject"]
        steps = "–" if row["steps"] is None else f"{row['steps']:.2g}"
        table.append([
            title, row["place"], NORMS[row["norm"]], number(row["eps"]), f"{row['eps_absolute']:.3g}", f"{row['mse']:.2g}",
            steps, f"{row['snr_db']:.1f}",
        ])  # fmt: skip
    order = [subject.title or subject.name for subject in study.subjects]
    table[1:] = sorted(table[1:], key=lambda line: order.index(line[0]))
    return "<details><summary>What eps is in other units</summary>\n\n" + _table(table) + "\n</details>\n"


def _matrix(rows: Sequence[Row]) -> str:
    """Attacks by places."""
    places = list(dict.fromkeys(row["place"] for row in sorted(rows, key=lambda row: _place_order(row, rows))))
    table = [["attack", "sees", "norm", "eps", *places]]
    for name in dict.fromkeys((row["attack"], row["norm"], row["eps"]) for row in rows):
        mine = {row["place"]: row for row in rows if (row["attack"], row["norm"], row["eps"]) == name}
        attack, norm, eps = name
        feedback = next(iter(mine.values()))["feedback"]
        sees = "nothing" if feedback == "none" else feedback
        table.append([attack, sees, NORMS[norm], number(eps), *(_text(mine.get(place)) for place in places)])
    return _table(table)


def _place_order(row: Row, rows: Sequence[Row]) -> int:
    return next(number for number, other in enumerate(rows) if other["place"] == row["place"])


def _sweep(rows: Sequence[Row]) -> str:
    """Attacks and places by eps; norms have their own eps, so a table each."""
    parts = []
    for norm in dict.fromkeys(row["norm"] for row in sorted(rows, key=lambda row: row["norm"] == "l2")):
        of_norm = [row for row in rows if row["norm"] == norm]
        steps = sorted({row["eps"] for row in of_norm})
        table = [["attack", "norm", "point", *(f"eps {number(eps)}" for eps in steps)]]
        for attack, place in dict.fromkeys((row["attack"], row["place"]) for row in of_norm):
            mine = {row["eps"]: row for row in of_norm if (row["attack"], row["place"]) == (attack, place)}
            table.append([attack, NORMS[norm], place, *(_text(mine.get(eps)) for eps in steps)])
        parts.append(_table(table))
    return "\n".join(parts)


def _text(row: Row | None) -> str:
    """41 [30, 53] · 120."""
    if row is None:
        return ""
    if "skipped" in row:
        return "n/a"
    rate = Rate(**row["asr"])
    if rate.value is None or rate.low is None or rate.high is None:
        return "–"
    text = f"{100 * rate.value:.0f} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
    return text if row["median_queries"] is None else f"{text} · {row['median_queries']:,.0f}"


def _cost(study: Study, rows: Sequence[Row]) -> str:
    table = [["network and cut", "point", "rows", "requests", "seconds", "rows/s"]]
    for subject in study.subjects:
        for place in study.places:
            mine = [row for row in rows if (row["subject"], row["place"]) == (subject.name, place.name) and "rows" in row]
            if not mine:
                continue
            queries, requests = sum(row["rows"] for row in mine), sum(row["requests"] for row in mine)
            wall = sum(row["wall_s"] for row in mine)
            title = subject.title or subject.name
            table.append([title, place.name, *(f"{value:,.0f}" for value in (queries, requests, wall, queries / wall))])
    return "## What it took\n\n" + _table(table)


def _table(rows: Sequence[Sequence[Any]]) -> str:
    head, *body = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body)) + "\n"
