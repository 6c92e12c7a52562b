"""`python -m splitcore.nn.split MODEL`: lists where a network can be cut, or cuts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from splitcore.artefact import NAME
from splitcore.codec import parse
from splitcore.data import DATASETS, load
from splitcore.errors import LatentbedError, ScenarioError
from splitcore.nn.split import source
from splitcore.nn.split.export import split
from splitcore.nn.split.graph import Graph

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def main(
    model: Annotated[str, typer.Argument(help="file.onnx, file.pt2 of torch.export, or module:name of a torch module")],
    at: Annotated[str, typer.Option(help="where to cut: a tensor's name, or several with + between; without it: a list")] = "",
    out: Annotated[Path | None, typer.Option(help="folder of the artefact")] = None,
    dataset: Annotated[str, typer.Option(help=f"what the network was trained on: {', '.join(DATASETS)}")] = "",
    image: Annotated[str, typer.Option(help="C,H,W of an image, for a torch module")] = "",
    mean: Annotated[str, typer.Option(help="of each channel, in [0, 1], by which the network wants its images centred")] = "0",
    std: Annotated[str, typer.Option(help="of each channel, likewise")] = "1",
    codec: Annotated[str, typer.Option(help="what the latents are sent with")] = "uniform8/channel",
    most: Annotated[int, typer.Option(min=1, max=16, help="list cuts with so many tensors too")] = 1,
    name: Annotated[str, typer.Option(help="of the artefact; else the folder's")] = "",
    data_dir: Annotated[Path | None, typer.Option(help="data sets; else LATENTBED_DATA, else ~/.cache/latentbed")] = None,
) -> None:
    """Where MODEL can be cut; with --at, --out and --dataset: head, tail and manifest of that cut."""
    try:
        graph = Graph(source.load(model, shape_of(image) if image else None), model)
        if not at:
            console.print(_listed(graph, most))
            return
        cut = graph.cut(at)
        known = [one for one in DATASETS if one == dataset]
        if out is None or not known:
            raise ScenarioError(
                f"expected --out FOLDER and --dataset of {', '.join(DATASETS)} to cut at {cut.name}, got {dataset!r}"
            )
        name = name or out.resolve().name
        if not re.fullmatch(NAME, name):
            raise ScenarioError(f"expected --name of letters, digits and _.+- ({NAME}), got {name!r}")
        artefact = split(
            graph, cut, out, name=name, codec=parse(codec), calibration=load(known[0], "train", data_dir),
            samples=load(known[0], "test", data_dir), mean=numbers(mean, "--mean"), std=numbers(std, "--std"),
        )  # fmt: skip
        manifest = artefact.manifest
        typer.echo(f"{out}: {manifest.handshake}, latent {list(cut.shape)}, accuracy {manifest.accuracy:.2%} on its samples")
        typer.echo(f"attack it: `artefact: {out}` in a scenario, then latentbed run")
    except (LatentbedError, OSError) as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


def shape_of(text: str) -> tuple[int, int, int]:
    sizes = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(sizes) != 3 or text.count(",") != 2:
        raise ScenarioError(f"expected --image C,H,W, got {text!r}")
    return sizes[0], sizes[1], sizes[2]


def numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ScenarioError(f"expected numbers with commas for {option}, got {text!r}") from error


def _listed(graph: Graph, most: int) -> Table:
    table = Table(title=f"cuts of {graph.what}", box=None, header_style="bold")
    for column in ("--at", "after", "latent", "float32 bytes", "of the image's", "depth"):
        table.add_column(column, justify="left" if column in ("--at", "after") else "right", overflow="fold")
    c, h, w = graph.image_shape
    for cut in graph.cuts(most):
        shape = " + ".join("x".join(map(str, shape)) for shape in cut.shapes)
        size = 4 * cut.elements
        table.add_row(cut.name, cut.after, shape, f"{size:,}", f"{size / (c * h * w):.2f}", f"{cut.depth:.0%}")
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app(prog_name="latentbed split")
