"""What a person gets wrong in a file or on the command line is answered in words that say where and what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from splitcore.errors import ScenarioError
from testbed.cli import app
from testbed.report.read import RunDirectoryError, read
from testbed.scenario import load_scenario

ROOT = Path(__file__).parents[2]
ATTACK = {"name": "a", "attack": {"kind": "square"}, "threat": {"norm": "linf", "eps": 1}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"framez": 3}, "framez: there is no such key here; did you mean frames?"),
        ({"depth": 3}, "depth: there is no such key here"),
        ({"frames": "many"}, "frames: expected a valid integer, got 'many'"),
        ({"frames": 0}, "frames: expected greater than or equal to 1, got 0"),
        ({"name": None}, "name: expected a valid string, got nothing"),
        ({"recipe": None}, "expected a `recipe` to train or an `artefact` to use, got neither"),
        ({"load": {"kind": "serve"}}, "load: expected 'kind' of 'single_stream', 'server', 'offline', got 'serve'"),
        ({"codec": {"bits": 4}}, "codec: expected a key 'kind', got {'bits': 4}"),
        ({"edge": 4}, "edge: expected lines of `key: value`, got 4"),
        ({"nodes": {}}, "nodes.client: expected a value, there is none"),
        ({"attacks": [ATTACK, {**ATTACK, "ordr": 1}]}, "attacks[1].ordr: there is no such key here; did you mean order?"),
        ({"attacks": [ATTACK | {"threat": {"eps": "x"}}]}, "attacks[0].threat.eps: expected a valid number, got 'x'"),
        ({"attacks": ["square"]}, "attacks[0]: expected lines of `key: value`, got 'square'"),
        (
            {"attacks": [{"name": "a", "record": 1, "frame": 3}]},
            "attacks[0].frame: there is no such key here; did you mean frames?",
        ),
    ],
)
def test_what_is_wrong_with_a_scenario_is_said_once_with_its_place(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "recipe": "recipe.yaml", **change}))
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path} is not a scenario:"
    assert lines.count(f"  {said}") == 1
    assert "pydantic" not in str(caught.value)


def test_a_file_that_is_wrong_throughout_is_described_by_its_first_faults(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump({f"key{i}": i for i in range(40)}))
    with pytest.raises(ScenarioError, match=r"and 31 more$"):
        load_scenario(path)
    for text, said in (("", "got nothing"), ("words", "got 'words'"), ("- 1", r"got \[1\]"), ("[" * 5000, "is not YAML")):
        path.write_text(text)
        with pytest.raises(ScenarioError, match=said):
            load_scenario(path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "absent.yaml"], ["run", "FOLDER"], ["run"], ["run", "--resume", "FOLDER"], ["report", "FOLDER"],
        ["report", "FILE"], ["study", "FOLDER"], ["study", "FILE"], ["run", "FILE"],
    ],
)  # fmt: skip
def test_a_wrong_path_is_refused_without_a_traceback(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)))
    stands_for = {"FOLDER": str(tmp_path), "FILE": str(file)}
    result = CliRunner().invoke(app, [stands_for.get(one, one) for one in arguments])
    assert isinstance(result.exception, ScenarioError | RunDirectoryError)
    assert "expected" in str(result.exception) or "is not YAML" in str(result.exception)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("scenario.yaml", "x: ["), ("scenario.yaml", "\x00"), ("scenario.yaml", "words"), ("clocks.json", "[1]"),
        ("clocks.json", '{"edge": {"offset": 3}}'), ("versions.json", "{"), ("passes/00-clean/pass.json", "{}"),
        ("passes/00-clean/pass.json", "3"),
    ],
)  # fmt: skip
def test_a_report_of_a_broken_run_directory_names_the_file(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "passes" / "00-clean").mkdir(parents=True)
    (tmp_path / "passes" / "00-clean" / "pass.json").write_text("{}")
    (tmp_path / file).write_text(content)
    with pytest.raises(RunDirectoryError, match=rf"expected .*{re.escape(file)}|{re.escape(file)}: expected"):
        read(tmp_path)


def test_a_folder_that_cannot_be_made_stops_a_training_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [
        sys.executable,
        "-m",
        "testbed.cli",
        "train",
        "recipes/digits.yaml",
        "--out",
        str(tmp_path / "file" / "artefact"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("NotADirectoryError: ")
    assert done.stderr.count("\n") == 1
