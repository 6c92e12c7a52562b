"""`python -m splitcore.nn.split.prepare`: the artefacts between which `latentbed plan` chooses, and what they are.

WORK/NN-CUT       one artefact a cut (of a network that is given as such)
WORK/whole        the whole network behind an identity head
WORK/prepared.json   what was made, as `Prepared`; written last
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from splitcore.artefact import MANIFEST, NAME, Artefact
from splitcore.codec import parse
from splitcore.data import DATASETS, Dataset, load
from splitcore.errors import LatentbedError, ScenarioError
from splitcore.nn.split import source
from splitcore.nn.split.__main__ import numbers, shape_of
from splitcore.nn.split.export import split
from splitcore.nn.split.front import Front, front
from splitcore.nn.split.graph import Cut, Graph
from splitcore.nn.split.halves import whole_of
from splitcore.nn.split.whole import joined, samples_of, whole_artefact
from splitcore.prepared import PREPARED, Made, Prepared


def main(
    given: Annotated[list[str], typer.Argument(help="a network as `latentbed split` takes it, or artefacts' folders")],
    work: Annotated[Path, typer.Option(help="where the artefacts go")],
    at: Annotated[list[str] | None, typer.Option(help="cuts; without: those on the front")] = None,
    most: Annotated[int, typer.Option(min=1)] = 6,
    dataset: Annotated[str, typer.Option()] = "",
    image: Annotated[str, typer.Option()] = "",
    mean: Annotated[str, typer.Option()] = "0",
    std: Annotated[str, typer.Option()] = "1",
    codec: Annotated[str, typer.Option()] = "uniform8/channel",
    trust: Annotated[list[str] | None, typer.Option()] = None,
    data_dir: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Called by `latentbed plan`, which says what the options mean."""
    try:
        folders = [Path(one) for one in given if (Path(one) / MANIFEST).is_file()]
        if folders and len(folders) < len(given):
            raise ScenarioError(f"expected one network or only folders of artefacts, got {', '.join(given)}")
        if folders:
            made = of_artefacts(folders, work, trust or ())
        elif len(given) == 1:
            known = [one for one in DATASETS if one == dataset]
            if not known:
                raise ScenarioError(
                    f"expected --dataset of {', '.join(DATASETS)} for what {given[0]} was trained on, got {dataset!r}"
                )
            graph = Graph(source.load(given[0], shape_of(image) if image else None), given[0])
            scale = numbers(mean, "--mean"), numbers(std, "--std")
            made = _of_graph(graph, work, at or (), most, codec, scale, (load(known[0], "train", data_dir),
                             load(known[0], "test", data_dir)))  # fmt: skip
        else:
            raise ScenarioError(f"expected one network, or folders with a {MANIFEST} each, got {', '.join(given)}")
        (work / PREPARED).write_text(made.model_dump_json(indent=1) + "\n")
    except LatentbedError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


def of_artefacts(folders: list[Path], work: Path, trusted: list[str] | tuple[str, ...]) -> Prepared:
    """The whole network is that of the first."""
    artefacts = [Artefact(folder) for folder in folders]
    first = artefacts[0]
    for other in artefacts[1:]:
        ours, theirs = first.manifest, other.manifest
        if (ours.input_shape, ours.classes, ours.dataset) != (theirs.input_shape, theirs.classes, theirs.dataset):
            raise ScenarioError(
                f"expected artefacts for the same images and classes, {first.folder} has {ours.dataset} {ours.input_shape}, "
                f"{other.folder} {theirs.dataset} {theirs.input_shape}"
            )
    name = f"{first.manifest.name[:58]}-whole"
    whole_artefact(joined(first, trusted), samples_of(first), work / "whole", name=name)
    names = _told_apart([artefact.manifest.cut for artefact in artefacts], [folder.resolve().name for folder in folders])
    return Prepared(
        network=", ".join(artefact.manifest.name for artefact in artefacts)[:200],
        cuts=tuple(
            Made(name=name, cut=artefact.manifest.cut, folder=str(artefact.folder))
            for name, artefact in zip(names, artefacts, strict=True)
        ),
        whole=str(work / "whole"),
        notes=() if len(artefacts) == 1 else (f"the whole network is that of {first.manifest.name}",),
    )  # fmt: skip


def _of_graph(
    graph: Graph, work: Path, at: list[str] | tuple[str, ...], most: int, codec: str,
    scale: tuple[list[float], list[float]], data: tuple[Dataset, Dataset],
) -> Prepared:  # fmt: skip
    config, (train, test) = parse(codec), data
    chosen = Front(tuple(graph.cut(name) for name in at), (), 0, False) if at else front(graph, config, most)
    if not chosen.kept:
        raise ScenarioError(f"{graph.what} has no place where one tensor crosses: name cuts with --at, `latentbed split` tells")
    stem = re.sub(r"[^A-Za-z0-9_.+-]", "-", Path(graph.what).stem)[:24]
    made = []
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        for number, cut in enumerate(progress.track(chosen.kept, description="export")):
            folder = work / f"{number:02d}-{_slug(cut)}"
            name = f"{stem}-{folder.name}"[:64]
            assert re.fullmatch(NAME, name)
            split(graph, cut, folder, name=name, codec=config, calibration=train, samples=test, mean=scale[0], std=scale[1])
            made.append(Made(name=cut.name, cut=cut.name, folder=str(folder)))
    samples = samples_of(Artefact(Path(made[0].folder)))
    whole_artefact(whole_of(graph, *scale), samples, work / "whole", name=f"{stem}-whole")
    return Prepared(
        network=Path(graph.what).name, cuts=tuple(made), whole=str(work / "whole"), notes=() if at else notes(chosen)
    )


def notes(chosen: Front) -> tuple[str, ...]:
    """What was chosen and left out, in words."""
    names = ", ".join(f"`{cut.name}`" for cut in chosen.kept)
    said = [f"Cuts on the front of bytes against work on the phone: {names}."]
    if chosen.crowded:
        left = ", ".join(f"`{cut.name}`" for cut in chosen.crowded)
        said.append(f"On the front too, and not measured (`--most`): {left}.")
    rest = "another sends no more and asks less of the phone"
    if not chosen.larger:
        rest += ", or the image itself does"
    said.append(f"Left out: {chosen.dominated} cuts ({rest}); `--at` measures any.")
    if chosen.larger:
        said.append("No cut sends fewer bytes than the image.")
    return tuple(said)


def _slug(cut: Cut) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", cut.name).strip("-.")[:28] or "cut"


def _told_apart(cuts: list[str], folders: list[str]) -> list[str]:
    """By their cuts where these differ, else by the folders."""
    if len(set(cuts)) == len(cuts):
        return cuts
    return folders if len(set(folders)) == len(folders) else [f"{name} {number}" for number, name in enumerate(folders)]


if __name__ == "__main__":
    typer.run(main)
