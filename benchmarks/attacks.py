"""Our attacks and those of ART and foolbox against the same live edge server. `make bench-attacks`.

One run, ratios. The machine's other load cancels as far as it is steady; absolute rows per second mean little elsewhere.
Two capacities of the server are measured around every attack, by a client that looks at nothing: with requests of the
attack's own mean size (`own`), and the best of those and of 64 and 256 rows (`best`), eight in flight each. An attack that asks
one row a sample has no more rows out than samples, so `own` is its ceiling. LATENTBED_DATA adds the pretrained ResNet-20.
`python benchmarks/attacks.py throughput square distances far resnet`: any of these parts alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from adversary.attacks import ATTACKS, Attack  # noqa: E402
from adversary.attacks.hopskipjump import HopSkipJump  # noqa: E402
from adversary.attacks.nattack import NAttack  # noqa: E402
from adversary.attacks.nes import NES  # noqa: E402
from adversary.attacks.signopt import SignOPT  # noqa: E402
from adversary.attacks.square import Square  # noqa: E402
from adversary.campaign import STACK_MIB  # noqa: E402
from benchmarks import _rivals as rivals  # noqa: E402
from benchmarks._server import SHAPES, Run, Server, attack, capacity, delayed, serve  # noqa: E402
from splitcore.data import data_folder  # noqa: E402
from splitcore.node import keep_memory  # noqa: E402
from splitcore.threat import Norm, ThreatModel  # noqa: E402

ROUNDS = 3
"""HopSkipJump and ART's, each on all 64 samples and each with a seed of its own; the round with the median ratio counts"""
NEVER = 1e-9
"""a radius that nothing reaches: the budget is spent, and the distance of the nearest is what counts"""
console = Console(width=132)


class Book:
    """What is printed, and what is written."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    def ratio(self, name: str, value: float, bar: float | None, *, better: str = "higher", unit: str = "ratio") -> str:
        """Notes a figure; its text for the table, marked where it misses its bar."""
        self.results.append({"name": name, "value": round(value, 3), "unit": unit, "bar": bar, "better": better})
        text = f"{value:.0%}" if unit == "share" else f"{value:.1f}x" if unit == "ratio" else f"{value:.3g}"
        missed = bar is not None and (value < bar if better == "higher" else value > bar)
        return f"{text} [bold red]below {bar:g}[/]" if missed else text


def threat(server: Server, norm: Norm, eps: float, budget: int) -> ThreatModel:
    """eps is a fraction of the calibrated range; the box is that range, as the libraries' [0, 1]."""
    return ThreatModel(norm=norm, eps=eps * server.width, eps_unit="absolute", budget=budget, box=(server.lo, server.hi))


COLUMNS = ("attack", "fell", "rows", "requests", "rows/request", "wall s", "rows/s", "own", "of own", "best", "of best")
COMPARED = (
    "attack", "samples", "wall s", "of 64, s", "rows", "rows/sample", "requests", "rows/s", "fell", "median l2", "ours faster"
)  # fmt: skip


def tabled(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, header_style="bold", title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == "attack" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def throughput(book: Book, server: Server, cases: Sequence[tuple[Attack, Norm, float]], budget: int, repeats: int) -> None:
    """Rows per second beside both capacities, the run with the median share of so many; `cases`: attack, norm, bar."""
    rows = []
    for kind, norm, bar in cases:
        runs = sorted((measured(server, kind, norm, budget) for _ in range(repeats)), key=lambda found: found[1] / found[2])
        run, ours, own, best = runs[repeats // 2]
        name = f"{server.name} {kind.kind} {norm}: rows/s of"
        rows.append(
            (
                f"{kind.kind} {norm}", str(sum(o.success for o in run.outcomes)), f"{run.rows:,}", f"{run.requests:,}",
                f"{run.rows / run.requests:.0f}", f"{run.wall_s:.2f}", f"{ours:,.0f}", f"{own:,.0f}",
                book.ratio(f"{name} the capacity at its own request size", ours / own, bar, unit="share"), f"{best:,.0f}",
                book.ratio(f"{name} the best capacity", ours / best, None, unit="share"),
            )
        )  # fmt: skip
    tabled(f"{server.name}: 64 samples, budget {budget}, float latents, median of {repeats}", COLUMNS, rows)


def measured(server: Server, kind: Attack, norm: Norm, budget: int) -> tuple[Run, float, float, float]:
    """(the run, its rows per second, the capacity at its own request size, the best capacity)"""

    def rate(size: int) -> float:
        return capacity(server, size, labels_only=kind.feedback == "label")

    before = [rate(size) for size in SHAPES]
    run = attack(server, kind, threat(server, norm, 0.02 if norm == "linf" else NEVER, budget))
    size = max(1, round(run.rows / run.requests))
    own = float(np.mean([rate(size), rate(size)]))
    best = max(own, *(float(np.mean([first, rate(size)])) for first, size in zip(before, SHAPES, strict=True)))
    return run, run.rows / run.wall_s, own, best


def side_by_side(title: str, rows: Sequence[Sequence[str]]) -> None:
    tabled(title, COMPARED, rows)


def _theirs(rival: rivals.Rival, faster: str) -> tuple[str, ...]:
    return (
        rival.name, str(rival.n), f"{rival.wall_s:.2f}", f"{rival.wall_of_64_s:.1f}", f"{rival.rows:,}",
        f"{rival.rows / rival.n:,.0f}", f"{rival.requests:,}", f"{rival.rows / rival.wall_s:,.0f}", str(rival.fell),
        f"{rival.distance:.3f}", faster,
    )  # fmt: skip


def _ours(name: str, run: Run) -> tuple[str, ...]:
    return (
        f"ours {name}", "64", f"{run.wall_s:.2f}", f"{run.wall_s:.1f}", f"{run.rows:,}", f"{run.rows / 64:,.0f}",
        f"{run.requests:,}", f"{run.rows / run.wall_s:,.0f}", str(sum(bool(o.nearest) for o in run.outcomes)),
        f"{run.median():.3f}", "",
    )  # fmt: skip


def faster(book: Book, server: Server, run: Run, rival: rivals.Rival, bar: float | None, what: str) -> str:
    """`sooner`, noted and for the table."""
    return book.ratio(f"{server.name} {what}: wall time to the median distance of {rival.name}", sooner(run, rival), bar)


def sooner(run: Run, rival: rivals.Rival) -> float:
    """How much sooner all our 64 samples had the rival's median distance, on the samples that the rival attacked; 0: never."""
    seconds = run.seconds_to(rival.distance, slice(0, rival.n))
    return 0.0 if seconds is None else rival.wall_of_64_s / seconds


def distances(book: Book, server: Server) -> None:
    """Wall time to the same median distance, 64 samples; theirs in proportion where a few are enough to wait for."""
    from art.attacks.evasion import BoundaryAttack, SignOPTAttack
    from art.attacks.evasion import HopSkipJump as ArtHopSkipJump
    from foolbox.attacks import BoundaryAttack as FoolboxBoundary
    from foolbox.attacks import HopSkipJumpAttack

    quiet = {"verbose": False}
    rounds: list[tuple[rivals.Rival, Run, Run]] = []
    for seed in range(ROUNDS):  # in turns: what the machine does meanwhile, and the luck of a seed, are in all three
        rounds.append((
            rivals.art(server, "HopSkipJump(20, 1000)", lambda c: ArtHopSkipJump(
                c, norm=2, max_iter=20, max_eval=1000, init_eval=100, batch_size=256, **quiet), n=64, seed=seed),
            attack(server, HopSkipJump(), threat(server, "l2", NEVER, 6000), sections="auto", seed=seed),
            attack(server, HopSkipJump(initial_probes=60), threat(server, "l2", NEVER, 6000), sections="auto", seed=seed),
        ))  # fmt: skip
    art_hsj, hsj, small = sorted(rounds, key=lambda found: sooner(found[1], found[0]))[ROUNDS // 2]
    sign = attack(server, SignOPT(), threat(server, "l2", NEVER, 6000), sections="auto")
    art_sign = rivals.art(server, "SignOPT(5000)", lambda c: SignOPTAttack(
        c, targeted=False, query_limit=5000, eval_perform=False, **quiet), n=3)  # fmt: skip
    art_boundary = rivals.art(server, "Boundary(200)", lambda c: BoundaryAttack(
        c, targeted=False, max_iter=200, batch_size=256, **quiet), n=8)  # fmt: skip
    fb_hsj = rivals.foolbox(server, "HopSkipJump(10, 1000)", HopSkipJumpAttack(steps=10, max_gradient_eval_steps=1000), n=64)
    fb_boundary = rivals.foolbox(server, "Boundary(1000)", FoolboxBoundary(steps=1000), n=64)
    side_by_side(
        f"{server.name}: wall time to the same median distance, loopback; HopSkipJump's ratios "
        + ", ".join(f"{sooner(ours, theirs):.1f}" for theirs, ours, _ in rounds),
        [
            _ours(f"hopskipjump, {hsj.sections} sections", hsj),
            _ours("hopskipjump from 60 probes", small),
            _ours(f"sign-opt, {sign.sections} sections", sign),
            _theirs(art_hsj, faster(book, server, hsj, art_hsj, 8, "hopskipjump")),
            _theirs(art_hsj, faster(book, server, small, art_hsj, None, "hopskipjump from 60 probes")),
            _theirs(art_sign, faster(book, server, sign, art_sign, 40, "sign-opt")),
            _theirs(art_boundary, faster(book, server, hsj, art_boundary, None, "hopskipjump")),
            _theirs(fb_hsj, faster(book, server, hsj, fb_hsj, None, "hopskipjump")),
            _theirs(fb_boundary, faster(book, server, hsj, fb_boundary, None, "hopskipjump")),
        ],
    )


def square(book: Book, server: Server) -> None:
    """Square beside ART's: the same success rate, in what time, with how many rows."""
    from art.attacks.evasion import SquareAttack

    eps = 0.15
    theirs = rivals.art(server, "Square(500)", lambda c: SquareAttack(
        c, norm=np.inf, eps=eps, max_iter=500, p_init=0.3, batch_size=64, verbose=False), n=64)  # fmt: skip
    ours = attack(server, Square(p_init=0.3), threat(server, "linf", eps, 500))
    wanted = min(theirs.fell, len(ours.fallen))
    asked = sorted(outcome.queries for outcome in ours.outcomes)
    seconds = ours.fallen[wanted - 1]
    # those that fell took what they took; the others had asked as often as the last of these when it fell
    rows = sum(min(queries, asked[wanted - 1]) for queries in asked)
    name = f"{server.name} square linf against ART's, at {wanted} of 64 fallen"
    tabled(
        f"{server.name}: Square to the same success rate, eps {eps:g} of the range",
        ("attack", "fell", "wall s", "rows", "requests", "ours faster", "ours of their rows"),
        [
            ("ours, until as many fell", str(wanted), f"{seconds:.3f}", f"{rows:,}", "", "", ""),
            ("ours, to its end", str(len(ours.fallen)), f"{ours.wall_s:.3f}", f"{ours.rows:,}", f"{ours.requests:,}", "", ""),
            (
                theirs.name, str(theirs.fell), f"{theirs.wall_s:.3f}", f"{theirs.rows:,}", f"{theirs.requests:,}",
                book.ratio(f"{name}: wall time", theirs.wall_s / seconds, 1.0),
                book.ratio(f"{name}: rows", rows / theirs.rows, 1 / 3, better="lower", unit="share"),
            ),
        ],
    )  # fmt: skip


def far(book: Book, server: Server) -> None:
    """The same with 10 ms more of round trip: lockstep and section search are what counts."""
    from art.attacks.evasion import HopSkipJump as ArtHopSkipJump
    from art.attacks.evasion import SignOPTAttack

    with delayed(server.target, 5.0) as target:
        hsj = attack(server, HopSkipJump(), threat(server, "l2", NEVER, 8000), target=target, sections="auto")
        sign = attack(server, SignOPT(), threat(server, "l2", NEVER, 8000), target=target, sections="auto")
        art_hsj = rivals.art(
            server, "HopSkipJump(20, 1000)",
            lambda c: ArtHopSkipJump(c, norm=2, max_iter=20, max_eval=1000, init_eval=100, batch_size=256, verbose=False),
            n=16, target=target,
        )  # fmt: skip
        art_sign = rivals.art(
            server, "SignOPT(2000)",
            lambda c: SignOPTAttack(c, targeted=False, query_limit=2000, eval_perform=False, verbose=False),
            n=1, target=target,
        )  # fmt: skip
    side_by_side(
        f"{server.name}: wall time to the same median distance, 10 ms of added round trip",
        [
            _ours(f"hopskipjump, {hsj.sections} sections", hsj),
            _ours(f"sign-opt, {sign.sections} sections", sign),
            _theirs(art_hsj, faster(book, server, hsj, art_hsj, 30, "at 10 ms, hopskipjump")),
            _theirs(art_sign, faster(book, server, sign, art_sign, 30, "at 10 ms, sign-opt")),
        ],
    )


PARTS = ("throughput", "square", "distances", "far", "resnet")


def main(parts: Sequence[str]) -> None:
    """All parts, or those that are named; the others' figures stay as they were."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        sys.exit(f"expected parts of {', '.join(PARTS)}, got {', '.join(unknown)}")
    wanted = parts or PARTS
    keep_memory(STACK_MIB)
    book = Book()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(wanted) - {"resnet"}:
            with serve("lenet-digits", folder) as lenet:
                capacity(lenet, 64, labels_only=False)  # first requests grow buffers
                if "throughput" in wanted:
                    throughput(book, lenet, [
                        (HopSkipJump(), "l2", 0.85), (NES(), "linf", 0.85), (NAttack(), "linf", 0.85),
                        (SignOPT(), "l2", 0.85), (Square(), "linf", 0.5),
                    ], 2000, repeats=5)  # fmt: skip
                for part, measure in (("square", square), ("distances", distances), ("far", far)):
                    if part in wanted:
                        measure(book, lenet)
        if "resnet" in wanted:
            if (data_folder(None) / "cifar10-resnet").is_dir():
                with serve("cifar10-resnet20-stage1", folder) as resnet:
                    capacity(resnet, 64, labels_only=False)
                    every = [(kind(), norm, 0.9) for kind in ATTACKS for norm in kind.norms if kind.feedback != "none"]
                    attack(resnet, NES(), threat(resnet, "l2", NEVER, 100))  # as much memory as any: new pages are slow
                    throughput(book, resnet, every, 100, repeats=3)
            else:
                console.print(f"resnet: no weights in {data_folder(None)}, not measured; set LATENTBED_DATA")
    out = ROOT / "benchmarks" / "results" / "attacks.json"
    measured = {result["name"] for result in book.results}
    before = json.loads(out.read_text()) if parts and out.exists() else []
    kept = [result for result in before if result["name"] not in measured]
    out.write_text(json.dumps(kept + book.results, indent=1) + "\n")
    console.print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
