"""Networks that are not ours, cut: a mobile net written in ONNX by hand, and a transformer encoder exported by torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from typer.testing import CliRunner

from edge_server.onnx_tail import OnnxTail
from splitcore.artefact import Artefact
from splitcore.errors import ArtefactError, ScenarioError
from splitcore.head import Head
from splitcore.nn.split import source
from splitcore.nn.split.__main__ import main
from splitcore.nn.split.export import run
from splitcore.nn.split.graph import Graph
from splitcore.nn.split.halves import head_of, tail_of, whole_of
from splitcore.nn.tail import load_tail

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (5, 1, 8, 8), np.uint8)


class Mobile:
    """An inverted residual network (Sandler et al. 2018) as ONNX nodes, with weights of its own."""

    def __init__(self, batch: int | str = "N") -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        x = self.conv("image_in", 1, 8, 3, stride=1, name="stem")
        x = self.block(x, 8, 8, name="a")
        x = self.block(x, 8, 16, name="b", stride=2)
        x = self.block(x, 16, 16, name="c")
        x = self.add("GlobalAveragePool", [x], "pooled")
        x = self.add("Flatten", [x], "flat")
        self.weights.append(numpy_helper.from_array(RNG.standard_normal((16, 10)).astype(np.float32), "fc"))
        self.add("MatMul", [x, "fc"], "scores")
        graph = helper.make_graph(
            self.nodes, "mobile",
            [helper.make_tensor_value_info("image_in", TensorProto.FLOAT, [batch, 1, 8, 8])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 10])], self.weights,
        )  # fmt: skip
        self.model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def add(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def conv(
        self, x: str, c_in: int, c_out: int, k: int, *, name: str, stride: int = 1, group: int = 1, relu: bool = True
    ) -> str:
        w = (RNG.standard_normal((c_out, c_in // group, k, k)) / np.sqrt(c_in // group * k * k)).astype(np.float32)
        self.weights.append(numpy_helper.from_array(w, f"{name}_w"))
        y = self.add("Conv", [x, f"{name}_w"], f"{name}_conv", strides=[stride] * 2, pads=[k // 2] * 4, group=group)
        if not relu:
            return y
        for bound, value in (("low", 0), ("high", 6)):
            if not any(weight.name == bound for weight in self.weights):
                self.weights.append(numpy_helper.from_array(np.float32(value), bound))
        return self.add("Clip", [y, "low", "high"], f"{name}_relu6")

    def block(self, x: str, c_in: int, c_out: int, *, name: str, stride: int = 1) -> str:
        y = self.conv(x, c_in, 4 * c_in, 1, name=f"{name}_expand")
        y = self.conv(y, 4 * c_in, 4 * c_in, 3, name=f"{name}_depthwise", stride=stride, group=4 * c_in)
        y = self.conv(y, 4 * c_in, c_out, 1, name=f"{name}_project", relu=False)
        return self.add("Add", [x, y], f"{name}_sum") if c_in == c_out and stride == 1 else y


class Encoder(nn.Module):
    """Patches, two transformer layers, the mean token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(1, 16, 2, 2)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.classify(self.layers(tokens).mean(1))
        return logits


@pytest.fixture(scope="module")
def mobile() -> Graph:
    return Graph(Mobile().model, "mobile")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "encoder.pt2"
    example = (torch.zeros(2, 1, 8, 8),)
    torch.export.save(torch.export.export(Encoder().eval(), example, dynamic_shapes=({0: torch.export.Dim("n")},)), path)
    return path


@pytest.fixture(scope="module")
def encoder(program: Path) -> Graph:
    return Graph(source.load(str(program), None), "encoder")


def halves(graph: Graph, most: int) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """(name, logits through the split, logits of the whole) at every cut with so many tensors."""
    whole = run(whole_of(graph, [0.5], [0.25]), "logits", IMAGES)
    found = []
    for cut in graph.cuts(most):
        latents = run(head_of(graph, cut, [0.5], [0.25]), "latent", IMAGES)
        assert latents.shape == (len(IMAGES), *cut.shape)
        found.append((cut.name, run(tail_of(graph, cut), "logits", latents), whole))
    return found


def test_the_cuts_of_an_inverted_residual_network_are_those_that_all_paths_pass(mobile: Graph) -> None:
    single = [cut.name for cut in mobile.cuts()]
    inside = [name for name in single if name.startswith(("a_", "c_"))]
    assert inside == ["a_sum", "c_sum"]  # what lies beside a skip cannot be cut at by one tensor
    assert {"stem_conv", "stem_relu6", "b_expand_relu6", "b_depthwise_relu6", "b_project_conv", "pooled", "flat"} < set(single)
    assert next(cut for cut in mobile.cuts() if cut.name == "b_project_conv").shape == (16, 4, 4)


@pytest.mark.parametrize("most", [1, 2])
def test_at_every_cut_the_halves_say_what_the_whole_mobile_net_does(mobile: Graph, most: int) -> None:
    found = halves(mobile, most)
    assert len(found) > (20 if most == 2 else 10)
    for name, through, whole in found:
        np.testing.assert_allclose(through, whole, rtol=1e-4, atol=1e-4, err_msg=name)


def test_at_every_cut_the_halves_say_what_the_whole_transformer_does(encoder: Graph) -> None:
    found = halves(encoder, 2)
    assert len(found) > 10
    with torch.inference_mode():
        ours = Encoder().eval()((torch.from_numpy(IMAGES).float() / 255 - 0.5) / 0.25).numpy()
    for name, through, whole in found:
        np.testing.assert_allclose(through, whole, rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(whole, ours, rtol=1e-3, atol=1e-4)


def test_the_tokens_between_two_layers_are_a_cut_and_those_beside_a_skip_are_not(encoder: Graph) -> None:
    shapes = [cut.shape for cut in encoder.cuts()]
    assert shapes.count((16, 16)) >= 3
    assert (16, 4, 4) in shapes  # the patches
    assert len(encoder.cuts(2)) > len(encoder.cuts())


def test_a_cut_inside_a_residual_block_says_what_else_crosses_and_where_one_may_cut(mobile: Graph) -> None:
    with pytest.raises(ScenarioError) as refusal:
        mobile.cut("a_depthwise_relu6")
    said = str(refusal.value)
    assert "so does stem_relu6 [8, 8, 8], which Add node_a_sum reads" in said
    assert "cut all of them with 'a_depthwise_relu6+stem_relu6'" in said
    assert "'stem_relu6' (before it) or 'a_sum' (after it)" in said
    assert mobile.cut("stem_relu6+a_depthwise_relu6").elements == (32 + 8) * 64


def test_what_is_no_tensor_or_no_float_is_refused_with_what_there_is(mobile: Graph, encoder: Graph) -> None:
    with pytest.raises(ScenarioError, match=r"got nonsense; cuts with one tensor: stem_conv, stem_relu6, a_sum"):
        mobile.cut("nonsense")
    with pytest.raises(ScenarioError, match="never wanted at one time"):
        mobile.cut("stem_conv+flat")
    with pytest.raises(ScenarioError, match="expected tensors between image and logits, got stem_w"):
        mobile.cut("stem_w")


def test_a_network_exported_for_one_image_serves_many_or_says_what_to_do() -> None:
    graph = Graph(Mobile(batch=1).model, "mobile")
    for name, through, whole in halves(graph, 1):
        np.testing.assert_allclose(through, whole, rtol=1e-4, atol=1e-4, err_msg=name)
    model = Mobile(batch=1).model
    flat = next(node for node in model.graph.node if node.op_type == "Flatten")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 16], np.int64), "one"))
    flat.op_type, flat.input[:] = "Reshape", ["pooled", "one"]
    with pytest.raises(ScenarioError, match="dynamic batch"):
        halves(Graph(model, "mobile"), 1)


def test_a_network_may_call_its_tensors_as_the_halves_call_theirs() -> None:
    model = Mobile().model
    names = {"image_in": "image", "stem_relu6": "latent", "scores": "logits"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    graph = Graph(model, "mobile")
    assert "latent_" in [cut.name for cut in graph.cuts()]
    for name, through, whole in halves(graph, 2):
        np.testing.assert_allclose(through, whole, rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_file_of_an_old_operator_set_with_its_weights_among_the_inputs_is_cut_like_a_new_one(mobile: Graph) -> None:
    old = Mobile().model
    for weight in old.graph.initializer:
        old.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    old.opset_import[0].version, old.ir_version = 11, 6
    graph = Graph(old, "old")
    assert [cut.name for cut in graph.cuts()] == [cut.name for cut in mobile.cuts()]
    for name, expected, got in halves(graph, 1):
        assert np.abs(got - expected).max() < 1e-5, name


def test_networks_of_another_kind_are_refused_with_what_was_found(tmp_path: Path) -> None:
    two = Mobile().model
    two.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 16]))
    with pytest.raises(
        ScenarioError, match=r"expected one input \(images\) and one output \(logits\), got inputs \['image_in'\]"
    ):
        Graph(two, "two")
    words = Mobile().model
    words.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(ScenarioError):
        Graph(words, "words")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x99" * 99)
    for model in (str(broken), str(tmp_path / "absent.onnx"), "no_such_module:Net", "torch.nn:Linear"):
        with pytest.raises(ScenarioError):
            source.load(model, (1, 8, 8))
    fake = tmp_path / "fake.pt2"
    fake.write_bytes(b"PK nothing")
    with pytest.raises(ScenarioError, match=r"is no program of torch.export"):
        source.load(str(fake), None)


def command(*arguments: str) -> str:
    import typer

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, list(arguments))
    return result.output + (str(result.stderr) if result.exit_code else "")


def test_a_file_is_listed_cut_and_served_with_the_labels_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "mobile.onnx"
    onnx.save(Mobile().model, path)
    assert "b_project_conv" in command(str(path))
    out = tmp_path / "artefact"
    options = ["--at", "b_project_conv", "--out", str(out), "--dataset", "digits", "--mean", "0.5", "--std", "0.25"]
    assert "latent [16, 4, 4]" in command(str(path), *options, "--codec", "identity")
    artefact = Artefact(out)
    assert (artefact.manifest.tail.net, artefact.manifest.cut) == ("onnx", "b_project_conv")
    tail = OnnxTail(artefact, device="cpu", threads=1, max_batch_size=64)
    tail.warm_up()
    labels = tail(Head(artefact).from_uint8(artefact.samples[0])).argmax(axis=1)
    np.testing.assert_array_equal(labels, artefact.unsplit_labels)
    with pytest.raises(ArtefactError, match="it has no torch module"):
        load_tail(artefact)
    with pytest.raises(ValueError, match="no other provider"):
        OnnxTail(artefact, device="cuda", threads=1, max_batch_size=64)
    assert "expected --out FOLDER and --dataset" in command(str(path), "--at", "flat")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--mean", "0.5,0.5", "expected as mean one number or one for each of 1 channels"),
        ("--std", "0", "finite and for std above 0"),
        ("--std", "wide", "expected numbers with commas for --std"),
        ("--name", "my net", "expected --name of letters"),
        ("--at", "fl", "got fl; cuts with one tensor"),
        ("--codec", "mp3", "unknown codec"),
    ],
)
def test_what_is_said_wrong_is_refused_in_words(option: str, value: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mobile.onnx"
    onnx.save(Mobile().model, path)
    options = {"--at": "flat", "--out": str(tmp_path / "artefact"), "--dataset": "digits"} | {option: value}
    assert said in command(str(path), *(part for pair in options.items() for part in pair))


def test_a_torch_module_is_taken_by_its_import_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "somebodys_net.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    graph = Graph(source.load("somebodys_net:net", (1, 8, 8)), "net")
    # not optimised: what the convolution gives is a tensor still, before the normalisation
    assert [cut.after for cut in graph.cuts()][:3] == ["Conv", "BatchNormalization", "Relu"]
    for name, through, whole in halves(graph, 1):
        np.testing.assert_allclose(through, whole, rtol=1e-4, atol=1e-4, err_msg=name)
    with pytest.raises(ScenarioError, match="say --image C,H,W"):
        source.load("somebodys_net:net", None)
