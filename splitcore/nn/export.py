"""Export: a trained split model as an artefact, the head in ONNX and the tail in safetensors.

Cut in torch, then export: a cut of the optimised ONNX graph would find batch normalisation folded and the latent gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from splitcore import artefact as artefacts
from splitcore.artefact import HEAD, MANIFEST, SAMPLES, TAIL, UNSPLIT_LABELS, Architecture, Artefact, Latent, Manifest
from splitcore.data import Dataset
from splitcore.nn.recipe import Recipe
from splitcore.nn.split_model import SplitModel, as_unit

MAX_SAMPLES = 1000
"""held-out images that an artefact carries at most"""
OPSET = 20


def export(model: SplitModel, recipe: Recipe, dataset: Dataset, folder: Path) -> Artefact:
    """Writes `model` to `folder`; `dataset` is the held-out split.

    The old manifest goes first and the new one comes last, so that a folder with a manifest is whole even when the
    process is killed in between (renaming a folder would not do: in a container it is a mount point).
    """
    model = model.cpu().eval()
    images, labels = dataset.images[:MAX_SAMPLES], dataset.labels[:MAX_SAMPLES]
    unsplit = unsplit_labels(model, images)
    with _workshop(folder / ".export") as fresh:
        write_onnx(model.head, dataset.shape, fresh / HEAD)
        # save_file would leave it readable by its owner alone, and the edge may be another user
        (fresh / TAIL).write_bytes(save({key: value.contiguous() for key, value in model.tail.state_dict().items()}))
        np.savez_compressed(fresh / SAMPLES, images=images, labels=labels)
        np.savez_compressed(fresh / UNSPLIT_LABELS, labels=unsplit)
        files = {path.name: artefacts.sha256(path) for path in sorted(fresh.iterdir())}
        (folder / MANIFEST).unlink(missing_ok=True)
        for file in files:
            (fresh / file).replace(folder / file)
    arguments = dataclasses.asdict(recipe.net)
    manifest = Manifest(
        name=recipe.name,
        approach="sc",
        cut="after the head's last convolution",
        input_shape=dataset.shape,
        preprocessing="uint8 / 255",
        latent=Latent(**dataclasses.asdict(model.latent)),
        codec=model.bottleneck.codec_config(),
        classes=dataset.classes,
        tail=Architecture(net=arguments.pop("kind"), arguments=arguments),
        dataset=dataset.name,
        accuracy=float(np.mean(unsplit == labels)),
        files=files,
        made_with={
            "recipe": recipe.digest,
            "epochs": recipe.epochs,
            "seed": recipe.seed,
            "opset": OPSET,
            "torch": str(torch.__version__),
            "onnxruntime": str(onnxruntime.__version__),
        },
    )
    return artefacts.write(folder, manifest)


@contextlib.contextmanager
def _workshop(path: Path) -> Iterator[Path]:
    """An empty folder for the time of the body; what an earlier, killed export left in it goes."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@torch.inference_mode()
def unsplit_labels(model: SplitModel, images: NDArray[np.uint8], batch: int = 256) -> NDArray[np.int64]:
    """[n]: what the model says of images uint8 [n, C, H, W] without its bottleneck."""
    parts = torch.split(torch.from_numpy(images), batch)
    return torch.cat([model.unsplit(as_unit(part)).argmax(1) for part in parts]).numpy()


def write_onnx(head: nn.Module, input_shape: tuple[int, int, int], path: Path) -> None:
    """`image` float32 [batch, C, H, W] in [0, 1] to `latent` [batch, *shape], any batch size, one file."""
    # torch.export fixes a dimension of size 1, so the example batch is 2
    example = torch.zeros(2, *input_shape)
    with _quiet():
        program = torch.onnx.export(
            head,
            (example,),
            input_names=["image"],
            output_names=["latent"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph:
            # which module a node came from is worth keeping, the exporting machine's stack traces are not
            scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
            node.metadata_props.clear()
            if scopes is not None:
                node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
        program.save(str(path), external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks through print, warnings and loggers of its own; errors still rise."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
