"""All files of a report, from a run directory; each appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from splitcore.artefact import MANIFEST, Artefact
from splitcore.errors import ArtefactError
from testbed.report import html, measure, tables
from testbed.report.model import Report
from testbed.report.read import Run, read


def compute(run_dir: Path, artefact: Path | None = None) -> tuple[Report, list[measure.Measured]]:
    """The report's numbers, and the passes that they come from; writes nothing.

    The artefact is the given folder, else the first of `run_dir/artefact`, the scenario's `artefact`, and its recipe's in
    `run_dir/../artefacts` that the nodes agreed on. Without one the report says so and leaves out what it alone can tell.
    Raises RunDirectoryError.
    """
    run = read(run_dir)
    found, missing = _artefact(run, artefact)
    passes = measure.measured(run)
    return measure.report_of(run, passes, found, missing), passes


def build(run_dir: Path, artefact: Path | None = None) -> Report:
    """Writes report.json, report.html, report.md and the tables into `run_dir`. Raises RunDirectoryError."""
    report, passes = compute(run_dir, artefact)
    write(run_dir / "attacks.csv", tables.attacks_csv(report))
    write(run_dir / "frames.csv", tables.frames_csv(passes))
    write(run_dir / "queries.csv", tables.queries_csv(passes))
    write(run_dir / "latency.csv", tables.latency_csv(report))
    write(run_dir / "report.md", tables.markdown(report))
    write(run_dir / "report.html", html.page(report, passes))
    # the last one: where there is a report.json, everything else is there
    write(run_dir / "report.json", report.model_dump_json(indent=1) + "\n")
    return report


def write(path: Path, text: str) -> None:
    """The file is the old one or the new one at every moment."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        temporary.chmod(0o644)  # mkstemp's 0600 would hide the report from whoever owns the folder
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _artefact(run: Run, given: Path | None) -> tuple[Artefact | None, str]:
    """The artefact that the nodes agreed on and '', or None and why."""
    runs = run.folder.resolve().parent
    named, recipe = run.scenario.get("artefact"), run.scenario.get("recipe")
    places = [run.folder / "artefact"]
    places += [Path(named)] if isinstance(named, str) else []
    places += [runs / "artefacts" / Path(recipe).stem] if isinstance(recipe, str) else []
    why = []
    for place in [given] if given else places:
        if not (place / MANIFEST).exists():
            why.append(f"there is none in {place}")
            continue
        try:
            artefact = Artefact(place)
            _ = artefact.samples, artefact.unsplit_labels
        except ArtefactError as error:
            why.append(str(error))
            continue
        if run.handshake and artefact.manifest.handshake != run.handshake:
            why.append(f"the one in {place} is {artefact.manifest.handshake}, the nodes agreed on {run.handshake}")
            continue
        return artefact, ""
    return None, f"without the run's artefact the agreement with the unsplit model is not known: {'; '.join(why)}"
