"""A network that is not ours, from its file to a report: cut, served by ONNX Runtime on the edge, attacked on the wire."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper, save
from typer.testing import CliRunner

from testbed.cli import app


def residual_net(path: Path) -> None:
    """Digits to ten logits: a convolution, a residual block, a linear layer; it has learned nothing."""
    rng = np.random.default_rng(1)
    weights = {"w0": (6, 1, 3, 3), "w1": (6, 6, 3, 3), "fc": (384, 10)}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["stem"], pads=[1] * 4),
        helper.make_node("Relu", ["stem"], ["skip"]),
        helper.make_node("Conv", ["skip", "w1"], ["inner"], pads=[1] * 4),
        helper.make_node("Add", ["skip", "inner"], ["joined"]),
        helper.make_node("Flatten", ["joined"], ["flat"]),
        helper.make_node("MatMul", ["flat", "fc"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 3, name) for name, shape in weights.items()],
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.mark.long
def test_an_onnx_file_is_cut_through_a_residual_block_served_and_attacked(tmp_path: Path) -> None:
    residual_net(tmp_path / "net.onnx")
    artefact = tmp_path / "artefact"
    command = ["split", str(tmp_path / "net.onnx"), "--at", "skip+inner", "--out", str(artefact), "--dataset", "digits"]
    assert CliRunner().invoke(app, command).exit_code == 0
    document = {
        "name": "own-onnx", "artefact": str(artefact), "frames": 60, "window": 16, "codec": {"kind": "identity"},
        "edge": {"device": "cpu", "threads": 1},
        "attacks": [
            {"name": kind, "attack": {"kind": kind}, "threat": {"norm": norm, "eps": 0.5, "eps_unit": "std", "budget": 150}}
            for kind, norm in (("square", "linf"), ("hopskipjump", "l2"))
        ],
    }  # fmt: skip
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["run", str(tmp_path / "scenario.yaml"), "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    assert report["clean"]["agreement_with_unsplit"] == 1
    assert report["ledger"]["agrees"], report["ledger"]["disagreements"]
    assert all(attack["queries"]["total"] > 60 for attack in report["attacks"])
    assert max(attack["asr"]["value"] for attack in report["attacks"]) > 0.5
