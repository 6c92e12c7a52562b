"""Every head of an artefact in every setting of threads on this phone, one image at a time, and what to use. No torch.

The settings take turns, image after image, so that a clock that changes or a neighbour that wakes meets all of them; medians.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from mobile_client.settings import Decision, Row, Setting, choose, cores, device, settings
from splitcore.artefact import FLOAT32, Artefact
from splitcore.head import Head, names
from splitcore.snr import snr_db

ROUNDS, LONGEST_S = 40, 20.0
"""of a measurement: so many rounds, or so long"""
FEWEST = 5
"""rounds at least, however long they take"""
COMPARED = 16
"""samples whose latents are compared"""
DECISION = "head.json"
"""in the phone's state: what `--head auto` chose, as long as it holds"""


def decide(
    artefact: Artefact, *, max_points_lost: float = 1.0, threads: int | None = None, rounds: int = ROUNDS,
    longest_s: float = LONGEST_S,
) -> Decision:  # fmt: skip
    """Measures; `threads` at most, None: the cores that this process may use. Raises ArtefactError."""
    rows = measure(artefact, settings(names(artefact), threads or cores()), rounds, longest_s)
    setting, refused = choose(rows, artefact.manifest.heads, max_points_lost)
    return Decision(
        setting=setting, refused=refused, rows=tuple(rows), max_points_lost=max_points_lost, made_on=device(artefact)
    )


def measure(artefact: Artefact, ways: Sequence[Setting], rounds: int, longest_s: float) -> list[Row]:
    """One row a setting. `ways` have float32 with each setting of threads."""
    images = artefact.samples[0]
    heads = {way: Head(artefact, way.threads, name=way.head, spinning=way.spinning) for way in ways}
    snr = {way: _snr(heads[way], Head(artefact), images[:COMPARED]) for way in ways}  # this warms them up too
    took: dict[Setting, list[float]] = {way: [] for way in ways}
    end = time.perf_counter() + longest_s
    for n in range(rounds):
        image = images[n % len(images)][None]
        first = n % len(ways)
        for way in [*ways[first:], *ways[:first]]:
            start = time.perf_counter()
            heads[way].from_uint8(image)
            took[way].append(time.perf_counter() - start)
        if n + 1 >= FEWEST and time.perf_counter() > end:
            break
    rows = []
    for way in ways:
        plain = np.array(took[way.model_copy(update={"head": FLOAT32})])
        own = np.array(took[way])
        ratio = float(np.median(plain / own))
        rows.append(Row(setting=way, median_ms=1e3 * float(np.median(own)), ratio=ratio, snr_db=snr[way]))
    return rows


def _snr(head: Head, reference: Head, images: NDArray[np.uint8]) -> float:
    power = noise = 0.0
    for image in images:
        meant = reference.from_uint8(image[None])
        power += float(np.square(meant, dtype=np.float64).sum())
        noise += float(np.square(head.from_uint8(image[None]) - meant, dtype=np.float64).sum())
    return snr_db(power, noise)


def decided(artefact: Artefact, state: Path, *, max_points_lost: float = 1.0) -> Decision:
    """The decision in the phone's state where it still holds, else a new one, which is kept there."""
    path = state / DECISION
    try:
        before = Decision.model_validate_json(path.read_bytes())
        if before.holds(artefact, max_points_lost):
            return before
    except (OSError, ValidationError):
        pass  # none, or of another version: measured again
    decision = decide(artefact, max_points_lost=max_points_lost)
    keep(decision, path)
    return decision


def keep(decision: Decision, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(decision.model_dump_json(indent=1) + "\n")
    temporary.replace(path)


def show(decision: Decision, artefact: Artefact, console: Console) -> None:
    table = Table(title=f"{artefact.manifest.name}: heads on this device, one image at a time", box=None, header_style="bold")
    for column in ("head", "threads", "median ms", "as fast as float32", "SNR, dB", "points lost"):
        table.add_column(column, justify="left" if column == "head" else "right")
    for row in decision.rows:
        way, made = row.setting, artefact.manifest.heads.get(row.setting.head)
        table.add_row(
            way.head, f"{way.threads}{' spinning' * way.spinning}", f"{row.median_ms:.3f}",
            "" if made is None else f"{row.ratio:.2f} x", "" if made is None else f"{row.snr_db:.1f}",
            "" if made is None else f"{made.points_lost:.2f}",
        )  # fmt: skip
    console.print(table)
    for name, reason in decision.refused.items():
        console.print(f"not recommended: {name}: {reason}", soft_wrap=True)
    way = decision.setting
    options = f"--head {way.head} --threads {way.threads}{' --spinning' * way.spinning}"
    console.print(f"recommended: [bold]{options}[/]", soft_wrap=True)
    if not artefact.manifest.heads:
        console.print("the artefact has no heads in int8: `latentbed quantise ARTEFACT` makes them", soft_wrap=True)
