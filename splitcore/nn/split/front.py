"""Which of a network's cuts are worth a measurement: those that no other beats in both bytes sent and work on the phone.

From image to logits a head only grows, so in that order a cut is on the Pareto front when it sends fewer bytes than every cut
before it, and than the image itself, which needs no head at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import NodeProto

from splitcore.codec import CodecConfig
from splitcore.nn.split.graph import Cut, Graph

HEAVY = frozenset(
    {"Conv", "ConvInteger", "ConvTranspose", "Einsum", "Gemm", "GRU", "LSTM", "MatMul", "MatMulInteger", "QLinearConv", "RNN"}
)
"""operators that multiply matrices: between two cuts without one of them, the later costs a phone nothing more"""

LAYOUT = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""operators that change no number, and perhaps put something else than channels first, which a codec wants there"""


@dataclass(frozen=True)
class Front:
    """What was chosen, and what became of the others."""

    kept: tuple[Cut, ...]
    crowded: tuple[Cut, ...]
    """on the front too, left out because there were more than asked for"""
    dominated: int
    """cuts that another one, or the image, beats in bytes and in work"""
    larger: bool
    """no cut sends less than the image: the front is that of the cuts alone"""


def front(graph: Graph, codec: CodecConfig, most: int) -> Front:
    """Of the cuts with one tensor, at most `most`, evenly over the front, its ends included."""
    cuts = graph.cuts()
    heavy = [_heavy_before(graph, cut) for cut in cuts]
    # where the size and the work are the same, the last: what an activation leaves is easier to quantise
    cheapest: dict[tuple[int, int], Cut] = {}
    for cut, work in zip(cuts, heavy, strict=True):
        if cut.after not in LAYOUT or (cut.elements, work) not in cheapest:
            cheapest[cut.elements, work] = cut
    distinct = list(cheapest.values())
    bits = bits_of(codec)
    found = falling(distinct, 8 * math.prod(graph.image_shape), bits)
    larger = not found
    if larger:
        found = falling(distinct, math.inf, bits)
    kept = spread(found, most)
    return Front(tuple(kept), tuple(cut for cut in found if cut not in kept), len(cuts) - len(found), larger)


def falling(cuts: Sequence[Cut], limit_bits: float, bits: int) -> list[Cut]:
    """Those that are smaller than every one before them, and than the limit."""
    found: list[Cut] = []
    for cut in cuts:
        if bits * cut.elements < limit_bits:
            limit_bits = bits * cut.elements
            found.append(cut)
    return found


def spread(cuts: Sequence[Cut], most: int) -> list[Cut]:
    """At most so many, evenly by their places, first and last among them."""
    if len(cuts) <= most:
        return list(cuts)
    if most == 1:
        return [cuts[-1]]
    return [cuts[round(place * (len(cuts) - 1) / (most - 1))] for place in range(most)]


def bits_of(codec: CodecConfig) -> int:
    """Of an element, before any entropy coder; 8 where the codec's lengths vary."""
    return int(getattr(codec, "bits", {"identity": 32, "float16": 16}.get(codec.kind, 8)))


def _heavy_before(graph: Graph, cut: Cut) -> int:
    names = set(cut.tensors)
    nodes: list[NodeProto] = []
    for node, alive in graph.crossings:
        nodes.append(node)
        if set(alive) == names:
            break
    return sum(node.op_type in HEAVY for node in nodes)
