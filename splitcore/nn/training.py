"""Training: from a recipe to a split model with frozen ranges. Same recipe, same machine, same weights.

A recipe with pretrained weights loads them instead, and has its ranges calibrated alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from splitcore.data import Dataset, load
from splitcore.errors import ScenarioError
from splitcore.nn.pretrained import load_pretrained
from splitcore.nn.recipe import Recipe
from splitcore.nn.split_model import SplitModel, as_unit, calibrate


def pick_device(name: str) -> torch.device:
    """`auto`: cuda where there is one. Raises ScenarioError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ScenarioError(f"expected a device auto, cpu or cuda, got {name[:32]!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ScenarioError("expected a CUDA device, torch finds none: use --device cpu or auto")
    return device


def build(recipe: Recipe, dataset: Dataset) -> SplitModel:
    """The recipe's network for this data, with fresh weights from torch's generator."""
    head = recipe.net.head(dataset.shape, *moments(dataset.images))
    tail = recipe.net.tail(recipe.net.latent_shape(dataset.shape), len(dataset.classes))
    return SplitModel(head, recipe.bottleneck.build(), tail)


def moments(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation [C] of images uint8 [n, C, H, W] taken as 0 to 1."""
    value = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        # by the histogram: exact, and no float copy of the whole data set
        share = np.bincount(images[:, channel].ravel(), minlength=256) / images[:, channel].size
        mean.append(float(share @ value))
        std.append(max(float(share @ (value - mean[-1]) ** 2) ** 0.5, 1e-3))
    return mean, std


def train(
    recipe: Recipe, data_dir: Path | None = None, *, progress: bool = True, device: str = "auto", threads: int = 1
) -> SplitModel:
    """Trains or loads, calibrates and freezes. Raises DataError, ScenarioError.

    One thread unless told otherwise: for networks this small more threads cost about what they give, and sums in another
    order make other weights.
    """
    where = pick_device(device)
    dataset = load(recipe.dataset, "train", data_dir)
    cuda = [where] if where.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        torch.backends.cudnn.flags(deterministic=True, benchmark=False),
        set_threads(threads),
    ):
        torch.manual_seed(recipe.seed)
        # channels last: a quarter less time on a CPU
        model = build(recipe, dataset).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.from_numpy(dataset.images).to(where)
        labels = torch.from_numpy(dataset.labels).to(where)
        if recipe.pretrained is None:
            _fit(model, recipe, images, labels, progress=progress)
        else:
            load_pretrained(model, recipe.pretrained, data_dir)
        model.to(memory_format=torch.contiguous_format)
        model.freeze(calibrate(model.head, images))
    return model  # type: ignore[no-any-return]


@contextlib.contextmanager
def set_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(model: SplitModel, recipe: Recipe, images: Tensor, labels: Tensor, *, progress: bool) -> None:
    model.train()
    # batch normalisation needs two images, so a last batch of one is left to the next epoch's order
    steps = len(images) // recipe.batch + (len(images) % recipe.batch > 1)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=steps * recipe.epochs)
    criterion = nn.CrossEntropyLoss()
    order = torch.Generator().manual_seed(recipe.seed)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task(f"training {recipe.name}", total=steps * recipe.epochs, loss=float("nan"))
        for _ in range(recipe.epochs):
            shuffled = torch.randperm(len(images), generator=order).to(images.device)
            for rows in torch.split(shuffled, recipe.batch)[:steps]:
                x = augment(images[rows], recipe.augment, order)
                pixels = as_unit(x).contiguous(memory_format=torch.channels_last)
                loss: Tensor = criterion(model(pixels), labels[rows]) + model.bottleneck.penalty()
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
                bar.advance(task)
            bar.update(task, loss=float(loss.detach()))


def augment(images: Tensor, how: str, rng: torch.Generator) -> Tensor:
    """Each image [k, C, H, W] shifted by up to an eighth of its side, black moving in, and mirrored half the time."""
    if how == "none":
        return images
    k, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = nn.functional.pad(images, (pad, pad, pad, pad))
    dy, dx = torch.randint(0, 2 * pad + 1, (2, k, 1), generator=rng)
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    if how == "shift_flip":
        mirrored = torch.rand(k, 1, generator=rng) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    which = torch.arange(k, device=images.device)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
