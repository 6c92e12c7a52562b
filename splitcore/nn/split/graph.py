"""Where a network in ONNX can be cut: what of it crosses between any two of its nodes.

A node is constant (weights alone), sized (of the images it depends on nothing but their number, as the shapes that an exporter
reads at run time) or data. Constants and sizes cost nothing to have on both sides; data that is made before a point and wanted
after it must cross there. A tensor that crosses alone is one through which all paths from image to logits pass, so it is found
in whatever topological order the nodes are written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx.version_converter
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from splitcore.errors import ScenarioError
from splitcore.onnx_session import open_session

BATCH = "batch"
BATCHES = (2, 3)
"""sizes of it: an axis that is as long as either when it is the batch's is the batch"""
ENDS = frozenset({"image", "latent", "logits"})
"""what the inputs and outputs of the two halves are called"""
FIXED_BATCH = "a network that was exported for one image keeps that number in its reshapes; export it with a dynamic batch"
LEAST_OPSET = 15
"""the first in which a part of a shape can be asked for"""
SIZE = "latentbed_batch_size"
"""the int64 [1] tensor that holds how many images there are; everything that is `sized` is made of it"""


@dataclass(frozen=True)
class Cut:
    """A place where the network falls into two: the tensors that cross."""

    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    """of each, without the batch"""
    after: str
    """operator that makes the last of them"""
    depth: float
    """share of the network's data nodes before it"""

    @property
    def name(self) -> str:
        return "+".join(self.tensors)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latent: the tensor's own, or one row of all of them."""
        return self.shapes[0] if len(self.shapes) == 1 else (self.elements,)

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)


class Graph:
    """A network: one image input float32 [batch, C, H, W], one output logits [batch, classes]. Raises ScenarioError."""

    def __init__(self, model: ModelProto, what: str) -> None:
        self.what = what
        copied = ModelProto()
        copied.CopyFrom(model)
        _leave_free(copied.graph)
        try:
            onnx.checker.check_model(copied)
        except onnx.checker.ValidationError as error:
            raise ScenarioError(f"{what} is no valid ONNX network: {error}") from error
        copied = _of_this_age(copied, what)
        weights = {tensor.name for tensor in copied.graph.initializer}
        inputs = [value for value in copied.graph.input if value.name not in weights]
        if len(inputs) != 1 or len(copied.graph.output) != 1:
            raise ScenarioError(
                f"{what}: expected one input (images) and one output (logits), got inputs "
                f"{[value.name for value in inputs]}, outputs {[value.name for value in copied.graph.output]}"
            )
        self.image, self.logits = inputs[0].name, copied.graph.output[0].name
        self.image_shape = self._free_batch(inputs[0], "images float32 [batch, C, H, W]")
        if len(self.image_shape) != 3 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
            raise ScenarioError(f"{what}: expected images float32 [batch, C, H, W] as input, got {_told(inputs[0])}")
        del copied.graph.value_info[:]  # they may speak of the batch that the network was exported with
        for output in copied.graph.output:
            output.type.tensor_type.ClearField("shape")
        self._floats, self._shapes = self._seen(copied)
        self.model = _with_sizes(copied, self.image, self._shapes)
        self.nodes: list[NodeProto] = list(self.model.graph.node)
        logits = self.shape_of(self.logits)
        if logits is None or len(logits) != 1:
            raise ScenarioError(f"{what}: expected logits [batch, classes] as output, {self.logits} is another: {FIXED_BATCH}")
        self.classes = logits[0]

    def _free_batch(self, value: ValueInfoProto, wanted: str) -> tuple[int, ...]:
        dims = value.type.tensor_type.shape.dim
        if len(dims) < 2 or any(not dim.dim_value for dim in dims[1:]):
            raise ScenarioError(f"{self.what}: expected {wanted} with fixed sizes but for the batch, got {_told(value)}")
        dims[0].dim_param = BATCH
        return tuple(dim.dim_value for dim in dims[1:])

    def _seen(self, model: ModelProto) -> tuple[set[str], dict[str, tuple[int, ...]]]:
        """(tensors of float32, shapes without the batch of those that have it as their first axis): seen in two runs.

        What ONNX infers stops at the first shape that the network computes itself; a run knows them all.
        """
        seen: list[dict[str, tuple[int, ...]]] = []
        floats: set[str] = set()
        probed = ModelProto()
        probed.CopyFrom(model)
        del probed.graph.output[:]
        names = [self.image, *(name for node in model.graph.node for name in node.output if name)]
        probed.graph.output.extend(ValueInfoProto(name=name) for name in names)
        session = open_session(probed.SerializeToString(), self.what, ScenarioError, optimised=False)
        for batch in BATCHES:
            try:
                tensors = session.run(names, {self.image: np.zeros((batch, *self.image_shape), np.float32)})
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                raise ScenarioError(
                    f"ONNX Runtime cannot run {self.what} with {batch} images: {error}: {FIXED_BATCH}"
                ) from error
            sizes = {name: np.shape(tensor) for name, tensor in zip(names, tensors, strict=True)}
            seen.append({name: size[1:] for name, size in sizes.items() if len(size) > 1 and size[0] == batch})
            floats = {name for name, tensor in zip(names, tensors, strict=True) if np.asarray(tensor).dtype == np.float32}
        return floats, {name: shape for name, shape in seen[0].items() if seen[1].get(name) == shape}

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """Without the batch; None where the first axis is not the batch, or a size is not known."""
        return self._shapes.get(name)

    def carries_floats(self, name: str) -> bool:
        return name in self._floats

    @cached_property
    def data(self) -> set[str]:
        """Tensors that depend on what is in the images, and are on a way to the logits."""
        found = {self.image}
        for node in self.nodes:
            if SIZE not in node.output and any(name in found for name in inputs_of(node)):
                found.update(name for name in node.output if name)
        wanted = {self.logits}
        for node in reversed(self.nodes):
            if any(name in wanted for name in node.output):
                wanted.update(inputs_of(node))
        return found & wanted

    @cached_property
    def crossings(self) -> list[tuple[NodeProto, tuple[str, ...]]]:
        """After each data node but the last: the data that is still wanted, oldest first."""
        nodes = [node for node in self.nodes if any(name in self.data for name in node.output)]
        last: dict[str, int] = {}
        for number, node in enumerate(nodes):
            last.update({name: number for name in inputs_of(node) if name in self.data})
        alive: dict[str, None] = {self.image: None}
        found = []
        for number, node in enumerate(nodes[:-1]):
            alive |= {name: None for name in node.output if name in self.data}
            alive = {name: None for name in alive if last.get(name, -1) > number or name == self.logits}
            found.append((node, tuple(alive)))
        return found

    def cuts(self, most: int = 1) -> list[Cut]:
        """Where no more than `most` tensors cross, floats with the batch first, from image to logits."""
        found: dict[tuple[str, ...], Cut] = {}
        for number, (node, alive) in enumerate(self.crossings):
            shapes = [self.shape_of(name) for name in alive]
            if len(alive) <= most and self.image not in alive and all(map(self.carries_floats, alive)):
                known = tuple(shape for shape in shapes if shape is not None)
                if len(known) == len(alive):
                    found.setdefault(alive, Cut(alive, known, node.op_type, (number + 1) / (len(self.crossings) + 1)))
        return list(found.values())

    def cut(self, name: str) -> Cut:
        """The cut of this name: a tensor, or several with + between. Raises ScenarioError, which says what else crosses."""
        wanted = set(name.split("+"))
        for cut in self.cuts(most=len(wanted)):
            if set(cut.tensors) == wanted:
                return cut
        single = self.cuts()
        unknown = sorted(wanted - self.data)
        if unknown:
            raise ScenarioError(
                f"{self.what}: expected tensors between image and logits, got {', '.join(unknown)}; cuts with one tensor: "
                f"{', '.join(cut.name for cut in single) or 'none'}"
            )
        raise ScenarioError(f"{self.what}: {self._why_not(wanted, single)}")

    def _why_not(self, wanted: set[str], single: Sequence[Cut]) -> str:
        here = [alive for _, alive in self.crossings if wanted <= set(alive)]
        asked = " and ".join(sorted(wanted))
        if not here:
            return f"{asked} are never wanted at one time: they are not one cut"
        others = min((set(alive) - wanted for alive in here), key=len)
        if not others:
            return f"{asked} cannot cross: expected float32 with the batch as first axis and known sizes otherwise"
        reasons = [f"{name} {list(self.shape_of(name) or ())}, which {self._wanted_by(name)} reads" for name in sorted(others)]
        positions = [number for number, (_, alive) in enumerate(self.crossings) if wanted <= set(alive)]
        at = (positions[0] + 1) / (len(self.crossings) + 1)
        before = [cut.name for cut in single if cut.depth < at][-1:]
        after = [cut.name for cut in single if cut.depth > at][:1]
        nearest = " or ".join(
            f"{name!r} ({side} it)" for side, names in (("before", before), ("after", after)) for name in names
        )
        whole = "+".join(sorted(wanted | others))
        return (
            f"where {asked} crosses, so does {' and '.join(reasons)}; cut all of them with {whole!r}, or one tensor at "
            f"{nearest or 'no place: every point has several'}"
        )

    def _wanted_by(self, name: str) -> str:
        readers = [node for node in self.nodes if name in inputs_of(node)]
        return f"{readers[-1].op_type} {readers[-1].name or readers[-1].output[0]}"


def inputs_of(node: NodeProto) -> Iterator[str]:
    """What a node reads, its subgraphs' outer names included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            for inner in graph.node:
                yield from (name for name in inputs_of(inner) if name not in own)
                own.update(inner.output)


def _leave_free(graph: GraphProto) -> None:
    """Tensors that are called as a half's ends will be get a _ behind their names."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    names: dict[str, str] = {}
    for name in sorted(ENDS & taken):
        names[name] = f"{name}_"
        while names[name] in taken:
            names[name] += "_"
    if names:
        _rename(graph, names)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """In subgraphs too: ONNX forbids them to use an outer name for something else."""
    named: list[ValueInfoProto | TensorProto] = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for value in named:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                _rename(inner, names)


def _of_this_age(model: ModelProto, what: str) -> ModelProto:
    """In an operator set that the nodes which a cut adds belong to. Raises ScenarioError."""
    if all(opset.domain not in ("", "ai.onnx") or opset.version >= LEAST_OPSET for opset in model.opset_import):
        return model
    try:
        return onnx.version_converter.convert_version(model, LEAST_OPSET)
    except (RuntimeError, ValueError) as error:
        old = ", ".join(f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in model.opset_import)
        raise ScenarioError(
            f"{what}: expected operators that can be had in opset {LEAST_OPSET}, got {old}: export it again with a newer one "
            f"({error})"
        ) from error


def _with_sizes(model: ModelProto, image: str, shapes: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """Every `Shape` of a tensor with the batch first, made of the number of images alone."""
    nodes = [helper.make_node("Shape", [image], [SIZE], name=SIZE, start=0, end=1)]
    for node in model.graph.node:
        rest = shapes.get(node.input[0]) if node.op_type == "Shape" else None
        if rest is None:
            nodes.append(node)
            continue
        whole = f"{node.output[0]}/whole"
        span = {attribute.name: attribute.i for attribute in node.attribute}
        numbers = {
            "rest": list(rest), "first": [span.get("start", 0)], "end": [span.get("end", len(rest) + 1)],
        }  # fmt: skip
        for name, values in numbers.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{whole}/{name}"))
        nodes.append(helper.make_node("Concat", [SIZE, f"{whole}/rest"], [whole], axis=0, name=whole))
        nodes.append(helper.make_node("Slice", [whole, f"{whole}/first", f"{whole}/end"], [node.output[0]], name=node.name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _told(value: ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = [dim.dim_value or dim.dim_param or "?" for dim in kind.shape.dim]
    return f"{value.name}: {TensorProto.DataType.Name(kind.elem_type).lower()} {dims}"
