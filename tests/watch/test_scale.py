"""Two edge servers behind nginx, with the configuration that compose mounts: unary calls balance, a stream sticks, one replica
is killed in the middle of a pass, and nothing is lost, nothing computed twice under one attempt."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from composition import free_port
from otlp import Receiver
from tools import tool

from splitcore.control import load_token
from splitcore.journal import read
from splitcore.telemetry.frame_spans import CALL
from splitcore.wire import oip
from splitcore.wire.channel import sync_channel
from testbed.drive import _save_logs
from testbed.nodes import Node, Process, following
from testbed.report.reconcile import entries_of, reconcile, server_rows_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

CONF = Path(__file__).parents[2] / "docker" / "scale" / "nginx.conf"


@dataclass
class Replicas:
    """`address`: nginx, in front of both."""

    edges: list[Process]
    nodes: list[Node]
    address: str
    token: str
    states: Path
    artefact: Path

    def served(self, number: int, method: str) -> float:
        """Calls of a method that one replica has begun."""
        text = httpx.get(f"http://{self.nodes[number].control}/metrics", trust_env=False).text
        found = re.search(rf'^grpc_server_started_total{{grpc_method="{method}",[^}}]*}} (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def replicas(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    nginx, tmp_path = tool("nginx", "nginx-light"), tmp_path_factory.mktemp("scale")
    token = load_token(tmp_path / "token")
    common = ["--artefact", str(digits_artefact), "--token-file", str(tmp_path / "token")]
    edges = [
        Process("edge_server", tmp_path / f"edge-{n}", [*common, "--threads", "1", "--device", "cpu", "--tail", "eager"])
        for n in (1, 2)
    ]
    balancer = None
    try:
        ready = [edge.wait_ready() for edge in edges]
        port = free_port()
        conf = CONF.read_text().replace("listen 8001", f"listen 127.0.0.1:{port}").replace("/tmp/nginx", f"{tmp_path}/nginx")
        for name, one in zip(("edge_server", "edge_server_2"), ready, strict=True):
            conf = conf.replace(f"server {name}:8001", f"server {one['grpc']}")
        (tmp_path / "nginx.conf").write_text(conf)
        command = [nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr", "-g", "daemon off;"]
        with (tmp_path / "nginx.log").open("wb") as log:
            balancer = subprocess.Popen(command, stdout=log, stderr=log)
        address = f"127.0.0.1:{port}"
        with sync_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
        nodes = [Node(f"edge-{n}", one["control"], token) for n, one in enumerate(ready, 1)]
        yield Replicas(edges, nodes, address, token, tmp_path, digits_artefact)
    finally:
        if balancer is not None:
            balancer.terminate()
            balancer.wait(10)
        for edge in edges:
            edge.stop()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    taking = Receiver()
    yield taking
    taking.close()


@pytest.fixture(scope="module")
def phone(replicas: Replicas, receiver: Receiver) -> Iterator[Node]:
    arguments = ["--artefact", str(replicas.artefact), "--token-file", str(replicas.states / "token")]
    arguments += ["--target", replicas.address, "--trace-endpoint", receiver.endpoint, "--trace-rate", "1"]
    process = Process("mobile_client", replicas.states / "client", arguments)
    try:
        yield Node("client", process.wait_ready()["control"], replicas.token)
    finally:
        process.stop()


def rows_of(phone: Node, run: str, what: str) -> list[dict[str, Any]]:
    text = httpx.get(f"http://{phone.control}/passes/{run}/{what}", trust_env=False).text
    return [json.loads(line) for line in text.splitlines()]


def _of(span: dict[str, Any], frame: str) -> bool:
    """Whether it is a sending of that frame."""
    return bool(span["name"] == CALL and span["attributes"]["latentbed.frame"] == frame)


def test_unary_calls_go_to_both_and_a_stream_to_one(replicas: Replicas, phone: Node) -> None:
    with sync_channel(replicas.address) as channel:
        for _ in range(20):
            assert channel.unary_unary(oip.path(oip.LIVE))(b"", timeout=10)
    assert min(replicas.served(number, "ServerLive") for number in (0, 1)) >= 5
    phone.post("/passes", {"run": "sticks", "count": 200, "load": {"kind": "offline"}, "window": 16})
    for _ in following(phone, "sticks"):
        pass
    assert sorted(replicas.served(number, "ModelStreamInfer") for number in (0, 1)) == [0, 1]
    logs = [len(list(read(replicas.states / f"edge-{n}" / "server.jsonl"))) for n in (1, 2)]
    assert sorted(logs) == [0, 200]


def test_the_testbed_reads_the_logs_of_all_replicas_as_one(replicas: Replicas, phone: Node, tmp_path: Path) -> None:
    for run in ("first", "second", "third"):
        phone.post("/passes", {"run": run, "count": 20, "load": {"kind": "offline"}, "window": 8})
        for _ in following(phone, run):
            pass
    for run in ("first", "second", "third"):
        _save_logs(replicas.nodes, tmp_path / f"{run}.jsonl", run)
        rows = server_rows_of(read(tmp_path / f"{run}.jsonl"))
        counts, wrong = reconcile(entries_of(rows_of(phone, run, "attempts")), rows)
        assert wrong == [] and counts.server_entries == 20
        assert {edge for row in rows.values() for edge in row.edges} <= {node.control for node in replicas.nodes}


def test_a_replica_that_is_killed_in_a_pass_loses_nothing_and_computes_nothing_twice(
    replicas: Replicas, phone: Node, receiver: Receiver
) -> None:
    """The last of these tests, since it leaves one replica."""
    run, count = "killed", 1500
    phone.post("/passes", {"run": run, "count": count, "load": {"kind": "server", "rate_hz": 150}, "window": 32})
    logs = [replicas.states / f"edge-{n}" / "server.jsonl" for n in (1, 2)]
    deadline = time.monotonic() + 60
    while max(logged := [sum(row["id"].startswith(f"{run}/") for row in read(log)) for log in logs]) < 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    victim = logged.index(max(logged))
    replicas.edges[victim].kill()
    for _ in following(phone, run):
        pass
    frames = rows_of(phone, run, "frames")
    assert sorted(row["sequence"] for row in frames) == list(range(count))
    assert [row for row in frames if row["error"] is not None] == []
    lines = [
        {**row, "edge": str(number)} for number, log in enumerate(logs) for row in read(log) if row["id"].startswith(f"{run}/")
    ]
    assert {line["edge"] for line in lines} == {"0", "1"}, "the other replica took over"
    entries = entries_of(rows_of(phone, run, "attempts"))
    counts, wrong = reconcile(entries, server_rows_of(lines))
    assert wrong == [] and counts.unended == 0
    # what was with the one that died was asked again, one attempt higher, and no attempt was computed by both
    assert max(row["attempts"] for row in frames) >= 2
    keys = [(line["id"], line["attempt"]) for line in lines]
    assert len(keys) == len(set(keys))
    # and its trace has both sendings
    again = next(row["id"] for row in frames if row["attempts"] == 2)
    spans = receiver.until(lambda seen: sum(_of(span, again) for span in seen) == 2)
    lost, answered = sorted(
        (span for span in spans if _of(span, again)), key=lambda span: span["attributes"]["latentbed.attempt"]
    )
    assert (lost["trace"], lost["parent"]) == (answered["trace"], answered["parent"])
    assert (lost["status"], answered["status"]) == (2, 0)  # error, unset
