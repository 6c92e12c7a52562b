"""A foreign server in a scenario's edge place: MLServer, started here; any endpoint by its address; and the books then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from splitcore.artefact import Artefact
from splitcore.errors import ScenarioError
from testbed.cli import app
from testbed.foreign.config import ENVIRONMENT
from testbed.nodes import Process
from testbed.report.reconcile import Counted, entries_of, reconcile_at_one_end
from testbed.scenario import load_scenario


def run(folder: Path, artefact: Path, server: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
    """(report, report.md, what was said) of a small scenario."""
    threat = {"norm": "linf", "eps": 0.5, "eps_unit": "std", "budget": 150}
    document = {
        "name": "foreign", "artefact": str(artefact), "frames": 24, "window": 24, "seed": 5, "server": server,
        "attacks": [
            {"name": "record", "record": True},
            {"name": "square", "attack": {"kind": "square"}, "threat": threat, "calibration": "record"},
        ],
    }  # fmt: skip
    path = folder / "foreign.yaml"
    path.write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["run", str(path), "--runs", str(folder / "runs")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    latest = folder / "runs" / "latest"
    return json.loads((latest / "report.json").read_text()), (latest / "report.md").read_text(), result.output


def check(report: dict[str, Any], text: str, said: str, artefact: Path) -> None:
    books = report["ledger"]
    assert books["agrees"] and books["against"] == "counts", books
    assert books["rows"] == books["server_rows"] and books["entries"] == books["server_entries"], books
    assert "the foreign server's own counts agree" in text and "own counts agree" in " ".join(said.split())
    assert report["clean"]["agreement_with_unsplit"] == 1.0
    [record, square] = report["attacks"]
    assert record["baseline"] and square["asr"]["n"] > 15 and square["queries"]["total"] > 24
    # the unit of eps is what the recording had, not what the artefact knows
    assert square["eps_absolute"] == pytest.approx(0.5 * Artefact(artefact).latent.std, rel=0.2)
    assert square["eps_absolute"] != pytest.approx(0.5 * Artefact(artefact).latent.std, rel=1e-6)


@pytest.mark.mlserver
@pytest.mark.timeout(240)
def test_a_model_behind_mlserver_falls_to_an_adversary_that_knows_its_metadata_alone(
    digits_artefact: Path, tmp_path: Path
) -> None:
    assert (ENVIRONMENT / "bin" / "mlserver").exists(), "make mlserver"
    report, text, said = run(tmp_path, digits_artefact, {"kind": "mlserver"})
    check(report, text, said, digits_artefact)
    assert {each["device"] for each in report["passes"]} == {"mlserver 1.7.1"}


@pytest.mark.long
@pytest.mark.timeout(180)
def test_any_endpoint_by_its_address_and_a_models_name(digits_artefact: Path, tmp_path: Path) -> None:
    state = tmp_path / "server"
    process = Process("edge_server", state, ["--artefact", str(digits_artefact), "--device", "cpu", "--threads", "1"])
    try:
        endpoint = {"model": Artefact(digits_artefact).manifest.name, "output": "scores"}
        server = {"kind": "endpoint", "address": process.wait_ready()["grpc"], "endpoint": endpoint}
        check(*run(tmp_path, digits_artefact, server), digits_artefact)
    finally:
        process.stop()


def test_a_scenario_that_cannot_be_says_so(tmp_path: Path) -> None:
    base = {"name": "x", "artefact": "a", "server": {"kind": "mlserver"}}
    square = {"name": "square", "attack": {"kind": "square"}, "calibration": "heard"}
    for changes, said in (
        ({"codec": {"kind": "uniform"}}, "identity"),
        ({"cuts": [{"artefact": "b"}]}, "serves one tail"),
        ({"attacks": [square]}, "name: heard, record: true"),
        ({"server": {"kind": "endpoint", "address": "127.0.0.1:1", "endpoint": {"model": "m", "low": 1.0}}}, "low < high"),
    ):
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump({**base, **changes}))
        with pytest.raises(ScenarioError, match=said):
            load_scenario(path)


def sent(name: str, kind: str, rows: int = 1, **rest: Any) -> dict[str, Any]:
    return {"event": "sent", "id": name, "attempt": 1, "kind": kind, "rows": rows, **rest}


def end(name: str, event: str = "answered") -> dict[str, Any]:
    return {"event": event, "id": name, "attempt": 1}


def test_without_a_log_the_books_are_checked_at_the_clients_end_and_by_sums() -> None:
    client = entries_of([sent("r/c/0", "clean"), end("r/c/0"), sent("r/c/1", "clean"), end("r/c/1", "lost")])
    ledger = entries_of([sent("r/c/0", "clean"), end("r/c/0"), sent("r/c/1", "clean"), end("r/c/1", "lost")])
    counts, wrong = reconcile_at_one_end(ledger, client, Counted())
    assert not wrong and counts.against == "client" and counts.agrees
    # a lost request may have been answered, or not
    for requests in (1, 2):
        counts, wrong = reconcile_at_one_end(ledger, client, Counted(requests=requests))
        assert not wrong and counts.against == "counts" and counts.server_entries == requests
    for requests in (0, 3):
        _, [line] = reconcile_at_one_end(ledger, client, Counted(requests=requests))
        assert f"the server counted {requests}" in line


def test_a_frame_that_is_in_one_journal_alone_is_a_disagreement() -> None:
    one, both = sent("r/c/0", "forwarded"), sent("r/c/1", "forwarded")
    client = entries_of([both, end("r/c/1")])
    _, wrong = reconcile_at_one_end(entries_of([one, end("r/c/0"), both]), client, Counted())
    assert sorted(wrong) == [
        "r/c/0 attempt 1: in the ledger, but never sent by the client",
        "r/c/1 attempt 1: the client has an answer, the ledger has none",
    ]
    _, [line] = reconcile_at_one_end({}, client, Counted())
    assert line == "r/c/1 attempt 1: sent by the client, but not in the ledger"
