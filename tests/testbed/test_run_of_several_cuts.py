"""A scenario with two prepared cuts and a link that gets slow, from the command to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from splitcore.journal import read
from testbed.cli import app
from testbed.drive import Plan, plans
from testbed.scenario import load_scenario

WIDE, NARROW = "digits-wide", "digits-narrow"


def scenario_file(folder: Path, cuts: tuple[Path, Path]) -> Path:
    wide, narrow = cuts
    cell = {"rate_up_kbps": 64, "rate_down_kbps": 1000, "delay_ms": 20}
    document = {
        "name": "cuts", "artefact": str(wide), "cuts": [{"artefact": str(narrow)}], "frames": 8,
        "edge": {"device": "cpu", "threads": 1}, "window": 8, "load": {"kind": "server", "rate_hz": 20},
        "link": {"kind": "steps", "steps": [{"at_s": 0, "link": "lan"}, {"at_s": 1, "link": cell}]},
        "streams": [
            {"name": "narrow", "policy": {"kind": "fixed", "artefact": NARROW}},
            {"name": "replan", "policy": {"kind": "replan", "tolerance_ms": 40}, "frames": 80},
        ],
        "attacks": [{"name": "record", "record": True}],
    }  # fmt: skip
    path = folder / "cuts.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_run_of_several_cuts_says_which_frames_went_by_which_and_its_books_agree(
    digits_cuts: tuple[Path, Path], tmp_path: Path
) -> None:
    path = scenario_file(tmp_path, digits_cuts)
    result = CliRunner().invoke(app, ["run", str(path), "--runs", str(tmp_path / "runs")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    latest = tmp_path / "runs" / "latest"
    report = json.loads((latest / "report.json").read_text())
    # through the adversary, which knows the first cut alone: the other's frames are in its books too
    assert report["ledger"]["agrees"], report["ledger"]["disagreements"]
    assert report["ledger"]["rows"] == report["ledger"]["server_rows"] == 4 * 8 + 80
    by_cut = {one["name"]: one for one in report["by_cut"]}
    assert list(by_cut) == ["clean", "identity", "narrow", "replan"]
    assert [cut["artefact"] for cut in by_cut["clean"]["cuts"]] == [WIDE]
    assert [cut["artefact"] for cut in by_cut["narrow"]["cuts"]] == [NARROW]
    replan = by_cut["replan"]
    assert replan["policy"] == "replan" and [cut["artefact"] for cut in replan["cuts"]] == [WIDE, NARROW]
    assert sum(cut["frames"] for cut in replan["cuts"]) == replan["all"]["frames"] == 80
    assert replan["cuts"][0]["bytes_up"] > replan["cuts"][1]["bytes_up"]
    assert [switch["to"] for switch in replan["switches"]][:2] == [WIDE, NARROW]
    assert all(set(switch["predicted_ms"]) == {WIDE, NARROW} for switch in replan["switches"][1:])
    [folder] = (latest / "passes").glob("*-replan")
    went = {row["id"]: row["artefact"] for row in read(folder / "frames.jsonl")}
    assert {row["id"]: row["model"] for row in read(folder / "server.jsonl")} == went
    assert "replan, switches:" in (latest / "report.md").read_text()
    assert "Frames by cut" in (latest / "report.html").read_text()


def test_streams_come_after_the_clean_passes_and_before_the_attacks(digits_cuts: tuple[Path, Path], tmp_path: Path) -> None:
    made = [(plan.name, plan.kind) for plan in plans(load_scenario(scenario_file(tmp_path, digits_cuts)))]
    assert made == [
        ("clean", "clean"), ("identity", "identity"), ("narrow", "stream"), ("replan", "stream"), ("record", "attack"),
    ]  # fmt: skip
    assert Plan(3, "replan", "stream").folder == "03-replan"
