"""The published CIFAR ResNets over the live wire: head in ONNX Runtime, identity codec, tail on an edge server of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from testbed.cli import app

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("LATENTBED_DATA", "")


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.skipif(not DATA, reason="needs CIFAR-10 and the published weights in LATENTBED_DATA")
@pytest.mark.parametrize(("net", "right"), [("20-stage1", 915), ("32-stage2", 928), ("44-stage1", 933), ("56-stage2", 926)])
def test_published_weights_have_their_accuracy_over_the_live_wire_and_the_unsplit_models_labels(
    net: str, right: int, tmp_path: Path
) -> None:
    document = yaml.safe_load((ROOT / "scenarios" / "cifar-resnet.yaml").read_text())
    document["recipe"] = str(ROOT / "recipes" / f"cifar10-resnet{net}.yaml")
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(document))
    arguments = ["run", str(tmp_path / "scenario.yaml"), "--runs", str(tmp_path / "runs"), "--data-dir", DATA]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    clean, passes = report["clean"], report["passes"]
    assert [p["codec"] for p in passes] == ["identity", "identity"]
    assert [p["answered"] for p in passes] == [1000, 1000]
    assert clean["n"] == clean["agreement_with_unsplit_rate"]["n"] == 1000
    assert round(clean["accuracy"] * 1000) == right
    assert clean["agreement_with_unsplit"] == 1.0
    assert report["ledger"]["agrees"]
