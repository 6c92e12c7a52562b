"""A head's graph in int8, its latent in float: ONNX Runtime's static quantisation, as pairs of nodes around each layer (QDQ).

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018:
weights int8, symmetric, a scale for each output channel; activations with one scale and zero point a tensor, calibrated.
QDQ, not QOperator: with both int8, QOperator is three to four times slower than float32 on x86. Constants are folded first,
for a network may compute its weights in the graph (GDN clamps its own), and what is no constant is not quantised as one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from splitcore.artefact import HEADS, INT8_S8, INT8_U8, HeadName
from splitcore.errors import ArtefactError
from splitcore.head import as_unit
from splitcore.nn.export import quiet

ACTIVATIONS: dict[HeadName, QuantType] = {INT8_U8: QuantType.QUInt8, INT8_S8: QuantType.QInt8}
"""uint8 is what x86 multiplies fast, int8 what 64-bit ARM does; a device measures which"""
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
PER_CHANNEL = 13
"""ONNX's first operator set with a scale for each channel"""
BATCH = 8
"""calibration images at once; every tensor of the graph is in memory for them"""


def write_int8(head: Path, images: NDArray[np.uint8], folder: Path) -> dict[HeadName, Path]:
    """Name to file in `folder`, one of each of ACTIVATIONS. `images` uint8 [n, C, H, W] calibrate."""
    written: dict[HeadName, Path] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folded = Path(scratch) / "folded.onnx"
        fold(head, folded)
        graph = onnx.load(folded)
        kept = float_end(graph)
        if not any(node.op_type in WEIGHTED and node.name not in kept for node in graph.graph.node):
            raise ArtefactError(
                "expected a head with a layer of weights before the one that makes the latent, got none: nothing in it can be "
                "int8, so it stays as it is, in float32"
            )
        for name, activations in ACTIVATIONS.items():
            written[name] = folder / HEADS[name]
            try:
                with quiet():
                    quantize_static(
                        folded, written[name], Images(images), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=activations, weight_type=QuantType.QInt8, nodes_to_exclude=kept,
                    )  # fmt: skip
            except Exception as error:  # its exceptions share no base class
                raise ArtefactError(
                    f"expected a head that ONNX Runtime {ort.__version__} can quantise, got one that it refuses: "
                    f"{type(error).__name__}: {error}"
                ) from error
    return written


def fold(source: Path, target: Path) -> None:
    """`source` with constants folded, batch normalisation in the convolutions, a name for every node, and an opset that knows
    a scale for each channel."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    model = onnx.load(target)
    if any(not opset.domain and opset.version < PER_CHANNEL for opset in model.opset_import):
        model = onnx.version_converter.convert_version(model, PER_CHANNEL)
    for number, node in enumerate(model.graph.node):
        # networks that others exported may have nameless nodes, and what stays in float is told by name
        node.name = node.name or f"{node.op_type}_{number}"
    onnx.save(model, target)


def float_end(model: onnx.ModelProto) -> list[str]:
    """Names of the last nodes, from a layer with weights to the latent: they stay in float32.

    From the output against the arrows, past what has no weights, to the first that has; a tensor that others read too ends
    the walk, for what made it works for them as well (the shortcut of a residual block).
    """
    graph = model.graph
    maker = {output: node for node in graph.node for output in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for tensor in node.input:
            readers[tensor] = readers.get(tensor, 0) + 1
    kept: list[str] = []
    waiting = [output.name for output in graph.output]
    while waiting:
        tensor = waiting.pop()
        if tensor not in maker or readers.get(tensor, 0) > 1 or maker[tensor].name in kept:
            continue
        node = maker[tensor]
        kept.append(node.name)
        if node.op_type not in WEIGHTED:
            waiting += node.input
    return kept


class Images(CalibrationDataReader):  # type: ignore[misc]
    """uint8 images in batches, as the head takes them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = (images[i : i + BATCH] for i in range(0, len(images), BATCH))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": as_unit(batch)}
