"""Head and tail of a network in ONNX at a cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from splitcore.errors import ScenarioError
from splitcore.nn.split.graph import BATCH, SIZE, Cut, Graph, inputs_of

IMAGE, LATENT, LOGITS = "image", "latent", "logits"
_OURS = "latentbed"
"""prefix of the names of what is added"""


def head_of(graph: Graph, cut: Cut, mean: Sequence[float], std: Sequence[float]) -> ModelProto:
    """`image` [batch, C, H, W] in [0, 1], normalised by `mean` and `std` of each channel, to `latent` [batch, *cut.shape]."""
    nodes, weights = _normalised(graph, mean, std)
    nodes += _made_for(graph, cut.tensors, known={graph.image})
    if len(cut.tensors) == 1:
        nodes.append(helper.make_node("Identity", list(cut.tensors), [LATENT]))
    else:
        rows = [f"{_OURS}/row{number}" for number in range(len(cut.tensors))]
        nodes += [helper.make_node("Flatten", [name], [row], axis=1) for name, row in zip(cut.tensors, rows, strict=True)]
        nodes.append(helper.make_node("Concat", rows, [LATENT], axis=1))
    return _model(graph, nodes, weights, (IMAGE, graph.image_shape), (LATENT, cut.shape))


def tail_of(graph: Graph, cut: Cut) -> ModelProto:
    """`latent` [batch, *cut.shape] to `logits` [batch, classes]."""
    # the size of the batch comes with the latent too
    nodes = [helper.make_node("Shape", [LATENT], [SIZE], start=0, end=1)]
    weights: list[TensorProto] = []
    if len(cut.tensors) == 1:
        nodes.append(helper.make_node("Identity", [LATENT], list(cut.tensors)))
    else:
        rows = [f"{_OURS}/row{number}" for number in range(len(cut.tensors))]
        sizes = np.array([np.prod(shape) for shape in cut.shapes], np.int64)
        weights.append(numpy_helper.from_array(sizes, f"{_OURS}/sizes"))
        nodes.append(helper.make_node("Split", [LATENT, f"{_OURS}/sizes"], rows, axis=1))
        for row, name, shape in zip(rows, cut.tensors, cut.shapes, strict=True):
            # 0 keeps the batch as it is
            weights.append(numpy_helper.from_array(np.array([0, *shape], np.int64), f"{row}/shape"))
            nodes.append(helper.make_node("Reshape", [row, f"{row}/shape"], [name]))
    nodes += _made_for(graph, [graph.logits], known={*cut.tensors, SIZE})
    nodes.append(helper.make_node("Identity", [graph.logits], [LOGITS]))
    return _model(graph, nodes, weights, (LATENT, cut.shape), (LOGITS, (graph.classes,)))


def whole_of(graph: Graph, mean: Sequence[float], std: Sequence[float]) -> ModelProto:
    """The network unsplit, `image` to `logits`: what the halves are held against."""
    nodes, weights = _normalised(graph, mean, std)
    nodes += _made_for(graph, [graph.logits], known={graph.image})
    nodes.append(helper.make_node("Identity", [graph.logits], [LOGITS]))
    return _model(graph, nodes, weights, (IMAGE, graph.image_shape), (LOGITS, (graph.classes,)))


def _normalised(graph: Graph, mean: Sequence[float], std: Sequence[float]) -> tuple[list[NodeProto], list[TensorProto]]:
    channels = graph.image_shape[0]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels) or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
            raise ScenarioError(
                f"expected as {name} one number or one for each of {channels} channels, finite and for std above 0, "
                f"got {list(values)}"
            )
    weights = [
        numpy_helper.from_array(
            np.broadcast_to(np.array(values, np.float32), channels).reshape(channels, 1, 1).copy(), f"{_OURS}/{name}"
        )
        for name, values in (("mean", mean), ("std", std))
    ]
    centred = f"{_OURS}/centred"
    nodes = [
        helper.make_node("Sub", [IMAGE, f"{_OURS}/mean"], [centred]),
        helper.make_node("Div", [centred, f"{_OURS}/std"], [graph.image]),
    ]
    return nodes, weights


def _made_for(graph: Graph, wanted: Sequence[str], known: set[str]) -> list[NodeProto]:
    """The nodes that make `wanted` of what is `known`, in their order."""
    missing, nodes = set(wanted) - known, list[NodeProto]()
    for node in reversed(graph.nodes):
        if any(name in missing for name in node.output):
            nodes.append(node)
            missing.update(set(inputs_of(node)) - known)
    return nodes[::-1]


def _model(
    graph: Graph, nodes: Sequence[NodeProto], more: Sequence[TensorProto], given: tuple[str, tuple[int, ...]],
    made: tuple[str, tuple[int, ...]],
) -> ModelProto:  # fmt: skip
    read = {name for node in nodes for name in inputs_of(node)}
    weights = [*more, *(weight for weight in graph.model.graph.initializer if weight.name in read)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape]) for name, shape in (given, made)]
    body: GraphProto = helper.make_graph(nodes, graph.model.graph.name, values[:1], values[1:], weights)
    model = helper.make_model(body, opset_imports=graph.model.opset_import, functions=graph.model.functions)
    model.ir_version = graph.model.ir_version
    return model
