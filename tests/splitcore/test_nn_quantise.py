"""Heads in int8: what stays in float, what they cost, and what an artefact with them is to the nodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from splitcore.artefact import HEADS, INT8_S8, INT8_U8, MANIFEST, Artefact, HeadName
from splitcore.codec import parse
from splitcore.data import load
from splitcore.errors import ArtefactError, DataError
from splitcore.head import Head, names
from splitcore.nn.export import write_onnx
from splitcore.nn.net.resnet import ResNet
from splitcore.nn.quantise.add import add_int8, calibration_images, opened
from splitcore.nn.quantise.graph import float_end, fold, write_int8
from splitcore.nn.split.export import split
from splitcore.nn.split.graph import Graph
from splitcore.snr import snr_db

INT8: tuple[HeadName, ...] = (INT8_U8, INT8_S8)


@pytest.fixture(scope="module")
def int8_artefact(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """The digits' artefact with heads in int8."""
    before = Artefact(digits_artefact)
    images, named = calibration_images(before, None, 128, None)
    return add_int8(before, images, named, tmp_path_factory.mktemp("int8") / "digits")


def snr_of(ours: np.ndarray, meant: np.ndarray) -> float:
    return snr_db(float(np.square(meant).sum()), float(np.square(ours - meant).sum()))


def test_heads_in_int8_lose_at_most_a_point_through_codec_and_tail(int8_artefact: Artefact) -> None:
    assert set(int8_artefact.manifest.heads) == set(INT8)
    for head in int8_artefact.manifest.heads.values():
        assert head.points_lost <= 1
        assert head.agreement > 0.98
        assert head.calibrated_on == "128 training images of digits"


@pytest.mark.parametrize("name", INT8)
def test_a_head_in_int8_gives_nearly_the_latents_of_float32_and_not_the_same(int8_artefact: Artefact, name: HeadName) -> None:
    images, _ = int8_artefact.samples
    latents = Head(int8_artefact, name=name).from_uint8(images)
    snr = snr_of(latents, Head(int8_artefact).from_uint8(images))
    assert snr == pytest.approx(int8_artefact.manifest.heads[name].snr_db, abs=0.5)
    assert 25 < snr < 100


@pytest.mark.parametrize("name", INT8)
def test_the_latent_is_not_on_a_grid_of_256_values(int8_artefact: Artefact, name: HeadName) -> None:
    images, _ = int8_artefact.samples
    latents = Head(int8_artefact, name=name).from_uint8(images)
    assert len(np.unique(latents)) > 10_000


@pytest.mark.parametrize("name", INT8)
def test_the_multiplications_but_the_last_are_on_int8_weights_with_a_scale_for_each_channel(
    int8_artefact: Artefact, name: HeadName
) -> None:
    graph = onnx.load(int8_artefact.path(HEADS[name])).graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type == "Conv"]
    assert len(layers) >= 2
    for layer in layers[:-1]:
        dequantised = made_by[layer.input[1]]
        weight, scale = (constants[dequantised.input[i]] for i in (0, 1))
        assert weight.data_type == TensorProto.INT8
        assert list(scale.dims) == [weight.dims[0]]
    assert layers[-1].input[1] in constants


def test_heads_in_int8_make_another_artefact_and_leave_the_first_alone(int8_artefact: Artefact, digits_artefact: Path) -> None:
    before = Artefact(digits_artefact)
    assert before.manifest.heads == {}
    assert "heads" not in json.loads((digits_artefact / MANIFEST).read_text())
    assert int8_artefact.manifest.digest != before.manifest.digest
    assert int8_artefact.manifest.made_with["recipe"] == before.manifest.made_with["recipe"]
    assert names(int8_artefact) == ["float32", "int8-s8", "int8-u8"]
    for name, sha in before.manifest.files.items():
        assert int8_artefact.manifest.files[name] == sha


def test_quantised_in_place_and_again_the_folder_is_whole_and_the_same(digits_artefact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(digits_artefact, folder)
    images, named = calibration_images(Artefact(folder), None, 64, None)
    once = add_int8(Artefact(folder), images, named, folder)
    twice = add_int8(once, images, named, folder)
    assert twice.manifest == once.manifest
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *once.manifest.files}
    for name in twice.manifest.files:
        twice.path(name)


def test_a_head_that_the_artefact_does_not_have_is_refused_with_what_there_is(digits_artefact: Path) -> None:
    with pytest.raises(ArtefactError, match=r"expected a head of \['float32'\], got 'int8-u8': `latentbed quantise`"):
        Head(digits_artefact, name=INT8_U8)


def test_an_altered_head_in_int8_is_refused(int8_artefact: Artefact, tmp_path: Path) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(int8_artefact.folder, folder)
    with (folder / HEADS[INT8_S8]).open("ab") as file:
        file.write(b"\0")
    Head(folder, name=INT8_U8)
    with pytest.raises(ArtefactError, match=r"expected sha256 .* for head.int8-s8.onnx"):
        Head(folder, name=INT8_S8)


def test_calibration_takes_training_images_and_asks_for_some_where_the_data_set_is_unknown(digits_artefact: Path) -> None:
    artefact = Artefact(digits_artefact)
    images, named = calibration_images(artefact, None, 100, None)
    assert named == "100 training images of digits"
    held_out = {image.tobytes() for image in artefact.samples[0]}
    assert not any(image.tobytes() in held_out for image in images)
    artefact.manifest = artefact.manifest.model_copy(update={"dataset": "own"})
    with pytest.raises(DataError, match="give --images FOLDER"):
        calibration_images(artefact, None, 100, None)


def test_in_a_residual_network_the_last_convolution_of_the_last_block_stays_in_float_and_no_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = (3, 32, 32)
    write_onnx(ResNet(depth=18, cut="layer1").head(shape, (0,), (1,)).eval(), shape, tmp_path / "head.onnx")
    fold(tmp_path / "head.onnx", tmp_path / "folded.onnx")
    folded = onnx.load(tmp_path / "folded.onnx")
    types = {node.name: node.op_type for node in folded.graph.node}
    assert [types[name] for name in float_end(folded)] == ["Relu", "Add", "Conv"]
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), np.uint8)
    reference = opened(tmp_path / "head.onnx")(images)
    (tmp_path / "int8").mkdir()
    for path in write_int8(tmp_path / "head.onnx", images, tmp_path / "int8").values():
        assert snr_of(opened(path)(images), reference) > 25


class Clamped(nn.Module):
    """As GDN: y = x / (beta + |x| * gamma), gamma and beta kept positive in the graph (Balle et al., ICLR 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)
        self.gamma, self.beta = nn.Parameter(torch.rand(8, 8, 1, 1) - 0.3), nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = y / nn.functional.conv2d(y.abs(), self.gamma.clamp_min(0), self.beta.clamp_min(1e-6))
        latent: torch.Tensor = self.last(y)
        return latent


def test_weights_that_a_network_computes_in_its_graph_are_quantised_as_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_onnx(Clamped().eval(), (1, 16, 16), tmp_path / "head.onnx")
    images = np.random.default_rng(0).integers(0, 256, (32, 1, 16, 16), np.uint8)
    (tmp_path / "int8").mkdir()
    for path in write_int8(tmp_path / "head.onnx", images, tmp_path / "int8").values():
        graph = onnx.load(path).graph
        quantised = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4]
        assert sorted(tuple(tensor.dims) for tensor in quantised) == [(8, 1, 3, 3), (8, 8, 1, 1)]
        assert snr_of(opened(path)(images), opened(tmp_path / "head.onnx")(images)) > 20


def test_a_head_whose_only_layer_with_weights_makes_the_latent_is_refused(tmp_path: Path) -> None:
    write_onnx(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval(), (1, 8, 8), tmp_path / "head.onnx")
    with pytest.raises(ArtefactError, match="nothing in it can be int8"):
        write_int8(tmp_path / "head.onnx", np.zeros((4, 1, 8, 8), np.uint8), tmp_path)


def theirs(image: str, latent: str, logits: str | None, opset: int) -> onnx.ModelProto:
    """A network as others export it: nodes without names, and a tail where `logits` is given."""
    rng = np.random.default_rng(0)
    fans = {"a": (1, 8, 3), "b": (8, 8, 3), "c": (8, 4, 1)}
    weights = [
        numpy_helper.from_array((rng.standard_normal((fan_out, fan_in, k, k)) / (k * fan_in**0.5)).astype(np.float32), name)
        for name, (fan_in, fan_out, k) in fans.items()
    ]
    nodes = [
        helper.make_node("Conv", [image, "a"], ["x"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Conv", ["y", "b"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["z"], ["u"]),
        helper.make_node("Conv", ["u", "c"], [latent]),
    ]
    end: tuple[str, tuple[int, ...]] = (latent, (4, 4, 4))
    if logits is not None:
        weights.append(numpy_helper.from_array(rng.standard_normal((4 * 16, 10)).astype(np.float32), "d"))
        nodes += [helper.make_node("Flatten", [latent], ["w"]), helper.make_node("MatMul", ["w", "d"], [logits])]
        end = (logits, (10,))
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in ((image, (1, 8, 8)), end)
    )
    graph = helper.make_graph(nodes, "theirs", [given], [made], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def test_a_network_that_was_cut_out_of_an_onnx_file_is_measured_with_its_tail_in_onnx(tmp_path: Path) -> None:
    graph = Graph(theirs("pixels", "v", "scores", opset=17), "theirs")
    plain = split(
        graph, graph.cut("v"), tmp_path / "split", name="theirs", calibration=load("digits", "train"),
        samples=load("digits", "test"), codec=parse("uniform8/channel"),
    )  # fmt: skip
    quantised = add_int8(plain, *calibration_images(plain, None, 64, None), tmp_path / "int8")
    for name in INT8:
        head = quantised.manifest.heads[name]
        assert head.agreement > 0.9
        assert 25 < head.snr_db < 100
        assert head.accuracy + head.points_lost / 100 == pytest.approx(plain.manifest.accuracy, abs=0.02)


def test_a_head_of_an_operator_set_from_before_scales_for_each_channel_is_converted(tmp_path: Path) -> None:
    onnx.save(theirs("image", "latent", None, opset=11), tmp_path / "head.onnx")
    images = load("digits", "train").images[:64]
    (tmp_path / "int8").mkdir()
    for path in write_int8(tmp_path / "head.onnx", images, tmp_path / "int8").values():
        assert 25 < snr_of(opened(path)(images), opened(tmp_path / "head.onnx")(images)) < 100
