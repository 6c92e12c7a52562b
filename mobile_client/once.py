"""One pass from the command line, and what came of it as a small table."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mobile_client.passes import PassRequest
from mobile_client.phone import Phone, PhoneConfig
from mobile_client.record import FRAMES, PassRecord
from splitcore import journal
from splitcore.artefact import FLOAT32
from splitcore.telemetry.spans import Telemetry


async def once(state: Path, config: PhoneConfig, request: PassRequest, telemetry: str | None, console: Console) -> None:
    """Runs one pass and prints its table. Raises LatentbedError, OSError; asyncio.CancelledError after a signal."""
    task = asyncio.current_task()
    assert task is not None
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    folder = state / "passes" / request.run
    with (
        contextlib.closing(Telemetry(config.node, telemetry)) as spans,
        contextlib.closing(Phone(config, spans)) as phone,
        contextlib.closing(PassRecord(folder, request)) as record,
        _progress(console) as progress,
    ):
        bar = progress.add_task("frames", total=request.count, completed=len(record.done))
        running = asyncio.create_task(phone.run(record), name=f"pass {request.run}")
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=0.1)
                progress.update(bar, completed=len(record.done))
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        running.result()
    console.print(table_of(request.run, list(journal.read(folder / FRAMES))))
    console.print(f"journals: {folder}", soft_wrap=True)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def table_of(run: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Accuracy with its denominator, latency percentiles of the answered frames, errors, retries, bytes."""
    answered = [row for row in rows if row["error"] is None]
    labelled = [row for row in answered if row["label"] is not None]
    right = sum(row["label"] == row["predicted"] for row in labelled)
    table = Table(title=f"pass {run}", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("frames", f"{len(rows)}")
    table.add_row("accuracy", f"{right / len(labelled):.2%} ({right} of {len(labelled)})" if labelled else "no labels")
    if answered:
        total_ms = np.array([row["total_ms"] for row in answered])
        for percent in (50, 90, 99):
            table.add_row(f"latency p{percent}", f"{np.percentile(total_ms, percent):.2f} ms")
    table.add_row("head", ", ".join(sorted({row.get("head", FLOAT32) for row in rows})))
    table.add_row("late", f"{sum(row['late'] for row in rows)}")
    table.add_row("errors", f"{len(rows) - len(answered)}")
    table.add_row("asked again", f"{sum(row['attempts'] > 1 for row in rows)}")
    table.add_row("bytes up a frame", f"{np.mean([row['bytes_up'] for row in rows]):.0f}" if rows else "-")
    return table
