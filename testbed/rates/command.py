"""What `latentbed rates` does: artefacts, passes, tables and the plot. What was measured before is not measured again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from splitcore.artefact import Artefact
from splitcore.journal import Journal, read
from testbed.rates import plot, tables
from testbed.rates.config import Curve, load_rates
from testbed.rates.measure import Row, key, points

JOURNAL = "points.jsonl"


def rates(
    file: Path, out: Path | None, runs: Path, console: Console, make: Callable[[Path, Path], None], *, device: str,
    data_dir: Path | None, fresh: bool,
) -> None:  # fmt: skip
    """`make` has a recipe's artefact made where it is missing. Raises LatentbedError."""
    asked, base, folder = load_rates(file), file.resolve().parent, runs / "rates" / load_rates(file).name
    if fresh:
        (folder / JOURNAL).unlink(missing_ok=True)
    opened = {curve.title: _artefacts(curve, base, runs, console, make) for curve in asked.curves}
    known: dict[str, Row] = {str(row["key"]): row for row in read(folder / JOURNAL)}
    with Journal(folder / JOURNAL) as journal, _progress(console) as progress:
        for curve in asked.curves:
            for artefact in opened[curve.title]:
                codecs = curve.codecs or (artefact.manifest.codec,)
                missing = [codec for codec in codecs if key(artefact, codec, asked.source) not in known]
                if not missing:
                    continue
                task = progress.add_task(escape(artefact.manifest.name), total=None, note="")

                def tell(codec: str, done: int, count: int, task: int = task) -> None:
                    progress.update(task, completed=done, total=count, note=codec)  # type: ignore[arg-type]

                where = folder / "nodes" / artefact.manifest.name
                for row in points(artefact, missing, asked.source, where, device=device, data_dir=data_dir, tell=tell):
                    journal.append(row)
                    known[str(row["key"])] = row
    curves = {
        curve.title: [known[key(artefact, codec, asked.source)] for artefact in opened[curve.title]
                      for codec in curve.codecs or (artefact.manifest.codec,)]
        for curve in asked.curves
    }  # fmt: skip
    out = out or folder
    tables.write(asked, curves, out, f"latentbed rates {file.name if file.is_absolute() else file}")
    plot.write(asked, curves, out)
    console.print(f"{sum(map(len, curves.values()))} points in [bold]{escape(str(out / asked.name))}.md[/]", soft_wrap=True)


def _artefacts(curve: Curve, base: Path, runs: Path, console: Console, make: Callable[[Path, Path], None]) -> list[Artefact]:
    found = [Artefact(base / path) for path in curve.artefacts]
    for recipe in curve.recipes:
        console.print(f"[bold]Split model[/] {recipe.stem}")
        folder = runs / "artefacts" / recipe.stem
        make(base / recipe, folder)
        found.append(Artefact(folder))
    return found


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip
