"""`latentbed plan`: its command line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from splitcore.errors import ScenarioError
from testbed.plan.command import Asked, plan
from testbed.plan.live import NodeOptions
from testbed.plan.measure import Effort

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    context: typer.Context,
    given: Annotated[
        list[str] | None, typer.Argument(help="a network as `latentbed split` takes it, or artefacts' folders")
    ] = None,
    link: Annotated[
        list[str] | None, typer.Option(help="wifi, lte, 5g, lan, or {rate_up_kbps: ..}; repeatable. Default lte")
    ] = None,
    probe: Annotated[str | None, typer.Option(help="HOST:PORT of a live edge: plan for the link to it")] = None,
    at: Annotated[list[str] | None, typer.Option(help="a cut, repeatable; else those on the front of bytes and work")] = None,
    most: Annotated[int, typer.Option(min=1, help="cuts to choose at most")] = 6,
    dataset: Annotated[str, typer.Option(help="what the network was trained on")] = "",
    image: Annotated[str, typer.Option(help="C,H,W of an image, for a torch module")] = "",
    mean: Annotated[str, typer.Option(help="as for `latentbed split`")] = "0",
    std: Annotated[str, typer.Option(help="likewise")] = "1",
    codec: Annotated[str, typer.Option(help="what the latents of a network's cuts are sent with")] = "uniform8/channel",
    jpeg: Annotated[int, typer.Option(min=1, max=95, help="quality of the image as JPEG")] = 90,
    frames: Annotated[int, typer.Option(min=20, help="timed, of each candidate")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="sent for accuracy and bytes, at most")] = 500,
    threads: Annotated[int, typer.Option(min=1, help="of the phone")] = 1,
    head: Annotated[str, typer.Option(help="of the cuts, where the artefacts have others: int8-u8, int8-s8")] = "float32",
    edge_threads: Annotated[int, typer.Option(min=0, help="0: half the cores")] = 0,
    device: Annotated[str, typer.Option(help="of the edge: auto, cpu or cuda")] = "auto",
    trust: Annotated[list[str] | None, typer.Option(help="MODULE or FILE.py whose code may build a tail; repeatable")] = None,
    profile: Annotated[Path | None, typer.Option(help="a plan's JSON: measure nothing again, plan for other links")] = None,
    edge_profile: Annotated[
        Path | None, typer.Option(help="a plan's JSON of another machine: take decoding and tail from there")
    ] = None,
    check: Annotated[str, typer.Option(help="measure over the shaped link: best, all, or a candidate's name")] = "",
    check_frames: Annotated[int, typer.Option(min=20, help="of a check")] = 200,
    out: Annotated[Path | None, typer.Option(help="folder of NAME.json, .md and .png; default RUNS/plans/NAME")] = None,
    name: Annotated[str, typer.Option(help="of the results")] = "plan",
    runs: Annotated[Path, typer.Option(help="where the candidates' artefacts lie")] = Path("runs"),
    data_dir: Annotated[Path | None, typer.Option(help="data sets", envvar="LATENTBED_DATA")] = None,
) -> None:
    """Where to cut: every candidate measured on this device, its latency and throughput over a link, and a check of that."""
    if (not given) == (profile is None):
        raise ScenarioError("expected a network or folders of artefacts, or else --profile with the JSON of an earlier plan")
    prepare = [*(given or ()), "--most", str(most), "--codec", codec, "--mean", mean, "--std", std]
    for option, values in (("--dataset", [dataset]), ("--image", [image]), ("--at", at), ("--trust", trust)):
        prepare += [text for value in values or () if value for text in (option, value)]
    prepare += [] if data_dir is None else ["--data-dir", str(data_dir)]
    folder = runs / "plans" / name
    plan(
        Asked(
            links=tuple(link or ([] if probe else ["lte"])), probe=probe, edge_profile=edge_profile, check=check,
            check_frames=check_frames,
            out=out or folder, name=name, command=shlex.join(["latentbed", "plan", *(context.obj or sys.argv[1:])]),
        ),
        profile, prepare, folder / "work",
        NodeOptions(phone_threads=threads, head=head, edge_threads=edge_threads, edge_device=device, trust=tuple(trust or ())),
        Effort(frames=frames, samples=samples, jpeg=jpeg),
        Console(highlight=False, width=None if sys.stdout.isatty() else 180),
    )  # fmt: skip


if __name__ == "__main__":
    app()
