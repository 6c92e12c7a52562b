"""Which cuts are worth a measurement, and the whole network as an artefact of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_server.onnx_tail import OnnxTail
from splitcore.artefact import Artefact
from splitcore.codec import fit, parse
from splitcore.data import load
from splitcore.head import Head, as_unit
from splitcore.nn.split.export import run
from splitcore.nn.split.front import falling, front, spread
from splitcore.nn.split.graph import Cut, Graph
from splitcore.nn.split.halves import whole_of
from splitcore.nn.split.prepare import of_artefacts
from splitcore.nn.split.whole import CODEC, joined, samples_of, whole_artefact
from splitcore.nn.tail import load_tail

RNG = np.random.default_rng(5)


def narrow_net() -> ModelProto:
    """Digits: 1x8x8 to 4x8x8, to 2x4x4, to 8x4x4, pooled to 8, ten logits."""
    shapes = {"wide_w": (4, 1, 3, 3), "narrow_w": (2, 4, 3, 3), "wider_w": (8, 2, 3, 3), "fc": (8, 10)}
    nodes = [
        helper.make_node("Conv", ["x", "wide_w"], ["wide"], pads=[1] * 4),
        helper.make_node("Relu", ["wide"], ["wide_relu"]),
        helper.make_node("Conv", ["wide_relu", "narrow_w"], ["narrow"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["narrow"], ["narrow_relu"]),
        helper.make_node("Flatten", ["narrow_relu"], ["row"]),
        helper.make_node("Reshape", ["row", "back"], ["narrow_again"]),
        helper.make_node("Conv", ["narrow_again", "wider_w"], ["latent"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["latent"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["y"]),
    ]
    weights = [numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()]
    weights.append(numpy_helper.from_array(np.array([-1, 2, 4, 4], np.int64), "back"))
    graph = helper.make_graph(
        nodes, "narrow", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])], weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def cut(name: str, elements: int) -> Cut:
    return Cut((name,), ((elements,),), "Conv", 0.5)


def test_a_cut_is_kept_when_it_sends_less_than_all_before_it_and_than_the_image() -> None:
    cuts = [cut("a", 90), cut("b", 60), cut("c", 70), cut("d", 60), cut("e", 10)]
    assert [one.name for one in falling(cuts, 8 * 100, 8)] == ["a", "b", "e"]
    assert [one.name for one in falling(cuts, 8 * 64, 8)] == ["b", "e"]
    # with half the bits twice the elements are as many bytes
    assert [one.name for one in falling(cuts, 8 * 64, 4)] == ["a", "b", "e"]
    assert falling(cuts, 8 * 10, 8) == []


def test_of_many_cuts_those_are_kept_that_lie_evenly_and_the_ends() -> None:
    cuts = [cut(str(number), 100 - number) for number in range(9)]
    assert [one.name for one in spread(cuts, 3)] == ["0", "4", "8"]
    assert [one.name for one in spread(cuts, 1)] == ["8"]
    assert spread(cuts, 9) == cuts


def test_the_front_takes_the_activation_and_not_its_other_layout() -> None:
    graph = Graph(narrow_net(), "narrow")
    found = front(graph, parse("uniform8/channel"), 6)
    # wide is larger than the image; narrow, its activation and the row cost a phone the same
    assert [one.name for one in found.kept] == ["narrow_relu", "pooled"]
    assert not found.larger and found.dominated == len(graph.cuts()) - 2
    as_floats = front(graph, parse("identity"), 6)
    assert [one.name for one in as_floats.kept] == ["pooled"]  # 32 floats are more bytes than 64 pixels


def test_where_every_cut_is_larger_than_the_image_the_cuts_are_compared_among_themselves() -> None:
    model = narrow_net()
    del model.graph.node[3:]
    model.graph.node.append(helper.make_node("Flatten", ["narrow"], ["y"]))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((20, 4, 3, 3), np.float32), "narrow_w"))
    found = front(Graph(model, "wide"), parse("uniform8/channel"), 6)
    assert found.larger
    assert [one.name for one in found.kept] == ["wide_relu"]


def labels_of(artefact: Artefact, codec: str = "identity") -> NDArray[np.int64]:
    """Through its own head, a codec, and the tail as the edge runs it."""
    tail = OnnxTail(artefact, device="cpu", threads=1, max_batch_size=64)
    coder = fit(codec, artefact.latent)
    return tail(coder.snap(Head(artefact).from_uint8(artefact.samples[0]))).argmax(axis=1)


def test_an_image_sent_as_it_is_has_the_labels_of_the_whole_network(tmp_path: Path) -> None:
    graph, digits = Graph(narrow_net(), "narrow"), load("digits", "test")
    artefact = whole_artefact(whole_of(graph, [0.3], [0.6]), digits, tmp_path, name="narrow-whole")
    images = artefact.samples[0]
    expected = run(whole_of(graph, [0.3], [0.6]), "logits", images).argmax(axis=1)
    np.testing.assert_array_equal(artefact.unsplit_labels, expected)
    np.testing.assert_array_equal(labels_of(artefact), expected)
    # 256 steps of the range are the 256 values of a pixel: nothing is lost, and a pixel is a byte
    coder = fit(CODEC, artefact.latent)
    np.testing.assert_array_equal(np.frombuffer(coder.encode(as_unit(images[:1]))[0], np.uint8), images[0].ravel())
    np.testing.assert_allclose(coder.snap(as_unit(images)), as_unit(images), atol=1e-7)


def test_head_and_tail_of_a_trained_artefact_are_one_graph_again(digits_artefact: Path, tmp_path: Path) -> None:
    artefact = Artefact(digits_artefact)
    images = artefact.samples[0]
    network = joined(artefact)
    whole = whole_artefact(network, samples_of(artefact), tmp_path / "whole", name="digits-whole")
    through = load_tail(artefact)
    import torch

    expected = through(torch.from_numpy(Head(artefact).from_uint8(images))).numpy()
    tail = OnnxTail(whole, device="cpu", threads=1, max_batch_size=64)
    np.testing.assert_allclose(tail(as_unit(images)), expected, rtol=1e-3, atol=1e-3)
    assert (whole.unsplit_labels == artefact.unsplit_labels).mean() == 1


def test_folders_of_artefacts_are_candidates_as_they_are(digits_artefact: Path, tmp_path: Path) -> None:
    prepared = of_artefacts([digits_artefact], tmp_path, ())
    assert [made.folder for made in prepared.cuts] == [str(digits_artefact)]
    assert Artefact(Path(prepared.whole)).manifest.cut == "image"
    with pytest.raises(Exception, match="no readable manifest"):
        of_artefacts([tmp_path], tmp_path, ())
