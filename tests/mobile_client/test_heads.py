"""The phone with heads in int8: measured, chosen, and written into every frame's line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_client import bench
from mobile_client.settings import Decision, device
from splitcore.artefact import Artefact
from splitcore.journal import read
from splitcore.nn.quantise.add import add_int8, calibration_images


@pytest.fixture(scope="module")
def int8_artefact(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    before = Artefact(digits_artefact)
    return add_int8(before, *calibration_images(before, None, 64, None), tmp_path_factory.mktemp("int8") / "digits")


def phone(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mobile_client", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_bench_measures_every_head_and_prints_and_writes_what_it_recommends(int8_artefact: Artefact, tmp_path: Path) -> None:
    options = ("--threads", 2, "--rounds", 6, "--json", tmp_path / "out.json", "--state", tmp_path)
    done = phone("bench", "--artefact", int8_artefact.folder, *options)
    assert done.returncode == 0, done.stderr
    decision = Decision.model_validate_json((tmp_path / "out.json").read_bytes())
    assert decision == Decision.model_validate_json((tmp_path / bench.DECISION).read_bytes())
    assert len(decision.rows) == 9
    assert decision.setting in [row.setting for row in decision.rows]
    assert decision.setting.head not in decision.refused
    assert f"--head {decision.setting.head} --threads {decision.setting.threads}" in done.stdout
    for row in decision.rows:
        assert row.median_ms > 0
        assert row.snr_db == 200 if row.setting.head == "float32" else 25 < row.snr_db < 100
    recommended = next(row for row in decision.rows if row.setting == decision.setting)
    assert recommended.setting.head == "float32" or recommended.ratio >= 1.05


def test_an_artefact_without_heads_in_int8_is_measured_too_and_the_way_to_them_is_named(digits_artefact: Path) -> None:
    done = phone("bench", "--artefact", digits_artefact, "--threads", 1, "--rounds", 5)
    assert done.returncode == 0, done.stderr
    assert "recommended: --head float32 --threads 1" in done.stdout
    assert "latentbed quantise" in done.stdout


def test_a_decision_is_kept_until_artefact_or_device_is_another(
    int8_artefact: Artefact, digits_artefact: Path, tmp_path: Path
) -> None:
    first = bench.decided(int8_artefact, tmp_path)
    assert bench.decided(int8_artefact, tmp_path) == first
    path = tmp_path / bench.DECISION
    assert json.loads(path.read_text())["made_on"] == device(int8_artefact)
    other = bench.decided(Artefact(digits_artefact), tmp_path)
    assert other.made_on == device(Artefact(digits_artefact))
    assert other.setting.head == "float32"
    path.write_text(json.dumps({"of": "another version"}))
    assert bench.decided(int8_artefact, tmp_path).made_on == device(int8_artefact)


@pytest.mark.long
@pytest.mark.parametrize("head", ["int8-u8", "int8-s8"])
def test_frames_of_a_head_in_int8_get_the_labels_of_float32_and_their_lines_say_which_head_ran(
    int8_artefact: Artefact, tmp_path: Path, start_process: Any, head: str
) -> None:
    artefact = ("--artefact", str(int8_artefact.folder))
    edge = start_process("edge_server", tmp_path / "edge", *artefact, "--device", "cpu", "--tail", "eager", "--threads", "1")
    count = len(int8_artefact.unsplit_labels)
    options = ("--target", edge.ready["grpc"], "--state", tmp_path, "--load", "offline", "--run", "r", "--head", head)
    done = phone("once", "--count", count, *artefact, *options, "--threads", 2, "--spinning")
    assert done.returncode == 0, done.stderr
    assert head in done.stdout
    lines = sorted(read(tmp_path / "passes" / "r" / "frames.jsonl"), key=lambda line: line["sequence"])
    assert {line["head"] for line in lines} == {head}
    predicted = np.array([line["predicted"] for line in lines])
    assert (predicted == int8_artefact.unsplit_labels).mean() > 0.98


def test_auto_runs_the_head_that_was_decided(int8_artefact: Artefact, tmp_path: Path, start_process: Any) -> None:
    artefact = ("--artefact", str(int8_artefact.folder))
    edge = start_process("edge_server", tmp_path / "edge", *artefact, "--device", "cpu", "--tail", "eager", "--threads", "1")
    decision = bench.decide(int8_artefact, threads=1, rounds=5)
    int8 = next(row.setting for row in decision.rows if row.setting.head == "int8-s8")
    bench.keep(decision.model_copy(update={"setting": int8}), tmp_path / bench.DECISION)
    options = ("--target", edge.ready["grpc"], "--state", tmp_path, "--run", "r", "--head", "auto")
    done = phone("once", "--count", 5, *artefact, *options)
    assert done.returncode == 0, done.stderr
    assert {line["head"] for line in read(tmp_path / "passes" / "r" / "frames.jsonl")} == {"int8-s8"}


def test_a_head_that_is_unknown_or_absent_is_refused_in_words(digits_artefact: Path, tmp_path: Path) -> None:
    options = ("--artefact", digits_artefact, "--target", "127.0.0.1:1", "--state", tmp_path, "--head")
    unknown, absent = (phone("once", "--count", 1, *options, head) for head in ("int4", "int8-u8"))
    assert unknown.returncode == 2 and "expected --head of float32, int8-u8, int8-s8 or auto" in " ".join(
        unknown.stderr.split()
    )
    assert absent.returncode == 1 and "`latentbed quantise` makes those in int8" in absent.stderr
