"""`python -m splitcore.nn RECIPE.yaml --out DIR`: trains a recipe and exports its artefact."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from splitcore.artefact import Artefact
from splitcore.data import load
from splitcore.errors import ArtefactError, LatentbedError
from splitcore.nn.export import export
from splitcore.nn.recipe import Recipe, load_recipe
from splitcore.nn.training import train

CHECKPOINTS = ".training"
"""folder in the artefact's, while it is being trained"""


def main(
    recipe: Annotated[Path, typer.Argument(help="a training, as in recipes/")],
    out: Annotated[Path, typer.Option(help="folder of the artefact")],
    if_missing: Annotated[bool, typer.Option("--if-missing", help="do nothing where OUT holds this recipe's artefact")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="data sets; else LATENTBED_DATA, else ~/.cache/latentbed")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="of a training on the CPU; another number makes other weights")] = 1,
    compiled: Annotated[bool, typer.Option("--compile", help="by torch.compile: for long trainings on a GPU")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="forget a training of OUT that was cut off")] = False,
) -> None:
    """Trains RECIPE and writes its artefact to OUT; a training that was cut off goes on."""
    try:
        if fresh and (out / CHECKPOINTS).exists():
            shutil.rmtree(out / CHECKPOINTS)
        what = load_recipe(recipe)
        _run(what, out, if_missing=if_missing, data_dir=data_dir, device=device, threads=threads, compiled=compiled)
    except (LatentbedError, OSError) as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


def _run(
    recipe: Recipe, out: Path, *, if_missing: bool, data_dir: Path | None, device: str, threads: int, compiled: bool
) -> None:
    if if_missing and is_artefact_of(recipe, out):
        typer.echo(f"{out} holds the artefact of recipe {recipe.name} already")
        return
    out.mkdir(parents=True, exist_ok=True)  # before the hours of a training
    keep = out / CHECKPOINTS
    model = train(recipe, data_dir, device=device, threads=threads, keep=keep, compiled=compiled)
    manifest = export(model, recipe, load(recipe.dataset, "test", data_dir), out).manifest
    if keep.exists():
        shutil.rmtree(keep)
    typer.echo(f"{out}: {manifest.handshake}, accuracy {manifest.accuracy:.2%} unsplit on its samples")


def is_artefact_of(recipe: Recipe, folder: Path) -> bool:
    """Whether `folder` holds a whole artefact, unaltered, made by exactly this recipe."""
    try:
        artefact = Artefact(folder)
        for name in artefact.manifest.files:
            artefact.path(name)
    except ArtefactError:
        return False  # absent or altered, either way to be made again
    return artefact.manifest.made_with.get("recipe") == recipe.digest


if __name__ == "__main__":
    typer.run(main)
