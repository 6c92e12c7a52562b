"""Export: a trained split model as an artefact, the head in ONNX and the tail in safetensors.

Cut in torch, then export: a cut of the optimised ONNX graph would find batch normalisation folded and the latent gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from splitcore import artefact as artefacts
from splitcore.artefact import HEAD, MANIFEST, SAMPLES, TAIL, UNSPLIT_LABELS, Architecture, Artefact, Latent, Manifest
from splitcore.codec import CodecConfig
from splitcore.data import Dataset
from splitcore.errors import ArtefactError
from splitcore.head import Head
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck import Bottleneck
from splitcore.nn.recipe import Recipe
from splitcore.nn.split_model import SplitModel, as_unit, calibrate
from splitcore.nn.tail import build_own

MAX_SAMPLES = 1000
"""held-out images that an artefact carries at most"""
OPSET = 20
CHECKED = 64
"""samples on which an exported pair of modules is compared with what was given"""


def export(model: SplitModel, recipe: Recipe, dataset: Dataset, folder: Path) -> Artefact:
    """Writes a recipe's `model` to `folder`; `dataset` is the held-out split."""
    arguments = dataclasses.asdict(recipe.net)
    return _write(
        model, dataset, folder,
        name=recipe.name, approach=recipe.approach or "sc", cut=recipe.net.cut_at,
        tail=Architecture(net=arguments.pop("kind"), arguments=arguments),
        made_with={"recipe": recipe.digest, **_source(recipe)},
    )  # fmt: skip


def _source(recipe: Recipe) -> dict[str, str | int | float]:
    if recipe.pretrained is None:
        return {"epochs": sum(stage.epochs for stage in recipe.training), "seed": recipe.seed}
    return {"weights": recipe.pretrained.file, "weights_sha256": recipe.pretrained.sha256}


def export_split(
    head: nn.Module, bottleneck: Bottleneck, tail: nn.Module, *,
    name: str, tail_factory: str, tail_arguments: Mapping[str, Any], calibration: NDArray[np.uint8],
    samples: tuple[NDArray[np.uint8], NDArray[np.int64]], classes: Sequence[str], folder: Path,
    dataset: str = "own", approach: str = "own", cut: str = "between the two modules that were given",
    made_with: Mapping[str, str | int | float] | None = None,
) -> Artefact:  # fmt: skip
    """Writes a trained pair of your own: head, images [k, C, H, W] in [0, 1] to latents [k, ...]; tail, those to logits.

    `tail_factory` is `module:callable`, and the callable makes an untrained tail of `tail_arguments` (JSON): whoever loads the
    artefact needs that module, and has to trust it by name. `calibration` images uint8 [n, C, H, W], training ones, set the
    latent's ranges; `samples`, held-out images and labels, travel in the artefact. Raises ArtefactError, DataError.
    """
    model = SplitModel(head.cpu(), bottleneck.cpu(), tail.cpu())
    model.freeze(calibrate(model.head, torch.from_numpy(calibration)))
    held_out = Dataset(*samples, tuple(classes), dataset, "test")
    declared = _declared(tail_factory, tail_arguments)
    _check_factory(model, declared, held_out)
    artefact = _write(
        model, held_out, folder, name=name, approach=approach, cut=cut, tail=declared, made_with=dict(made_with or {})
    )
    check_head(model, artefact)
    return artefact


def _declared(factory: str, arguments: Mapping[str, Any]) -> Architecture:
    try:
        # as they will be read: JSON has no tuples
        return Architecture(net=factory, arguments=json.loads(json.dumps(dict(arguments), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ArtefactError(f"expected arguments of {factory} that JSON can carry, got {arguments}: {error}") from error


@torch.inference_mode()
def _check_factory(model: SplitModel, declared: Architecture, samples: Dataset) -> None:
    """The declared factory, with the weights, is the tail. Whoever exports runs his own code, and trusts it."""
    again = build_own(declared, trusted=(declared.net.partition(":")[0],)).eval()
    try:
        again.load_state_dict(model.tail.state_dict())
    except RuntimeError as error:
        raise ArtefactError(f"expected the given tail's weights to fit what {declared.net} builds: {error}") from error
    z = model.bottleneck(model.head(as_unit(torch.from_numpy(samples.images[:CHECKED]))))
    ours, theirs = model.tail(z), again(z)
    if ours.shape != (len(z), len(samples.classes)):
        raise ArtefactError(f"expected logits [{len(z)}, {len(samples.classes)}] from the tail, got {list(ours.shape)}")
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
        raise ArtefactError(
            f"expected {declared.net} with {declared.arguments} to compute what the given tail does, got logits up to "
            f"{float((ours - theirs).abs().max()):.3g} off: what is no weight or buffer must be in tail_arguments"
        )


@torch.inference_mode()
def check_head(model: SplitModel, artefact: Artefact) -> None:
    """The head in ONNX Runtime is the head in torch; where it is not, no artefact is left."""
    images = artefact.samples[0][:CHECKED]
    z = model.head(as_unit(torch.from_numpy(images))).numpy()
    furthest = float(np.abs(Head(artefact).from_uint8(images) - z).max())
    if not furthest <= 1e-3 * artefact.latent.range:
        (artefact.folder / MANIFEST).unlink()
        raise ArtefactError(
            f"expected latents of the ONNX head as in torch, got some {furthest:.3g} off: does the head depend on more than "
            "its input? torch.onnx.export keeps one path of Python's own ifs and loops"
        )


def _write(
    model: SplitModel, dataset: Dataset, folder: Path, *, name: str, approach: str, cut: str, tail: Architecture,
    made_with: dict[str, str | int | float],
) -> Artefact:  # fmt: skip
    model = model.cpu().eval()

    def put(fresh: Path) -> None:
        write_onnx(model.head, dataset.shape, fresh / HEAD)
        # save_file would leave it readable by its owner alone, and the edge may be another user; clones, since weights may be
        # tied and safetensors wants each in memory of its own
        weights = {key: value.contiguous().clone() for key, value in model.tail.state_dict().items()}
        (fresh / TAIL).write_bytes(save(weights))

    return write_halves(
        put, dataset, folder, unsplit=unsplit_labels(model, dataset.images[:MAX_SAMPLES]), latent=model.latent,
        codec=model.bottleneck.codec_config(), name=name, approach=approach, cut=cut, tail=tail,
        made_with={**made_with, "opset": OPSET, "torch": str(torch.__version__)},
    )  # fmt: skip


def write_halves(
    put: Callable[[Path], None], dataset: Dataset, folder: Path, *, unsplit: NDArray[np.int64], latent: LatentSpec,
    codec: CodecConfig, name: str, approach: str, cut: str, tail: Architecture, made_with: dict[str, str | int | float],
) -> Artefact:  # fmt: skip
    """An artefact in `folder`; `put` writes its two halves, `unsplit` are the whole network's labels of the samples.

    The old manifest goes first and the new one comes last, so that a folder with a manifest is whole even when the process is
    killed in between (renaming a folder would not do: in a container it is a mount point).
    """
    images, labels = dataset.images[:MAX_SAMPLES], dataset.labels[:MAX_SAMPLES]
    with _workshop(folder / ".export") as fresh:
        put(fresh)
        np.savez_compressed(fresh / SAMPLES, images=images, labels=labels)
        np.savez_compressed(fresh / UNSPLIT_LABELS, labels=unsplit)
        files = {path.name: artefacts.sha256(path) for path in sorted(fresh.iterdir())}
        (folder / MANIFEST).unlink(missing_ok=True)
        for file in files:
            (fresh / file).replace(folder / file)
    manifest = Manifest(
        name=name,
        approach=approach,
        cut=cut,
        input_shape=dataset.shape,
        preprocessing="uint8 / 255",
        latent=Latent(**dataclasses.asdict(latent)),
        codec=codec,
        classes=dataset.classes,
        tail=tail,
        dataset=dataset.name,
        accuracy=float(np.mean(unsplit == labels)),
        files=files,
        made_with={**made_with, "onnxruntime": str(onnxruntime.__version__)},
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
    with quiet():
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
def quiet() -> Iterator[None]:
    """The exporter speaks through print, warnings and loggers of its own; errors still rise."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
