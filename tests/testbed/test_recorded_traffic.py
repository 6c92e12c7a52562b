"""What a recording is good for, the whole way through: an adversary that listens, learns, and asks nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from splitcore.journal import read
from testbed.cli import app

OWN = '''
"""The nearest recorded latent that was answered otherwise in place of the frame's own, without a question."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Swapped:
    feedback: ClassVar[str] = "none"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    kind: str = "swapped"

    def perturb(self, z, case):
        yield from ()
        pool = case.pool
        order = ((pool.points - z) ** 2).reshape(len(pool.points), -1).sum(axis=1).argsort()
        own = pool.labels[order[0]]
        other = next(row for row in order if pool.labels[row] != own)
        return case.ball.project(pool.points[other][None])[0]
'''


@pytest.mark.long
@pytest.mark.timeout(180)
def test_what_was_recorded_is_learned_from_and_used_without_a_query(digits_artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "swap.py").write_text(OWN)
    recording = {"kind": "recording", "run": "listen", "limit": 400}
    quick = {"surrogate": {"epochs": 10, "members": 1}}
    linf, l2 = {"norm": "linf", "eps": 1.2}, {"norm": "l2", "eps": 2.0}
    document = {
        "name": "recorded", "artefact": str(digits_artefact), "frames": 60, "window": 24, "seed": 5,
        "edge": {"device": "cpu", "threads": 1}, "adversary": {"trust": ["swap.py"]},
        "attacks": [
            {
                "name": "listen", "record": True, "frames": 430,
                "source": {"kind": "dataset", "name": "digits", "split": "train"},
            },
            {"name": "noise", "attack": {"kind": "noise"}, "threat": linf},
            {"name": "universal", "attack": {"kind": "universal", **quick}, "threat": linf, "pool": recording},
            {"name": "transfer", "attack": {"kind": "transfer", **quick}, "threat": linf, "pool": recording},
            {"name": "own", "attack": {"kind": "swap:Swapped"}, "threat": l2, "pool": recording},
            {
                "name": "insider", "attack": {"kind": "transfer", **quick}, "pool": {"kind": "artefact", "limit": 200},
                "threat": {"point": "input", "norm": "linf", "eps": 0.2, "eps_unit": "absolute"},
            },
        ],
    }  # fmt: skip
    path = tmp_path / "recorded.yaml"
    path.write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["run", str(path), "--runs", str(tmp_path / "runs")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    assert report["ledger"]["agrees"], report["ledger"]["disagreements"]
    assert report["ledger"]["queries"] == 0
    attacks = {attack["name"]: attack for attack in report["attacks"]}
    # the samples of this pass were never in a clean one: nothing says which of them count
    assert (attacks["listen"]["asr"]["n"], attacks["listen"]["reference"]) == (0, None)
    fell = {name: attack["asr"]["value"] for name, attack in attacks.items()}
    assert fell["transfer"] > fell["universal"] > fell["noise"] + 0.2
    assert fell["own"] > 0.5
    assert fell["insider"] > 0.1
    learned = attacks["transfer"]["parameters"]["learned"]
    assert learned.items() >= {"rows_recorded": 400, "rows_with_scores": 400, "rows_asked": 0, "held_out": 40}.items()
    assert learned["agreement"] > 0.8
    assert attacks["transfer"]["parameters"]["pool"] == recording
    assert attacks["universal"]["parameters"]["learned"]["fooled_on_surrogate"] > 0.3
    assert attacks["insider"]["parameters"]["learned"]["rows_with_scores"] == 0
    for folder in (tmp_path / "runs" / "latest" / "passes").glob("*"):
        reasons = {session["reason"] for session in read(folder / "sessions.jsonl")}
        assert reasons <= {"blind"}, (folder.name, reasons)
