"""Training: from a recipe to a split model with frozen ranges. Same recipe, same machine, same weights.

A recipe with pretrained weights loads them instead, and has its ranges calibrated alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splitcore.data import Dataset, load
from splitcore.errors import ScenarioError
from splitcore.nn.bottleneck import IdentityBottleneck
from splitcore.nn.checkpoint import Checkpoint
from splitcore.nn.fit import Fit
from splitcore.nn.net.narrow import Narrow, Teacher
from splitcore.nn.pretrained import fill_rest, load_pretrained
from splitcore.nn.recipe import Recipe
from splitcore.nn.split_model import SplitModel, calibrate
from splitcore.nn.stage import Stage


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
    recipe: Recipe, data_dir: Path | None = None, *, progress: bool = True, device: str = "auto", threads: int = 1,
    keep: Path | None = None, compiled: bool = False,
) -> SplitModel:  # fmt: skip
    """Trains or loads, calibrates and freezes. Raises DataError, ScenarioError.

    One thread unless told otherwise: for networks this small more threads cost about what they give, and sums in another
    order make other weights. `keep`: a folder for checkpoints; a training that was cut off goes on from the one in it, to the
    same weights. On a GPU in bfloat16 where it has that; `compiled`: by torch.compile.
    """
    where = pick_device(device)
    dataset = load(recipe.dataset, "train", data_dir)
    cuda = [where] if where.type == "cuda" else []
    bf16 = bool(cuda) and torch.cuda.is_bf16_supported()
    with (
        torch.random.fork_rng(devices=cuda),
        torch.backends.cudnn.flags(deterministic=True, benchmark=False),
        set_threads(threads),
    ):
        torch.manual_seed(recipe.seed)
        images = torch.from_numpy(dataset.images).to(where)
        labels = torch.from_numpy(dataset.labels).to(where)
        # what the same state would not go on from in the same way
        key = f"{recipe.digest} {torch.__version__} {where.type} {threads} {compiled}"

        def fit(model: SplitModel, stages: Sequence[Stage], name: str, teacher: SplitModel | None = None) -> None:
            if compiled:
                model.head.compile()
                model.tail.compile()
            checkpoint = None if keep is None else Checkpoint(keep / f"{name}.pt", key)
            fitting = Fit(
                model, teacher, images, labels, seed=recipe.seed, moved=recipe.augment, checkpoint=checkpoint, bf16=bf16
            )
            fitting.run(stages, name, progress=progress)
            for part in (model.head, model.tail):
                part._compiled_call_impl = None  # what is exported is the plain module

        model, teacher = build(recipe, dataset), None
        if recipe.teacher is not None and isinstance(recipe.net, Narrow):
            teacher = _whole(recipe.net.teacher, dataset)
            if recipe.teacher.pretrained is not None:
                load_pretrained(teacher, recipe.teacher.pretrained, data_dir, progress=progress)
            _to(teacher, where)
            if recipe.teacher.stages:
                fit(teacher, recipe.teacher.stages, f"{recipe.name}-teacher")
            fill_rest(model, teacher.tail.state_dict())
        _to(model, where)
        if recipe.pretrained is not None:
            load_pretrained(model, recipe.pretrained, data_dir, progress=progress)
        fit(model, recipe.training, recipe.name, teacher)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.freeze(calibrate(model.head, images))
    return model


def _whole(net: Teacher, dataset: Dataset) -> SplitModel:
    """A teacher as it is, with nothing at its cut."""
    head = net.head(dataset.shape, *moments(dataset.images))
    return SplitModel(head, IdentityBottleneck().build(), net.tail(net.latent_shape(dataset.shape), len(dataset.classes)))


def _to(model: SplitModel, device: torch.device) -> None:
    # channels last: a quarter less time on a CPU
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextlib.contextmanager
def set_threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
