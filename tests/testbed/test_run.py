"""The whole way through: real processes, a clean pass, passes under attack, the report; and what happens when nodes die."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from splitcore.control import load_token
from splitcore.errors import ScenarioError
from splitcore.journal import read
from testbed.cli import app
from testbed.drive import drive, new_run
from testbed.nodes import Node, Process
from testbed.report.build import build, compute
from testbed.report.reconcile import entries_of, reconcile, server_rows_of
from testbed.scenario import dump_scenario, load_scenario

QUIET = Console(quiet=True)
SCENARIOS = sorted(
    path for path in (Path(__file__).parents[2] / "scenarios").rglob("*.yaml") if not path.name.startswith(("study-", "rates-"))
)


def scenario_file(folder: Path, artefact: Path, **changes: Any) -> Path:
    document = {
        "name": "small", "artefact": str(artefact), "frames": 24, "window": 24, "seed": 5,
        "edge": {"device": "cpu", "threads": 1},
        "attacks": [
            {"name": "noise", "attack": {"kind": "noise"}, "threat": {"norm": "linf", "eps": 0.5}},
            {"name": "record", "record": True},
            {"name": "square", "attack": {"kind": "square"}, "threat": {"norm": "linf", "eps": 0.5, "budget": 120}},
            {"name": "hsj", "attack": {"kind": "hopskipjump"}, "threat": {"norm": "l2", "eps": 0.5, "budget": 150}},
            {
                "name": "nes-input", "attack": {"kind": "nes"},
                "threat": {"point": "input", "norm": "linf", "eps": 0.1, "eps_unit": "absolute", "budget": 110},
            },
        ],
        **changes,
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.timeout(180)
def test_a_scenario_runs_to_its_report_and_the_books_agree(digits_artefact: Path, tmp_path: Path) -> None:
    path = scenario_file(tmp_path, digits_artefact)
    result = CliRunner().invoke(app, ["run", str(path), "--runs", str(tmp_path / "runs")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    latest = tmp_path / "runs" / "latest"
    report = json.loads((latest / "report.json").read_text())
    assert report["clean"]["agreement_with_unsplit"] == 1.0
    assert report["clean"]["accuracy"] >= 0.85
    assert report["ledger"]["agrees"], report["ledger"]["disagreements"]
    assert report["ledger"]["rows"] == report["ledger"]["server_rows"] > 24 * 7
    attacks = {attack["name"]: attack for attack in report["attacks"]}
    assert list(attacks) == ["noise", "record", "square", "hsj", "nes-input"]
    assert attacks["record"]["asr"]["value"] == 0.0
    assert attacks["square"]["asr"]["value"] > attacks["noise"]["asr"]["value"]
    assert attacks["square"]["asr_claimed"]["count"] >= attacks["square"]["asr"]["count"]
    for name, budget in (("square", 120), ("hsj", 150), ("nes-input", 110)):
        [folder] = (latest / "passes").glob(f"*-{name}")
        sessions = list(read(folder / "sessions.jsonl"))
        assert len(sessions) == 24
        assert max(session["queries"] for session in sessions) <= budget
        assert {session["reason"] for session in sessions} <= {"success", "budget", "exhausted"}
    assert (latest / "report.html").stat().st_size > 10_000
    assert report["telemetry"]["full"] == report["telemetry"]["frames"] == 24 * 7


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_run_that_was_cut_off_is_resumed_and_whole_passes_stay(digits_artefact: Path, tmp_path: Path) -> None:
    scenario = load_scenario(scenario_file(tmp_path, digits_artefact, frames=8))
    folder = new_run(scenario, tmp_path / "runs")
    drive(folder, digits_artefact, None, QUIET)
    [square] = (folder / "passes").glob("*-square")
    before = {path.parent.name: path.read_bytes() for path in folder.glob("passes/*/pass.json") if path.parent != square}
    (square / "pass.json").unlink()
    drive(folder, digits_artefact, None, QUIET)
    after = {path.parent.name: path.read_bytes() for path in folder.glob("passes/*/pass.json") if path.parent != square}
    assert before == after
    # the client had a line for every frame of the pass already: none was sent again, and no query asked again
    assert len(list(read(square / "frames.jsonl"))) == 8
    assert build(folder, digits_artefact).ledger.agrees


@pytest.mark.long
@pytest.mark.timeout(180)
def test_an_edge_that_is_killed_under_attack_leaves_one_line_a_frame_and_books_that_agree(
    digits_artefact: Path, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token = load_token(token_file)
    common = ["--artefact", str(digits_artefact), "--token-file", str(token_file)]
    run, count = "killed", 60

    def start_edge(listen: str) -> tuple[Process, dict[str, Any]]:
        process = Process(
            "edge_server",
            tmp_path / "edge",
            [*common, "--listen", listen, "--device", "cpu", "--tail", "eager", "--threads", "1"],
        )
        return process, process.wait_ready()

    edge, ready = start_edge("127.0.0.1:0")
    started = [edge]
    try:
        relay = Process("adversary", tmp_path / "adversary", [*common, "--upstream", ready["grpc"]])
        started.append(relay)
        relay_ready = relay.wait_ready()
        phone = Process("mobile_client", tmp_path / "client", [*common, "--target", relay_ready["grpc"]])
        started.append(phone)
        adversary = Node("adversary", relay_ready["control"], token)
        client = Node("client", phone.wait_ready()["control"], token)
        threat = {"norm": "linf", "eps": 0.3, "eps_unit": "std", "budget": 200}
        adversary.put("/behaviour", {"kind": "attack", "run": run, "attack": {"kind": "square"}, "threat": threat})
        client.post("/passes", {"run": run, "count": count, "window": 16, "load": {"kind": "offline"}})
        wait_until(lambda: client.get(f"/passes/{run}")["done"] >= 10)
        edge.kill()
        time.sleep(0.5)
        again, _ = start_edge(ready["grpc"])
        started.append(again)
        wait_until(lambda: client.get(f"/passes/{run}")["state"] != "running", 120)
        assert client.get(f"/passes/{run}")["state"] == "done"
        adversary.put("/behaviour", {"kind": "pass"})
        lines = Counter(row["id"] for row in read(tmp_path / "client" / "passes" / run / "frames.jsonl"))
        assert set(lines.values()) == {1}
        assert len(lines) == count
        ledger = entries_of(read(tmp_path / "adversary" / "queries.jsonl"))
        log = server_rows_of(read(tmp_path / "edge" / "server.jsonl"))
        sessions = [Asked(row) for row in read(tmp_path / "adversary" / "sessions" / f"{run}.jsonl")]
        assert len(sessions) == count
        counts, wrong = reconcile(ledger, log, sessions, budget=200)
        assert wrong == []
        assert counts.lost > 0
    finally:
        for process in reversed(started):
            process.stop()


@pytest.mark.long
@pytest.mark.timeout(180)
def test_an_adversary_that_is_killed_starts_no_second_session_for_a_frame(digits_artefact: Path, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token = load_token(token_file)
    common = ["--artefact", str(digits_artefact), "--token-file", str(token_file)]
    behaviour = {
        "kind": "attack", "run": "killed", "attack": {"kind": "square"},
        "threat": {"norm": "linf", "eps": 0.05, "eps_unit": "std", "budget": 300},
    }  # fmt: skip
    edge = Process("edge_server", tmp_path / "edge", [*common, "--device", "cpu", "--tail", "eager", "--threads", "1"])
    started = [edge]
    try:
        upstream = ["--upstream", edge.wait_ready()["grpc"]]
        relay = Process("adversary", tmp_path / "adversary", [*common, *upstream])
        started.append(relay)
        first = relay.wait_ready()
        phone = Process("mobile_client", tmp_path / "client", [*common, "--target", first["grpc"]])
        started.append(phone)
        client = Node("client", phone.wait_ready()["control"], token)
        adversary = Node("adversary", first["control"], token)
        adversary.put("/behaviour", behaviour)
        client.post("/passes", {"run": "killed", "count": 20, "window": 20, "load": {"kind": "offline"}})
        wait_until(lambda: adversary.get("/status")["ledger"].get("query", 0) > 500)
        relay.kill()
        again = Process("adversary", tmp_path / "adversary", [*common, *upstream, "--listen", first["grpc"]])
        started.append(again)
        adversary = Node("adversary", again.wait_ready()["control"], token)
        adversary.put("/behaviour", behaviour)
        wait_until(lambda: client.get("/passes/killed")["state"] != "running")
        adversary.put("/behaviour", {"kind": "pass"})
        assert len(list(read(tmp_path / "client" / "passes" / "killed" / "frames.jsonl"))) == 20
        rows = list(read(tmp_path / "adversary" / "sessions" / "killed.jsonl"))
        assert len({row["frame"] for row in rows}) == len(rows) == 20
        ledger = entries_of(read(tmp_path / "adversary" / "queries.jsonl"))
        log = server_rows_of(read(tmp_path / "edge" / "server.jsonl"))
        _, wrong = reconcile(ledger, log, [Asked(row) for row in rows], budget=300)
        assert wrong == []
    finally:
        for process in reversed(started):
            process.stop()


class Asked:
    def __init__(self, row: dict[str, Any]) -> None:
        self.frame: str = row["frame"]
        self.queries: int = row["queries"]


def wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        threading.Event().wait(0.05)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_shipped_scenario_is_valid_and_survives_being_written_out(path: Path, tmp_path: Path) -> None:
    scenario = load_scenario(path)
    (tmp_path / "again.yaml").write_text(dump_scenario(scenario))
    assert load_scenario(tmp_path / "again.yaml") == scenario


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"frmes": 3}, "frmes"),
        ({"frames": 0}, "greater than or equal to 1"),
        ({"adversary": False}, "expected no attacks"),
        ({"attacks": [{"name": "clean", "record": True}]}, "names that differ"),
        ({"attacks": [{"name": "s", "attack": {"kind": "rays"}, "threat": {"norm": "l2"}}]}, "norms linf, got l2"),
        ({"attacks": [{"name": "s", "attack": {"kind": "sqare"}}]}, "sqare"),
        ({"load": {"kind": "server"}}, "rate_hz"),
        ({"cuts": [{}]}, "expected a `recipe` to train or an `artefact` to use"),
        ({"streams": [{"name": "record", "policy": {"kind": "fixed"}}]}, "names that differ"),
        ({"streams": [{"name": "s", "policy": {"kind": "best"}}]}, "best"),
        ({"link": {"kind": "steps", "steps": [{"at_s": 1, "link": "wifi"}]}}, "from at_s 0 on"),
    ],
)
def test_a_wrong_scenario_is_refused_with_what_is_wrong(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=text):
        load_scenario(scenario_file(tmp_path, tmp_path, **changes))


def test_the_report_of_a_run_without_passes_says_so(tmp_path: Path, digits_artefact: Path) -> None:
    folder = new_run(load_scenario(scenario_file(tmp_path, digits_artefact)), tmp_path / "runs")
    with pytest.raises(Exception, match="pass"):
        compute(folder)
