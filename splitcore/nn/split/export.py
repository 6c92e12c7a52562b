"""The artefact of a network that was cut: both halves in ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from splitcore.artefact import HEAD, ONNX_TAIL, Architecture, Artefact
from splitcore.codec import CodecConfig
from splitcore.data import Dataset
from splitcore.errors import ArtefactError, ScenarioError
from splitcore.head import as_unit
from splitcore.latent import F32
from splitcore.nn.export import MAX_SAMPLES, write_halves
from splitcore.nn.split.graph import FIXED_BATCH, Cut, Graph
from splitcore.nn.split.halves import head_of, tail_of, whole_of
from splitcore.nn.split_model import measure
from splitcore.onnx_session import open_session

ROWS = 64
CALIBRATION = 2000
"""training images by which the latent's ranges are set, at most"""


def split(
    graph: Graph, cut: Cut, folder: Path, *, name: str, calibration: Dataset, samples: Dataset, codec: CodecConfig,
    mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,),
) -> Artefact:  # fmt: skip
    """Writes head, tail and manifest. Raises ScenarioError where the data is not the network's, ArtefactError where the
    halves do not say what the whole does."""
    if samples.shape != graph.image_shape or len(samples.classes) != graph.classes:
        raise ScenarioError(
            f"{graph.what} wants images {list(graph.image_shape)} and knows {graph.classes} classes, {samples.name} has "
            f"{list(samples.shape)} and {len(samples.classes)}: name the data set that the network was trained on"
        )
    head, tail, whole = head_of(graph, cut, mean, std), tail_of(graph, cut), whole_of(graph, mean, std)
    images = samples.images[:MAX_SAMPLES]
    latents, unsplit = run(head, "latent", images), run(whole, "logits", images)
    logits = run(tail, "logits", latents)
    furthest = float(np.abs(logits - unsplit).max())
    if (logits.argmax(1) != unsplit.argmax(1)).any() or not furthest <= 1e-3 * max(float(np.abs(unsplit).max()), 1.0):
        raise ArtefactError(f"cut at {cut.name}, logits are up to {furthest:.3g} off those of the whole network")
    ranges = run(head, "latent", calibration.images[:CALIBRATION])

    def put(fresh: Path) -> None:
        onnx.save(head, fresh / HEAD)
        onnx.save(tail, fresh / ONNX_TAIL)

    return write_halves(
        put, samples, folder, unsplit=unsplit.argmax(axis=1), latent=measure([torch.from_numpy(ranges)]), codec=codec,
        name=name, approach="split", cut=cut.name, tail=Architecture(net="onnx"),
        made_with={"model": Path(graph.what).name, "onnx": str(onnx.__version__)},
    )  # fmt: skip


def run(model: ModelProto, output: str, given: NDArray[Any]) -> F32:
    """Of images uint8 or latents float32 [n, ...], a few at a time. Raises ScenarioError where ONNX Runtime refuses."""
    name = model.graph.input[0].name
    session = open_session(model.SerializeToString(), f"what leads from {name} to {output}", ScenarioError)
    parts = [np.asarray(given[at : at + ROWS]) for at in range(0, len(given), ROWS)]
    unit = [as_unit(part) if part.dtype == np.uint8 else part for part in parts]
    try:
        return np.concatenate([cast(F32, session.run([output], {name: part})[0]) for part in unit])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ScenarioError(
            f"ONNX Runtime cannot run {name} to {output} with several images at once: {error}: {FIXED_BATCH}"
        ) from error
