"""`latentbed quantise` as a command, and a scenario whose phone runs a head in int8."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from splitcore.artefact import Artefact
from splitcore.journal import read
from splitcore.nn.quantise.add import add_int8, calibration_images


def latentbed(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "testbed.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.long
def test_the_command_adds_heads_and_says_what_they_cost(digits_artefact: Path, tmp_path: Path) -> None:
    made = latentbed("quantise", digits_artefact, "--out", tmp_path / "digits", "--count", 64)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "points lost" in made.stdout
    assert Artefact(tmp_path / "digits").manifest.handshake in made.stdout.replace("\n", "")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_scenario_runs_with_a_head_in_int8(digits_artefact: Path, tmp_path: Path) -> None:
    before = Artefact(digits_artefact)
    add_int8(before, *calibration_images(before, None, 64, None), tmp_path / "digits")
    square = {"name": "square", "attack": {"kind": "square"}, "threat": {"norm": "linf", "eps": 0.5, "budget": 40}}
    scenario = {
        "name": "int8", "artefact": "digits", "frames": 8, "phone": {"head": "int8-u8", "threads": 2},
        "edge": {"device": "cpu", "threads": 1}, "attacks": [square],
    }  # fmt: skip
    (tmp_path / "int8.yaml").write_text(yaml.safe_dump(scenario))
    done = latentbed("run", tmp_path / "int8.yaml", "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for path in (tmp_path / "runs").glob("latest/passes/*/frames.jsonl") for line in read(path)]
    assert len(lines) == 3 * 8
    assert {line["head"] for line in lines} == {"int8-u8"}
    assert json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())["ledger"]["agrees"]


@pytest.mark.long
def test_without_images_to_calibrate_with_the_command_says_what_to_give(digits_artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = latentbed("quantise", digits_artefact, "--out", tmp_path / "out", "--images", tmp_path / "empty")
    assert done.returncode == 1
    assert "expected .jpeg, .jpg, .png files in it" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
