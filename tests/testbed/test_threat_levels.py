"""The threat levels as scenarios: what a run makes for itself, what its report says of protection, and whole runs at each."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from splitcore.errors import ScenarioError
from testbed.cli import app
from testbed.report.security import added_us, price_of
from testbed.scenario import load_scenario
from testbed.security import Security, arm

SCENARIOS = Path(__file__).parents[2] / "scenarios" / "threat"
SQUARE = {"name": "square", "attack": {"kind": "square"}, "threat": {"norm": "linf", "eps": 0.5, "budget": 250}}


def scenario_file(folder: Path, artefact: Path, level: str, **changes: Any) -> Path:
    document = {
        "name": level, "artefact": str(artefact), "frames": 24, "window": 8, "edge": {"device": "cpu", "threads": 1},
        "security": {"level": level, "price_frames": 16}, "attacks": [SQUARE, {"name": "probe", "probe": 3}], **changes,
    }  # fmt: skip
    path = folder / f"{level}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def report_of(folder: Path, path: Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["run", str(path), "--runs", str(folder / "runs")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads((folder / "runs" / "latest" / "report.json").read_text())
    assert report["ledger"]["agrees"], report["ledger"]["disagreements"]
    assert report["clean"]["accuracy"] >= 0.85
    assert "<h2>Security</h2>" in (folder / "runs" / "latest" / "report.html").read_text()
    return report


def attack_of(report: dict[str, Any], name: str = "square") -> dict[str, Any]:
    return next(attack for attack in report["attacks"] if attack["name"] == name)


def probes_of(report: dict[str, Any]) -> dict[str, tuple[int, dict[str, int]]]:
    """(answered, refused by status) of what the adversary tried."""
    return {probe["way"]: (probe["answered"], probe["refused"]) for probe in report["security"]["probes"]}


@pytest.mark.long
@pytest.mark.timeout(240)
def test_in_clear_text_the_adversary_asks_with_the_token_that_it_heard(digits_artefact: Path, tmp_path: Path) -> None:
    path = scenario_file(
        tmp_path, digits_artefact, "clear", security={"level": "clear", "tokens": True},
        attacks=[{**SQUARE, "name": "honest"}, {**SQUARE, "steal_token": True}, {"name": "probe", "probe": 3}],
    )  # fmt: skip
    report = report_of(tmp_path, path)
    assert report["security"]["price"] is None
    assert attack_of(report)["asr"]["count"] >= 3
    assert attack_of(report, "honest")["asr"]["value"] == 0.0
    probes = probes_of(report)
    assert probes["query"] == (0, {"UNAUTHENTICATED": 3})
    assert probes["query with stolen token"] == (3, {})


@pytest.mark.long
@pytest.mark.timeout(240)
def test_with_a_root_too_many_on_the_phone_tls_protects_nothing(digits_artefact: Path, tmp_path: Path) -> None:
    path = scenario_file(tmp_path, digits_artefact, "tls-evil-ca", security={"level": "tls-evil-ca", "price_frames": 0})
    report = report_of(tmp_path, path)
    assert attack_of(report)["asr"]["count"] >= 3
    assert probes_of(report)["query"] == (3, {})
    assert report["security"]["price"] is None


@pytest.mark.long
@pytest.mark.timeout(240)
def test_with_mtls_nothing_falls_and_nobody_else_is_answered(digits_artefact: Path, tmp_path: Path) -> None:
    report = report_of(tmp_path, scenario_file(tmp_path, digits_artefact, "mtls"))
    attack = attack_of(report)
    assert (attack["asr"]["count"], attack["frames"]["held"], attack["frames"]["errors"]) == (0, 0, 0)
    assert attack["asr"]["n"] > 15
    refused = (0, {"UNAVAILABLE": 3})
    ways = ("query", "query in clear text", "query with own certificate")
    assert probes_of(report) == dict.fromkeys(ways, refused)
    price = report["security"]["price"]
    assert price["added_bytes_up"] > 10 and price["connection_bytes"] > 1000
    folder = tmp_path / "runs" / "latest" / "security"
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")} == {0o600}


@pytest.mark.long
@pytest.mark.timeout(240)
def test_with_sealed_frames_nothing_falls_though_the_adversary_holds_every_frame(digits_artefact: Path, tmp_path: Path) -> None:
    report = report_of(tmp_path, scenario_file(tmp_path, digits_artefact, "sealed"))
    attack = attack_of(report)
    assert (attack["asr"]["count"], attack["frames"]["held"], attack["queries"]["total"]) == (0, 24, 24)
    assert attack["asr"]["n"] > 15
    probes = probes_of(report)
    assert probes["query"] == probes["replay"] == probes["change"] == (0, {"UNAUTHENTICATED": 3})
    rows = {(row["name"], row["kind"]): row for row in report["security"]["refusals"]}
    assert rows["square", "query"]["refused"] == {"UNAUTHENTICATED": 24}
    # a frame that is let go behind a later one is refused too: that costs the phone an answer, and gives nobody a label
    passed = rows["square", "frame"]
    assert passed["answered"] + passed["refused"].get("UNAUTHENTICATED", 0) == 24
    assert 100 < report["security"]["price"]["added_bytes_up"] < 300


def test_the_shipped_levels_attack_alike() -> None:
    scenarios = {path.stem: load_scenario(path) for path in SCENARIOS.glob("*.yaml")}
    assert sorted(scenarios) == ["clear", "mtls", "sealed", "tls-evil-ca"]
    for level, scenario in scenarios.items():
        assert scenario.security is not None and scenario.security.level == level
        assert [one.name for one in scenario.attacks] == ["square", "hopskipjump", "probe"]
        assert (scenario.frames, scenario.seed) == (scenarios["clear"].frames, scenarios["clear"].seed)


def test_a_run_makes_its_certificates_and_keys_once_and_for_itself_alone(tmp_path: Path) -> None:
    for level in ("tls-evil-ca", "mtls", "sealed"):
        folder = tmp_path / level
        security = Security.model_validate({"level": level, "tokens": True})
        made = arm(security, folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in [*folder.glob("*.key"), folder / "token"]} == {0o600}
        assert arm(security, folder) == made
        assert made.token and made.token not in (folder / "tokens.json").read_text()
    assert arm(Security(), tmp_path / "clear").edge == ()
    assert not (tmp_path / "clear").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"security": {"level": "tls"}}, "tls-evil-ca"),
        ({"security": {"level": "mtls", "keys": 3}}, "keys"),
        ({"attacks": [{**SQUARE, "steal_token": True}]}, "tokens: true"),
        ({"attacks": [{"name": "probe", "probe": 0}]}, "greater than or equal to 1"),
        ({"nodes": {"client": {"control": "a:1"}, "adversary": None, "edge": {"control": "b:1"}, "token_file": "t"},
          "adversary": False, "attacks": []}, "price_frames: 0"),
    ],
)  # fmt: skip
def test_security_that_cannot_be_is_refused_with_what_is_wrong(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=text):
        load_scenario(scenario_file(tmp_path, tmp_path, "sealed", **changes))


def test_prices_are_read_off_connections_of_one_frame_and_of_many() -> None:
    # 100 bytes a frame and 1000 a connection without protection; 150 and 1700 with it; up, and nothing down
    plain = {
        "total_ms": [[1.0, 1.2, 1.1]] * 3,
        "bytes_of_one": [(1100, 0)],
        "bytes_of_many": [(2000, 0)] * 3,
        "first_answer_ms": [2.0],
    }
    protected = {
        "total_ms": [[1.3, 1.5, 1.4], [1.4, 1.6, 1.5], [1.3, 1.5, 1.4]], "bytes_of_one": [(1850, 0)],
        "bytes_of_many": [(3200, 0)] * 3, "first_answer_ms": [5.0, 4.0, 3.0],
    }  # fmt: skip
    price = price_of({"frames_a_round": 10, "sides": {"plain": plain, "protected": protected}})
    assert (price.added_bytes_up, price.added_bytes_down, price.connection_bytes) == (50, 0, 700)
    assert (price.first_answer_plain_ms, price.first_answer_protected_ms) == (2.0, 4.0)
    assert price.added_us.value == pytest.approx(300)
    assert price.added_us.low <= 300 <= price.added_us.high <= 400.1


def test_an_added_time_holds_the_rounds_against_one_another() -> None:
    # the machine slows down under both paths alike: the difference of neighbours stays what it is
    rounds = [[float(n), n + 0.5] for n in range(1, 9)]
    slower = [[ms + 0.1 for ms in part] for part in rounds]
    span = added_us(rounds, slower)
    assert [span.low, span.value, span.high] == pytest.approx([100] * 3)
