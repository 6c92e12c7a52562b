"""`latentbed`: train a split model, run a scenario, read its report."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitcore.artefact import Artefact
from splitcore.control import load_token
from splitcore.errors import ArtefactError, LatentbedError, ScenarioError
from testbed.drive import check_artefact, drive, new_run
from testbed.nodes import Node, NodeError
from testbed.report.build import build
from testbed.report.model import Report
from testbed.scenario import Nodes, OtherCut, Scenario, load_scenario

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"

Runs = Annotated[Path, typer.Option(help="where runs and artefacts lie")]
DataDir = Annotated[Path | None, typer.Option(help="data sets", envvar="LATENTBED_DATA")]


@app.command()
def demo(runs: Runs = Path("runs"), data_dir: DataDir = None) -> None:
    """Everything once on scikit-learn's digits: train, three processes, a clean pass, one pass for each attack, the report."""
    _run(load_scenario(SCENARIOS / "demo.yaml"), runs, data_dir)


@app.command()
def run(
    scenario: Annotated[Path | None, typer.Argument(help="a scenario, as in scenarios/")] = None,
    resume: Annotated[Path | None, typer.Option(help="a run directory that was cut off: make what is missing")] = None,
    runs: Runs = Path("runs"),
    data_dir: DataDir = None,
) -> None:
    """Run a SCENARIO and write its report; with --resume go on with one that was cut off."""
    if (scenario is None) == (resume is None):
        raise ScenarioError("expected a scenario, or --resume and a run directory")
    if resume is not None:
        folder = resume.resolve()  # runs/latest is a link, and moves
        _run(load_scenario(folder / "scenario.yaml"), folder.parent, data_dir, folder=folder)
    elif scenario is not None:
        _run(load_scenario(scenario), runs, data_dir)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="a recipe, as in recipes/")],
    out: Annotated[Path | None, typer.Option(help="the artefact's folder; default RUNS/artefacts/<recipe>")] = None,
    runs: Runs = Path("runs"),
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Train a RECIPE and export its artefact: the head in ONNX, the tail, the codec's parameters, the manifest."""
    _train(recipe, out or runs / "artefacts" / recipe.stem, data_dir, device, if_missing=False)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}, add_help_option=False
)
def split(context: typer.Context) -> None:
    """List where any network (ONNX, torch.export, a torch module) can be cut, and cut it: `latentbed split --help`."""
    # in a process of its own: the testbed itself needs no torch
    raise typer.Exit(subprocess.run([sys.executable, "-m", "splitcore.nn.split", *context.args], check=False).returncode)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}, add_help_option=False
)
def quantise(context: typer.Context) -> None:
    """Add heads in int8 to an artefact, and say what accuracy they cost: `latentbed quantise --help`."""
    raise typer.Exit(subprocess.run([sys.executable, "-m", "splitcore.nn.quantise", *context.args], check=False).returncode)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}, add_help_option=False
)
def plan(context: typer.Context) -> None:
    """Where to cut, for a link: every candidate measured on this device and against a live edge: `latentbed plan --help`."""
    # imported here: the other commands need no onnxruntime
    from testbed.plan.__main__ import app as planning

    planning(context.args, prog_name="latentbed plan", obj=tuple(context.args))


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="a run directory")]) -> None:
    """Build a run's report again."""
    _show(build(run_dir), run_dir)


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(help="where they are written; made, readable by its owner alone")],
    host: Annotated[list[str] | None, typer.Option(help="name or address of the server; repeatable. localhost")] = None,
    client: Annotated[str, typer.Option(help="what the client is called: its identity at the server")] = "phone",
    days: Annotated[int, typer.Option(min=1, max=3650, help="how long they hold")] = 30,
) -> None:
    """Make an authority, a server's and a client's certificate, and an adversary's authority beside them."""
    from splitcore.wire.certificates import LOCAL_NAMES, write_set

    write_set(folder, host or LOCAL_NAMES, client, days)
    for path in sorted(folder.iterdir()):
        console.print(escape(str(path)), soft_wrap=True)


@app.command("seal-key")
def seal_key(path: Annotated[Path, typer.Argument(help="the new file, readable by its owner alone")]) -> None:
    """Make a key for sealed frames, for the edge and its phones alike."""
    from splitcore.wire.sealing import make_key

    make_key(path)


@app.command()
def attacks() -> None:
    """List the attacks: what each reads of an answer, and in which norms it searches."""
    from adversary.attacks import ATTACKS  # imported here: the other commands need no attack

    table = Table(box=None, header_style="bold")
    for column in ("kind", "reads", "norms", "what it does"):
        table.add_column(column)
    reads = {"scores": "scores", "label": "label", "none": "nothing"}
    for attack in ATTACKS:
        module = sys.modules[attack.__module__]
        title = (module.__doc__ or "").partition("\n")[0].partition(": ")
        table.add_row(str(attack.kind), reads[attack.feedback], ", ".join(attack.norms), title[2] or title[0])
    console.print(table)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="a study, as scenarios/study-*.yaml")],
    out: Annotated[
        Path | None, typer.Option(help="where NAME.md, NAME.json and NAME.png are written; default RUNS/studies/NAME")
    ] = None,
    runs: Runs = Path("runs"),
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="of the edge: auto, cpu or cuda")] = "auto",
    only: Annotated[str, typer.Option(help="measure the cells alone whose title has this in it, as: 'input square linf'")] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="forget what was measured before")] = False,
    tables_only: Annotated[bool, typer.Option("--tables-only", help="measure nothing, write what there is")] = False,
) -> None:
    """Measure a grid of attacks, points of attack, codecs and eps; a study that was cut off goes on with what is missing."""
    # imported here: the other commands need no attack
    from testbed.study.command import study as run_study

    run_study(
        file, out, runs, console, lambda recipe, artefact: _train(recipe, artefact, data_dir, device, if_missing=True),
        device=device, only=only, fresh=fresh, tables_only=tables_only,
    )  # fmt: skip


@app.command()
def rates(
    file: Annotated[Path, typer.Argument(help="curves, as scenarios/rates-*.yaml")],
    out: Annotated[
        Path | None, typer.Option(help="where NAME.md, NAME.json and NAME.png are written; default RUNS/rates/NAME")
    ] = None,
    runs: Runs = Path("runs"),
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="of trainings and of the edge: auto, cpu or cuda")] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="forget what was measured before")] = False,
) -> None:
    """Measure accuracy over bytes really sent, for ways of training and codecs; cut off, it goes on with what is missing."""
    from testbed.rates.command import rates as run_rates

    run_rates(
        file, out, runs, console, lambda recipe, artefact: _train(recipe, artefact, data_dir, device, if_missing=True),
        device=device, data_dir=data_dir, fresh=fresh,
    )  # fmt: skip


def _train(recipe: Path, out: Path, data_dir: Path | None, device: str, *, if_missing: bool) -> None:
    """In a process of its own: the testbed itself needs no torch."""
    command = [sys.executable, "-m", "splitcore.nn", str(recipe), "--out", str(out), "--device", device]
    command += ["--if-missing"] if if_missing else []
    command += [] if data_dir is None else ["--data-dir", str(data_dir)]
    code = subprocess.run(command, check=False).returncode
    if code < 0:
        raise ArtefactError(f"training {recipe} was ended by signal {-code}: was there memory enough?")
    if code:
        raise typer.Exit(code)  # it has said why


def _run(scenario: Scenario, runs: Path, data_dir: Path | None, folder: Path | None = None) -> None:
    try:
        artefacts = []
        every: tuple[Scenario | OtherCut, ...] = (scenario, *scenario.cuts)
        for wanted in every:
            artefact = check_artefact(wanted, runs)
            # a run that goes on does so with the artefacts that it began with, or not at all
            if wanted.recipe is not None and scenario.nodes is None and folder is None:
                console.print(f"[bold]Split model[/] {wanted.recipe.stem}")
                _train(wanted.recipe, artefact, data_dir, scenario.edge.device, if_missing=True)
            Artefact(artefact)
            artefacts.append(artefact)
        artefact, *cuts = artefacts
        folder = folder or new_run(scenario, runs)
        console.print(f"[bold]Run[/] {escape(str(folder))}", soft_wrap=True)
        try:
            drive(folder, artefact, data_dir, console, cuts)
        except (KeyboardInterrupt, SystemExit):
            console.print(f"cut off; it goes on with: latentbed run --resume {escape(str(folder))}", soft_wrap=True)
            raise
        result = build(folder, artefact)
        _link_latest(folder)
        _show(result, folder)
    finally:
        if scenario.nodes is not None:
            _dismiss(scenario.nodes, failed=sys.exc_info()[0] is not None)


def _link_latest(folder: Path) -> None:
    """runs/latest, always a run whose report is there."""
    link = folder.parent / "latest"
    temporary = folder.parent / f".latest-{folder.name}"
    temporary.symlink_to(folder.name)
    temporary.replace(link)


def _show(report: Report, folder: Path) -> None:
    clean = report.clean
    console.print(
        f"\nclean accuracy [bold]{_share(clean.accuracy)}[/] (n = {clean.n}), "
        f"as the unsplit model through the identity codec: {_share(clean.agreement_with_unsplit)}"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("attack", "threat", "success end to end", "of", "queries a frame", "held, ms"):
        table.add_column(column, justify="left" if column in ("attack", "threat") else "right")
    for attack in report.attacks:
        listens = "tries doors" if attack.kind == "probe" else "listens only"
        threat = listens if attack.eps is None else f"{attack.point} {attack.norm} {attack.eps:g} {attack.eps_unit}"
        asr, held = attack.asr, attack.frames.held
        table.add_row(
            attack.name, threat, f"{_share(asr.value)} [{_share(asr.low)}, {_share(asr.high)}]", str(asr.n),
            f"{attack.queries.total / held:.0f}" if held else "-",
            "-" if attack.hold_ms.p50 is None else f"{attack.hold_ms.p50:.0f}",
        )  # fmt: skip
    if report.attacks:
        console.print(table)
    if report.security is not None and report.security.price is not None:
        price = report.security.price
        console.print(
            f"{report.security.level} costs {price.added_us.value:+.0f} us a frame "
            f"[{price.added_us.low:+.0f}, {price.added_us.high:+.0f}], {price.added_bytes_up:+.0f} bytes up and "
            f"{price.added_bytes_down:+.0f} down"
        )
    books = report.ledger
    verdict = "[green]agree[/]" if books.agrees else f"[red]disagree[/]: {escape(str(books.disagreements[:3]))}"
    console.print(
        f"ledger of what was sent ({books.rows:,} rows) and the server's own log ({books.server_rows:,} rows) {verdict}"
        if books.against == "log"
        else f"{books.books} {verdict} ({books.rows:,} rows sent, {books.server_rows:,} counted by the server)"
    )
    latest = folder.parent / "latest"
    console.print(f"report: [bold]{escape(str(folder / 'report.html'))}[/]  ({escape(str(latest))})", soft_wrap=True)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"


def _dismiss(nodes: Nodes, *, failed: bool) -> None:
    """Tells the client its exit status: it is the one whose end ends a composed run."""
    client = Node("client", nodes.client.control, load_token(nodes.token_file), nodes.trust)
    try:
        client.post("/exit", {"code": 1 if failed else 0})
    except NodeError as error:
        Console(stderr=True).print(f"the client could not be told to end: {error}", markup=False, soft_wrap=True)


def main() -> None:
    # as Ctrl-C: what was started is stopped on the way out
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except (LatentbedError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"[red]{type(error).__name__}[/]: {escape(str(error))}", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
