"""What `latentbed study` does: the artefacts, the cells, the tables and the plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from testbed.study import plot, tables
from testbed.study.config import load_study
from testbed.study.run import JOURNAL, rows_of, run, wanted


def study(
    file: Path, out: Path | None, runs: Path, console: Console, make: Callable[[Path, Path], None], *,
    device: str, only: str, fresh: bool, tables_only: bool,
) -> None:  # fmt: skip
    """`make` has a recipe's artefact made where it is missing. Raises LatentbedError, after the tables of what was measured."""
    read = load_study(file)
    base = file.resolve().parent
    folder = runs / "studies" / read.name
    out = out or folder
    out.mkdir(parents=True, exist_ok=True)  # before the hours of measuring
    if fresh:
        (folder / JOURNAL).unlink(missing_ok=True)
    artefacts: dict[str, Path] = {}
    for subject in read.subjects:
        if subject.artefact is not None:
            artefacts[subject.name] = base / subject.artefact
            continue
        artefacts[subject.name] = runs / "artefacts" / subject.name
        if not tables_only:
            console.print(f"[bold]Split model[/] {subject.name}")
            make(base / (subject.recipe or Path()), artefacts[subject.name])
    try:
        if not tables_only:
            run(read, artefacts, folder, console, device=device, only=only)
    finally:
        rows = rows_of(read, artefacts, folder)
        if rows:
            command = f"latentbed study {file.name if file.is_absolute() else file}"
            tables.write(read, rows, out, command, unmeasured=len(wanted(read, artefacts)) - len(rows))
            plot.write(read, rows, out)
            console.print(f"{len(rows)} cells in [bold]{escape(str(out / read.name))}.md[/]", soft_wrap=True)
