"""Runs a study: cell after cell, each at once in the journal, so that a study that was cut off goes on with what is missing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from splitcore.artefact import Artefact
from splitcore.journal import Journal, read
from testbed.study.config import Cell, Study, cells
from testbed.study.measure import Row, key, measure
from testbed.study.scene import Scene, StudyError, scene

log = logging.getLogger(__name__)

JOURNAL = "cells.jsonl"


def run(
    study: Study, artefacts: Mapping[str, Path], folder: Path, console: Console, *, device: str = "auto", only: str = ""
) -> list[Row]:
    """All rows of the study, of this and of earlier calls with this `folder`, in the order of its grids.

    `only`: measure the cells whose title has this in it. Raises StudyError where an attack failed or books disagree, once
    everything else is measured; such cells are measured again the next time.
    """
    opened = {name: Artefact(path) for name, path in artefacts.items()}
    every = wanted(study, artefacts)
    rows = _measured(folder, every)
    missing = {name: cell for name, cell in every.items() if name not in rows and only in cell.title}
    console.print(f"{len(every)} cells, {len(rows)} measured before, {len(missing)} to be measured")
    failed: list[Row] = []
    with Journal(folder / JOURNAL) as journal, _progress(console) as progress:
        whole = progress.add_task("study", total=len(missing), note="")
        for name, artefact in opened.items():
            mine = [cell for cell in missing.values() if cell.subject == name]
            if not mine:
                continue
            where = folder / "subjects" / name
            with scene(artefact, where, run=study.name, max_rows=study.max_rows, device=device) as there:
                for cell in mine:
                    row = _one(there, cell, study, progress, whole)
                    journal.append(row)
                    if row["problems"]:
                        failed.append(row)
                    else:
                        rows[str(row["key"])] = row
    if failed:
        listed = "; ".join(
            f"{row['subject']} {row['place']} {row['attack']} {row['norm']}: {row['problems'][0]}" for row in failed
        )
        raise StudyError(f"{len(failed)} of {len(missing)} cells have problems, the others are in the journal: {listed[:4000]}")
    return [rows[name] for name in every if name in rows]


def _one(there: Scene, cell: Cell, study: Study, progress: Progress, whole: TaskID) -> Row:
    task = progress.add_task(escape(cell.title), total=cell.samples, note="")
    try:
        return measure(there, cell, study, lambda ended, fell: progress.update(task, completed=ended, note=f"{fell} fell"))
    except Exception as error:  # of an attack, or of a server that died: the other cells are measured all the same
        log.exception("%s", cell.title)
        return {
            "key": key(cell, study, there.artefact.manifest.handshake), "subject": cell.subject, "place": cell.place.name,
            "attack": cell.label, "norm": cell.norm, "eps": cell.eps, "problems": [f"{type(error).__name__}: {error}"],
        }  # fmt: skip
    finally:
        progress.remove_task(task)
        progress.advance(whole)


def rows_of(study: Study, artefacts: Mapping[str, Path], folder: Path) -> list[Row]:
    """What the journal has of the study, in the order of its grids; measures nothing."""
    every = wanted(study, artefacts)
    rows = _measured(folder, every)
    return [rows[name] for name in every if name in rows]


def wanted(study: Study, artefacts: Mapping[str, Path]) -> dict[str, Cell]:
    """Its cells by key, each once."""
    opened = {name: Artefact(path) for name, path in artefacts.items()}
    found: dict[str, Cell] = {}
    for grid in study.grids:
        for cell in cells(study, grid):
            found.setdefault(key(cell, study, opened[cell.subject].manifest.handshake), cell)
    return found


def _measured(folder: Path, wanted: Mapping[str, Cell]) -> dict[str, Row]:
    return {str(row["key"]): row for row in read(folder / JOURNAL) if row.get("key") in wanted and not row["problems"]}


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip
