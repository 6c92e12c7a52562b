"""The whole network as an artefact whose head is the identity: the phone sends the image, the edge does everything."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, compose, helper

from splitcore.artefact import HEAD, ONNX_TAIL, Architecture, Artefact
from splitcore.codec.uniform import Uniform
from splitcore.data import Dataset
from splitcore.errors import ArtefactError
from splitcore.latent import LatentSpec
from splitcore.nn.export import OPSET, quiet, write_halves
from splitcore.nn.split.export import run
from splitcore.nn.split.graph import BATCH
from splitcore.nn.split.halves import IMAGE, LATENT, LOGITS
from splitcore.nn.tail import load_tail

CODEC = Uniform(bits=8, per="tensor")
"""of images in [0, 1] that were uint8: its 255 steps are theirs, so nothing is lost"""


def whole_artefact(network: ModelProto, samples: Dataset, folder: Path, *, name: str) -> Artefact:
    """Of a network with one input, images [batch, C, H, W] in [0, 1], and one output, logits; normalisation inside."""
    channels = samples.shape[0]
    spread = float(np.std(samples.images.astype(np.float64) / 255))
    tail = called(network, LATENT, LOGITS)

    def put(fresh: Path) -> None:
        onnx.save(_identity(samples.shape, tail), fresh / HEAD)
        onnx.save(tail, fresh / ONNX_TAIL)

    logits = run(called(network, IMAGE, LOGITS), LOGITS, samples.images)
    return write_halves(
        put, samples, folder, unsplit=logits.argmax(axis=1),
        latent=LatentSpec(samples.shape, (0.0,) * channels, (1.0,) * channels, spread), codec=CODEC,
        name=name, approach="whole", cut="image", tail=Architecture(net="onnx"), made_with={"onnx": str(onnx.__version__)},
    )  # fmt: skip


def joined(artefact: Artefact, trusted: Collection[str] = ()) -> ModelProto:
    """Head and tail of an artefact in one graph. Raises ArtefactError where they cannot be."""
    head, tail = onnx.load(artefact.path(HEAD)), tail_graph(artefact, trusted)
    # compose wants one version of both; what the older of the two says, the newer one still means
    head.ir_version = tail.ir_version = max(head.ir_version, tail.ir_version)
    try:
        return compose.merge_models(head, tail, io_map=[(LATENT, LATENT)], prefix1="head/", prefix2="tail/")
    except (ValueError, onnx.checker.ValidationError) as error:
        raise ArtefactError(f"artefact {artefact.manifest.name}: its head and tail are no one graph: {error}") from error


def called(network: ModelProto, given: str, made: str) -> ModelProto:
    """The same network with these names of its input and its output, whatever its other tensors are called."""
    model = compose.add_prefix(network, "whole/")
    body = model.graph
    body.node.insert(0, helper.make_node("Identity", [given], [body.input[0].name]))
    body.node.append(helper.make_node("Identity", [body.output[0].name], [made]))
    body.input[0].name, body.output[0].name = given, made
    return model


def samples_of(artefact: Artefact) -> Dataset:
    """What travels in the artefact, as the data set that it is of."""
    images, labels = artefact.samples
    return Dataset(images, labels, artefact.manifest.classes, artefact.manifest.dataset, "test")


def _identity(shape: tuple[int, int, int], like: ModelProto) -> ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape]) for name in (IMAGE, LATENT)]
    body = helper.make_graph([helper.make_node("Identity", [IMAGE], [LATENT])], "identity", values[:1], values[1:])
    model = helper.make_model(body, opset_imports=like.opset_import)
    model.ir_version = like.ir_version
    return model


def tail_graph(artefact: Artefact, trusted: Collection[str] = ()) -> ModelProto:
    """An artefact's tail in ONNX: `latent` [batch, *shape] to `logits` [batch, classes]."""
    if artefact.manifest.tail.net == "onnx":
        return onnx.load(artefact.path(ONNX_TAIL))
    with quiet():
        program = torch.onnx.export(
            load_tail(artefact, trusted=trusted), (torch.zeros(2, *artefact.latent.shape),), input_names=[LATENT],
            output_names=[LOGITS], dynamic_shapes=({0: torch.export.Dim(BATCH)},), opset_version=OPSET, dynamo=True,
            verbose=False,
        )  # fmt: skip
    assert program is not None
    model: ModelProto = program.model_proto
    return model
