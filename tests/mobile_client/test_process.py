"""The phone as a process, with real edge servers: killed nodes, exit codes, all codecs, the table."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from splitcore.artefact import MANIFEST, Artefact
from splitcore.journal import read

CODECS = [
    {"kind": kind, "zstd": zstd, **more}
    for kind, more in [("identity", {}), ("float16", {}), ("uniform", {"bits": 8}), ("uniform", {"bits": 4, "per": "tensor"})]
    for zstd in (False, True)
]


def rows(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.get(path).raise_for_status().text.splitlines()]


def wait_for(client: httpx.Client, run: str, *, done: int | None = None) -> dict[str, Any]:
    """The pass's status when it has ended, or when `done` frames have their line."""
    while True:
        status: dict[str, Any] = client.get(f"/passes/{run}").raise_for_status().json()
        if status["state"] != "running" or (done is not None and status["done"] >= done):
            return status
        time.sleep(0.01)


def check_ledger(attempts: list[dict[str, Any]], server_log: list[dict[str, Any]]) -> None:
    """By distinct (id, attempt): answered in the log, logged answered or lost in the ledger."""
    events: dict[str, set[tuple[str, int]]] = {"sent": set(), "answered": set(), "lost": set()}
    for row in attempts:
        events[row["event"]].add((row["id"], row["attempt"]))
    logged = {(row["id"], row["attempt"]) for row in server_log}
    assert events["answered"] <= logged <= events["answered"] | events["lost"]
    assert events["sent"] == events["answered"] | events["lost"]


@pytest.fixture(scope="module")
def servers(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An edge server and a phone that many tests may use."""
    state = tmp_path_factory.mktemp("nodes")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(module: str, name: str, *arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        with (state / f"{name}.output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, "--state", str(state / name), "--artefact", str(digits_artefact), *arguments],
                env=environment, stdout=output, stderr=output,
            )  # fmt: skip
        ready = state / name / "ready.json"
        while not ready.exists():
            assert process.poll() is None, (state / f"{name}.output").read_text()
            time.sleep(0.02)
        return process, json.loads(ready.read_text())

    edge, edge_ready = start("edge_server", "edge", "--device", "cpu", "--tail", "eager", "--threads", "1")
    phone, phone_ready = start("mobile_client", "phone", "--target", edge_ready["grpc"], "--patience-s", "5")
    token = (state / "phone" / "token").read_text().strip()
    with httpx.Client(
        base_url=f"http://{phone_ready['control']}", headers={"Authorization": f"Bearer {token}"}, trust_env=False, timeout=20
    ) as client:
        yield client, state, edge_ready["grpc"]
    for process in (phone, edge):
        process.terminate()
    assert [process.wait(20) for process in (phone, edge)] == [0, 0]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: "-".join(map(str, codec.values())))
def test_every_codec_reaches_the_tail_and_identity_says_what_the_unsplit_model_says(
    servers: Any, digits_artefact: Path, codec: dict[str, Any]
) -> None:
    client, state, _ = servers
    artefact = Artefact(digits_artefact)
    count = len(artefact.unsplit_labels) if codec["kind"] == "identity" else 60
    run = "codec-" + "-".join(map(str, codec.values()))
    request = {"run": run, "count": count, "codec": codec, "load": {"kind": "offline"}, "window": 64}
    assert client.post("/passes", json=request).status_code == 202
    assert wait_for(client, run)["state"] == "done"
    frames = rows(client, f"/passes/{run}/frames")
    predicted = np.array([row["predicted"] for row in sorted(frames, key=lambda row: row["sequence"])])
    agreement = (predicted == artefact.unsplit_labels[:count]).mean()
    assert agreement == 1 if codec["kind"] == "identity" else agreement > 0.9
    attempts = rows(client, f"/passes/{run}/attempts")
    assert {row["event"] for row in attempts} == {"sent", "answered"}
    logged = {(row["id"], row["attempt"]) for row in read(state / "edge" / "server.jsonl")}
    assert {(row["id"], row["attempt"]) for row in attempts} <= logged


def test_one_pass_at_a_time_and_no_change_without_the_token(servers: Any) -> None:
    client, *_ = servers
    long = {"run": "long", "count": 30, "load": {"kind": "server", "rate_hz": 100}}
    assert client.post("/passes", json=long, headers={"Authorization": "Bearer no"}).status_code == 401
    assert client.post("/exit", json={"code": 0}, headers={"Authorization": ""}).status_code == 401
    assert client.get("/passes/long").status_code == 404
    assert client.post("/passes", json=long).status_code == 202
    assert client.post("/passes", json={"run": "other", "count": 1}).status_code == 409
    assert client.post("/passes", json=long).json()["state"] == "running"
    assert wait_for(client, "long") == {"run": "long", "state": "done", "done": 30, "count": 30, "error": None, "alarms": 0}
    assert client.post("/passes", json=long | {"count": 31}).status_code == 409
    assert client.post("/passes", json={"run": "x", "count": 1, "colour": "red"}).status_code == 422


def test_a_source_that_is_absent_fails_the_pass_with_its_reason(servers: Any) -> None:
    client, *_ = servers
    for run, path in (("absent", "/nowhere"), ("nul", "\0")):
        client.post("/passes", json={"run": run, "count": 1, "source": {"kind": "folder", "path": path}})
        status = wait_for(client, run)
        assert (status["state"], status["done"]) == ("failed", 0)
        assert status["error"]


def test_once_prints_accuracy_and_latency(servers: Any, digits_artefact: Path, tmp_path: Path) -> None:
    _, _, target = servers
    command = [sys.executable, "-m", "mobile_client", "once", "--count", "40", "--artefact", str(digits_artefact)]
    command += ["--state", str(tmp_path), "--target", target, "--load", "server", "--rate-hz", "400", "--link", "lan"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "latency p99" in done.stdout
    assert "of 40)" in done.stdout


def test_another_artefact_fails_the_pass_at_once_and_names_both_sides(
    servers: Any, digits_artefact: Path, tmp_path: Path, start_process: Any
) -> None:
    _, _, target = servers
    other = tmp_path / "other"
    shutil.copytree(digits_artefact, other)
    manifest = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(json.dumps(manifest | {"accuracy": 0.123}))
    phone = start_process("mobile_client", tmp_path / "phone", "--artefact", str(other), "--target", target)
    with phone.http() as client:
        client.post("/passes", json={"run": "r", "count": 5})
        status = wait_for(client, "r")
        assert status["state"] == "failed"
        for folder in (other, digits_artefact):
            assert Artefact(folder).manifest.handshake in status["error"]
        assert rows(client, "/passes/r/attempts") == []
        # and the exit code is the one that was asked for
        assert client.post("/exit", json={"code": 7}).status_code == 202
    assert phone.popen.wait(20) == 7


@pytest.mark.long
@pytest.mark.parametrize(("end", "link"), [("kill", None), ("drain", "lan")])
def test_an_edge_that_is_killed_or_drained_and_started_again_leaves_exactly_one_line_an_id(
    digits_artefact: Path, tmp_path: Path, start_process: Any, end: str, link: str | None
) -> None:
    def start_edge(listen: str) -> Any:
        arguments = ["--artefact", str(digits_artefact), "--listen", listen, "--device", "cpu", "--tail", "eager"]
        return start_process("edge_server", tmp_path / "edge", *arguments, "--threads", "1")

    log = tmp_path / "edge" / "server.jsonl"
    edge = start_edge("127.0.0.1:0")
    address = edge.ready["grpc"]
    phone = start_process("mobile_client", tmp_path / "phone", "--artefact", str(digits_artefact), "--target", address)
    with phone.http() as client:
        request = {"run": "r", "count": 300, "load": {"kind": "server", "rate_hz": 150}, "window": 8, "link": link}
        assert client.post("/passes", json=request).status_code == 202
        assert wait_for(client, "r", done=50)["state"] == "running"
        if end == "kill":
            # stopped first for some periods of the load, so that frames are in flight when it dies
            edge.popen.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            edge.kill()
        else:
            assert edge.end() == 0
        computed_before = sum(1 for _ in read(log))
        start_edge(address)
        serving_ns = time.monotonic_ns()
        status = wait_for(client, "r")
        assert (status["state"], status["done"]) == ("done", 300)
        frames, attempts = rows(client, "/passes/r/frames"), rows(client, "/passes/r/attempts")
    # no wall time of ours, but a promise of the phone's: its backoff ends at 1 s, so it is back within 2
    assert list(read(log))[computed_before]["t_ns"] - serving_ns < 2e9
    assert sorted(row["sequence"] for row in frames) == list(range(300))
    assert {row["error"] for row in frames} == {None}
    if end == "kill":  # the frozen window was lost and asked again; one that drains may have nothing to refuse
        assert sum(row["attempts"] > 1 for row in frames) == 8
    check_ledger(attempts, list(read(log)))
    assert phone.end() == 0


def test_a_killed_phone_goes_on_where_it_stopped(
    servers: Any, digits_artefact: Path, tmp_path: Path, start_process: Any
) -> None:
    _, state, target = servers
    arguments = ["--artefact", str(digits_artefact), "--target", target]
    request = {"run": "resumed", "count": 200, "load": {"kind": "server", "rate_hz": 300}}
    for kill_at in (40, 100, None):
        phone = start_process("mobile_client", tmp_path / "phone", *arguments)
        with phone.http() as client:
            if kill_at != 40:
                assert client.get("/passes/resumed").json()["state"] == "failed"
            client.post("/passes", json=request)
            status = wait_for(client, "resumed", done=kill_at)
            if kill_at is not None:
                assert status["state"] == "running"
                phone.kill()
    assert status == {"run": "resumed", "state": "done", "done": 200, "count": 200, "error": None, "alarms": 0}
    assert phone.end() == 0
    folder = tmp_path / "phone" / "passes" / "resumed"
    frames, attempts = list(read(folder / "frames.jsonl")), list(read(folder / "attempts.jsonl"))
    assert sorted(row["sequence"] for row in frames) == list(range(200))
    assert len({(row["id"], row["attempt"]) for row in attempts if row["event"] == "sent"}) == sum(
        row["event"] == "sent" for row in attempts
    )
    check_ledger(attempts, [row for row in read(state / "edge" / "server.jsonl") if row["id"].startswith("resumed/")])


def test_sigterm_in_the_middle_of_a_pass_ends_in_order(
    servers: Any, digits_artefact: Path, tmp_path: Path, start_process: Any
) -> None:
    _, _, target = servers
    phone = start_process("mobile_client", tmp_path / "phone", "--artefact", str(digits_artefact), "--target", target)
    with phone.http() as client:
        client.post("/passes", json={"run": "r", "count": 1000, "load": {"kind": "server", "rate_hz": 100}})
        wait_for(client, "r", done=5)
    assert phone.end() == 0
    attempts = list(read(tmp_path / "phone" / "passes" / "r" / "attempts.jsonl"))
    sent = sum(row["event"] == "sent" for row in attempts)
    assert sent == sum(row["event"] != "sent" for row in attempts) >= 5


def test_the_phone_never_imports_torch() -> None:
    """Every module of the package, in a process where torch, scikit-learn and onnx cannot be imported."""
    code = """
import importlib, pkgutil, sys
for name in ("torch", "sklearn", "onnx"):
    sys.modules[name] = None
import mobile_client
for module in pkgutil.walk_packages(mobile_client.__path__, "mobile_client."):
    importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
