"""`python -m splitcore.nn.quantise ARTEFACT`: heads in int8 beside head.onnx, measured through codec and tail."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from splitcore.artefact import FLOAT32, Artefact
from splitcore.errors import LatentbedError
from splitcore.nn.quantise.add import add_int8, calibration_images

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def main(
    artefact: Annotated[Path, typer.Argument(help="an artefact's folder")],
    out: Annotated[Path | None, typer.Option(help="write a copy there, and leave ARTEFACT as it is")] = None,
    images: Annotated[Path | None, typer.Option(help="a folder of images to calibrate with; else the training images")] = None,
    count: Annotated[int, typer.Option(min=1, help="images to calibrate with")] = 256,
    max_points_lost: Annotated[float, typer.Option(min=0, help="points of accuracy that a head may lose")] = 1.0,
    trust: Annotated[list[str] | None, typer.Option(help="module or file x.py whose code may build the tail")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="data sets; else LATENTBED_DATA, else ~/.cache/latentbed")] = None,
) -> None:
    """Adds heads in int8 to ARTEFACT. Its manifest is a new one then: edge, adversary and phone must all have this artefact."""
    try:
        before = Artefact(artefact)
        chosen, named = calibration_images(before, images, count, data_dir)
        after = add_int8(before, chosen, named, out or artefact, trusted=trust or ())
    except (LatentbedError, OSError) as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
    console.print(listed(after, max_points_lost))
    typer.echo(f"{after.folder}: {after.manifest.handshake}, made of {before.manifest.handshake}")
    typer.echo("the nodes compare that digest: edge, adversary and phone must all have this folder, and be started again")


def listed(artefact: Artefact, max_points_lost: float) -> Table:
    n = len(artefact.unsplit_labels)
    table = Table(title=f"{artefact.manifest.name}: heads through codec and tail, {n} held-out samples", box=None)
    for column in ("head", "top-1", "points lost", "same label", "latent's SNR, dB", ""):
        table.add_column(column, justify="left" if column in ("head", "") else "right")
    heads = artefact.manifest.heads
    some = next(iter(heads.values()))
    table.add_row(FLOAT32, f"{some.accuracy + some.points_lost / 100:.2%}", "", "", "", "")
    for name, head in heads.items():
        lost = "" if head.points_lost <= max_points_lost else f"more than {max_points_lost:g} points: not recommended"
        figures = (f"{head.points_lost:.2f}", f"{head.agreement:.2%}", f"{head.snr_db:.1f}")
        table.add_row(name, f"{head.accuracy:.2%}", *figures, lost)
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app(prog_name="latentbed quantise")
