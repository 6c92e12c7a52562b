"""What the edge's detectors cost a row, and how Blacklight's parameters were chosen. `make bench-detectors`.

Cost: microseconds of processor time a row on one thread, batches of 1 and of 64; the stream is half clean latents and half
queries close to one of them, as under attack. Beside it, in the same run, the tail that the row then goes through (seeded
weights: times do not depend on what a network learned).
Choice: latents of the digits (a head trained in this run, all 1,797 images) and, where LATENTBED_DATA has the weights, of CIFAR
ResNet-20 cut after stage 1 (1,000 test images), through their codecs. False positives: clean latents, one after the other, that
are detected. Found: queries around a latent that was asked about before, of two kinds: Gaussian steps of a tenth of the ball's
radius in every value, as for a gradient estimate, and the radius twice in every twentieth value, as a square; the ball is linf,
0.5 std. Writes benchmarks/results/detectors.json.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edge_server.detectors import Asked, Blacklight, Detector, DetectorConfig, OutOfRange, QueryRate  # noqa: E402
from splitcore.codec import fit  # noqa: E402
from splitcore.data import load  # noqa: E402
from splitcore.errors import DataError  # noqa: E402
from splitcore.head import Head  # noqa: E402
from splitcore.latent import F32, LatentSpec  # noqa: E402
from splitcore.nn.export import export  # noqa: E402
from splitcore.nn.recipe import load_recipe  # noqa: E402
from splitcore.nn.training import train  # noqa: E402

SHAPES = {"digits": (8, 4, 4), "cifar10-resnet20-stage1": (16, 32, 32)}
DETECTORS: dict[str, DetectorConfig] = {
    "blacklight": Blacklight(seed=0),
    "blacklight, sha256": Blacklight(seed=0, hashing="sha256"),
    "query_rate": QueryRate(rows_per_s=50),
    "out_of_range": OutOfRange(),
}
STEPS, WINDOWS = (0.05, 0.1, 0.2, 0.3), (4, 8, 20, 50)
BAR = 5.0
"""times as fast as SHA-256 of every window"""
SECONDS = 1.0
console = Console(width=120)
results: list[dict[str, Any]] = []


def note(name: str, value: float, unit: str, better: str, bar: float | None = None) -> None:
    results.append({"name": name, "value": round(value, 4), "unit": unit, "bar": bar, "better": better})


def median_us(call: Callable[[], object], rows: int) -> float:
    """Of a row, over the calls of about a second: this process's time, so that others on the machine change little."""
    taken: list[float] = []
    call()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken) < 3:
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return float(np.median(taken)) / rows * 1e6


def stream(spec: LatentSpec, rows: int) -> F32:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((rows, *spec.shape)).astype(np.float32)
    close = rng.random(rows) < 0.5
    z[close] = z[0] + 0.02 * rng.standard_normal((int(close.sum()), *spec.shape)).astype(np.float32)
    return z


def costs() -> None:
    table = Table(box=None, header_style="bold", title="microseconds a row")
    for column in ("", *(f"{name}, {rows} a batch" for name in SHAPES for rows in (1, 64))):
        table.add_column(column, justify="left" if not column else "right")
    of: dict[str, list[float]] = {}
    for name, shape in SHAPES.items():
        spec = LatentSpec(shape, (-3.0,) * shape[0], (3.0,) * shape[0], 1.0)
        z = stream(spec, 1024)
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
        tail = recipe.net.tail(shape, 10).eval()
        for rows in (1, 64):
            of.setdefault("the tail", []).append(median_us(computing(tail, z[:rows]), rows))
            for what, config in DETECTORS.items():
                of.setdefault(what, []).append(median_us(watching(config.for_model(spec), z, rows), rows))
                note(f"{name}, {rows} a batch: {what}", of[what][-1], "us a row", "lower")
        fast, slow = of["blacklight"][-1], of["blacklight, sha256"][-1]
        note(f"{name}: multilinear hashes over SHA-256", slow / fast, "x", "higher", BAR)
        note(f"{name}, 64 a batch: blacklight over the tail", fast / of["the tail"][-1], "x", "lower")
    for what, figures in of.items():
        table.add_row(what, *(f"{us:,.1f}" for us in figures))
    console.print(table)


def computing(tail: torch.nn.Module, z: F32) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return tail(torch.from_numpy(z))

    return call


def watching(detector: Detector, z: F32, rows: int) -> Callable[[], object]:
    """The next batch of an endless stream in which no latent comes twice."""
    at, drift = 0, np.float32(0)

    def call() -> object:
        nonlocal at, drift
        at += rows
        if at + rows > len(z):
            at, drift = 0, drift + np.float32(1e-3)
        return detector.look(z[at : at + rows] + drift, [Asked(rows, "ipv4:10.0.0.7", time.monotonic_ns())])

    return call


def latents(name: str, folder: Path) -> tuple[LatentSpec, F32] | None:
    """As they arrive at the edge; None where data or weights are not there."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    try:
        held_out = load(recipe.dataset, "test", progress=False)
        artefact = export(train(recipe, progress=False, device="cpu"), recipe, held_out, folder)
        images = held_out.images[:1000]
        if name == "digits":
            images = np.concatenate([load("digits", "train", progress=False).images, held_out.images])
    except DataError as error:
        console.print(f"{name}: not measured: {error}")
        return None
    head = Head(artefact)
    pieces = [head(images[at : at + 50].astype(np.float32) / 255) for at in range(0, len(images), 50)]
    return artefact.latent, fit(artefact.manifest.codec, artefact.latent).snap(np.concatenate(pieces))


def choice(name: str, spec: LatentSpec, z: F32) -> None:
    rng = np.random.default_rng(2)
    eps, around = 0.5 * spec.std, z[:300]
    steps = around + (0.1 * eps * rng.standard_normal(around.shape)).astype(np.float32)
    squares = around.copy()
    places = rng.random(around.shape) < 0.05
    squares[places] += rng.choice(np.float32([-2 * eps, 2 * eps]), int(places.sum()))
    table = Table(box=None, header_style="bold", title=f"{name}: {len(z):,} clean latents, {len(around)} queries of each kind")
    for column in ("step, of the range", "w", "false positives", "found: small steps", "found: squares"):
        table.add_column(column, justify="right")
    for step in STEPS:
        for w in WINDOWS:
            config = Blacklight(step=step, w=w, seed=0, window=len(z))
            clean = config.for_model(spec)
            false = sum(len(clean.look(z[at : at + 50], [])) for at in range(0, len(z), 50)) / len(z)
            found = [share_found(config, spec, around, queries) for queries in (steps, squares)]
            ours = " (default)" if (step, w) == (Blacklight().step, Blacklight().w) else ""
            table.add_row(f"{step}{ours}", str(w), f"{false:.2%}", *(f"{share:.1%}" for share in found))
            if ours:
                note(f"{name}: false positives", 100 * false, "%", "lower", 1.0)
                note(f"{name}: small steps found", 100 * found[0], "%", "higher")
                note(f"{name}: squares found", 100 * found[1], "%", "higher")
    console.print(table)


def share_found(config: Blacklight, spec: LatentSpec, around: F32, queries: F32) -> float:
    """Each query right after the latent that it is about, and nothing else before."""
    watch, found = config.for_model(spec), 0
    for z, query in zip(around, queries, strict=True):
        watch.forget()
        found += 1 in watch.look(np.stack([z, query]), [])
    return found / len(around)


def main() -> None:
    torch.set_num_threads(1)
    console.print(f"{platform.machine()}, numpy {np.__version__}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    costs()
    with tempfile.TemporaryDirectory() as scratch:
        for name in SHAPES:
            found = latents(name, Path(scratch) / name)
            if found is not None:
                choice(name, *found)
    for result in results:
        if result["bar"] is not None:
            missed = result["value"] < result["bar"] if result["better"] == "higher" else result["value"] > result["bar"]
            console.print(f"{result['name']}: {result['value']:.2f} {result['unit']}, bar {result['bar']}: "
                          f"{'[bold red]missed' if missed else 'met'}")  # fmt: skip
    out = ROOT / "benchmarks" / "results" / "detectors.json"
    out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
