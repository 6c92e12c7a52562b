"""Heads in int8 against float32 in ONNX Runtime, in one run, with what they do to the latent. `make bench-heads`.

ResNet-50 from its stem to layer 1 at 3 x 224 x 224, as torchvision names it, with seeded weights: times do not depend on what
a network learned. Accuracy does: it is measured for the digits (trained in this run, ten seconds) and, where LATENTBED_DATA has
the weights, for the CIFAR ResNet-20 cut after stage 2, through codec and tail.
One image at a time on one thread; the heads take turns, a ratio is the median of the rounds'.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mobile_client.bench import measure  # noqa: E402
from mobile_client.settings import Row, settings  # noqa: E402
from splitcore.artefact import Artefact, HeadName  # noqa: E402
from splitcore.data import Dataset, load  # noqa: E402
from splitcore.errors import DataError  # noqa: E402
from splitcore.head import names  # noqa: E402
from splitcore.nn.bottleneck.uniform import UniformBottleneck  # noqa: E402
from splitcore.nn.export import export  # noqa: E402
from splitcore.nn.net.resnet import ResNet  # noqa: E402
from splitcore.nn.quantise.add import add_int8, calibration_images  # noqa: E402
from splitcore.nn.recipe import Recipe, load_recipe  # noqa: E402
from splitcore.nn.split_model import SplitModel, calibrate  # noqa: E402
from splitcore.nn.training import train  # noqa: E402

ROUNDS, LONGEST_S = 60, 120.0
BAR, MOST_LOST = 1.4, 1.0
"""times as fast as float32, for ResNet-50; points of accuracy lost at most, for what is trained"""
RECIPES = ("digits", "cifar10-resnet20-stage2")
SHAPE = (3, 224, 224)
console = Console(width=120)


def scenes(k: int, seed: int) -> NDArray[np.uint8]:
    """k smooth images [k, *SHAPE]: Gaussian fields with a falling spectrum, as photographs have."""
    rng = np.random.default_rng(seed)
    C, H, W = SHAPE
    spectrum = (0.02 + np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None])) ** -1.5
    z = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((k, C, H, W))) * spectrum, (H, W))
    return np.clip(128 + 50 * z / z.std(), 0, 255).astype(np.uint8)


def resnet50(folder: Path) -> Artefact:
    """The network with its own tail of two classes, and no training."""
    torch.manual_seed(0)
    net, bottleneck = ResNet(depth=50, cut="layer1"), UniformBottleneck(per="channel")
    head = net.head(SHAPE, (0,), (1,)).eval()
    calibration = scenes(32, 2)
    latent = calibrate(head, torch.from_numpy(calibration), batch=8)
    model = SplitModel(head, bottleneck.build(), net.tail(latent.shape, 2))
    model.freeze(latent)
    # a recipe says what the network is; its one epoch is not trained
    recipe = Recipe(name="resnet50-layer1", dataset="imagenet", net=net, bottleneck=bottleneck, epochs=1)
    samples = Dataset(scenes(16, 1), np.arange(16) % 2, ("a", "b"), "smooth fields", "test")
    return add_int8(export(model, recipe, samples, folder), calibration, f"{len(calibration)} smooth fields", folder)


def trained(recipe: str, folder: Path) -> Artefact | None:
    """None where its weights or data are not there."""
    chosen = load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
    try:
        model = train(chosen, progress=False, device="cpu")
        held_out: Dataset = load(chosen.dataset, "test", progress=False)
    except DataError as error:
        console.print(f"{recipe}: not measured: {error}")
        return None
    plain = export(model, chosen, held_out, folder)
    return add_int8(plain, *calibration_images(plain, None, 256, None), folder)


class Book:
    """What is printed, and what is written."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []

    def note(self, name: str, value: float, unit: str, better: str, bar: float | None = None) -> None:
        self.results.append({"name": name, "value": round(value, 4), "unit": unit, "bar": bar, "better": better})
        if bar is not None:
            missed = value < bar if better == "higher" else value > bar
            console.print(f"{name}: {value:.2f} {unit}, bar {bar}: {'[bold red]missed' if missed else 'met'}")

    def rows(self, what: str, artefact: Artefact, rows: list[Row], *, learned: bool) -> None:
        table = Table(box=None, header_style="bold", title=f"{what}: one image, one thread")
        for column in ("head", "median ms", "as fast as float32", "SNR, dB", "points lost"):
            table.add_column(column, justify="left" if column == "head" else "right")
        fastest: HeadName = max((row for row in rows), key=lambda row: row.ratio).setting.head
        for row in rows:
            head = row.setting.head
            made = artefact.manifest.heads.get(head)
            lost = "" if made is None or not learned else f"{made.points_lost:.2f}"
            table.add_row(head, f"{row.median_ms:.3f}", f"{row.ratio:.2f}", f"{row.snr_db:.1f}", lost)
            self.note(f"{what}, {head}: head", row.median_ms, "ms", "lower")
        console.print(table)
        for row in rows:
            head = row.setting.head
            made = artefact.manifest.heads.get(head)
            if made is None:
                continue
            # a device takes the faster of the two: the bar is for that one
            self.note(f"{what}, {head}: over float32", row.ratio, "x", "higher", None if learned or head != fastest else BAR)
            self.note(f"{what}, {head}: SNR of the latent", row.snr_db, "dB", "higher")
            if learned:
                self.note(f"{what}, {head}: accuracy lost", made.points_lost, "points", "lower", MOST_LOST)


def main() -> None:
    book = Book()
    load_1min = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    console.print(f"{platform.machine()}, ONNX Runtime {onnxruntime.__version__}, {load_1min}")
    with tempfile.TemporaryDirectory() as scratch:
        artefact = resnet50(Path(scratch) / "resnet50")
        ways = settings(names(artefact), 1)
        book.rows("ResNet-50, stem to layer 1", artefact, measure(artefact, ways, ROUNDS, LONGEST_S), learned=False)
        for recipe in RECIPES:
            made = trained(recipe, Path(scratch) / recipe)
            if made is not None:
                book.rows(recipe, made, measure(made, ways, 5 * ROUNDS, LONGEST_S), learned=True)
    out = ROOT / "benchmarks" / "results" / "heads.json"
    out.write_text(json.dumps(book.results, indent=1) + "\n")
    console.print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
