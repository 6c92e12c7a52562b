"""The dashboard and the alerts: PromQL that parses, over metrics that the nodes have; and a real Prometheus that reads them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import promql_parser
import pytest
import yaml
from composition import free_port
from otlp import Receiver
from prometheus_client.parser import text_string_to_metric_families
from tools import tool
from trio import Trio, trio

from adversary.metrics import Deeds
from adversary.metrics import registry_of as adversarys
from edge_server.gpu import ENERGY, GAUGES
from edge_server.metrics import Counts as Served
from edge_server.metrics import Metrics
from mobile_client.metrics import Counts
from mobile_client.metrics import registry_of as phones
from splitcore.telemetry.exposition import exposition
from splitcore.telemetry.spans import Telemetry
from splitcore.telemetry.tracing import TraceConfig, Tracer

WATCH = Path(__file__).parents[2] / "docker" / "watch"
VARIABLES = {"$__rate_interval": "1m", "$model": ".*", "$__interval": "10s"}
NEEDS_MORE = {"GPU", "Detectors", "Time in detectors, a batch"}
"""panels that stay empty on a machine without a GPU, and at an edge without detectors"""
DETECTORS = {"latentbed_detected_rows", "latentbed_rejected_rows", "latentbed_detect_duration_us"}
"""of an edge that has detectors: a detector has no series before it has detected anything"""


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((WATCH / "grafana/dashboards/latentbed.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """(where it stands, PromQL with Grafana's variables put in)."""
    found = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    rules = yaml.safe_load((WATCH / "alerts.yml").read_text())["groups"][0]["rules"]
    found += [(rule["alert"], rule["expr"]) for rule in rules]
    for name, value in VARIABLES.items():
        found = [(where, expression.replace(name, value)) for where, expression in found]
    assert not any("$" in expression for _, expression in found)
    return found


def names() -> set[str]:
    """Of every sample that the three nodes expose, before anything has happened."""
    tracer = Tracer("test", TraceConfig(endpoint="http://127.0.0.1:1"))
    metrics = Metrics({("m", "1"): Served()}, lambda name, version: (0, 0))
    counts, deeds = Counts(), Deeds()
    for calls in (metrics.calls, counts.calls, deeds.server, deeds.client):
        calls.begin("/inference.GRPCInferenceService/ModelInfer").end(grpc.StatusCode.OK)
    found = {"up", ENERGY, *GAUGES, *DETECTORS}
    for registry in (metrics.registry, phones(counts, Telemetry("client", None)), adversarys(deeds, tracer)):
        text = exposition(registry).decode()
        assert list(text_string_to_metric_families(text))
        found |= {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line and line[0] != "#"}
    tracer.close()
    return found


def selected(expression: str) -> set[str]:
    """The metrics that a query names."""
    found: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)
        for part in ("expr", "lhs", "rhs", "vector_selector", "vs", "args", "param"):
            inner = getattr(node, part, None)
            for one in inner if isinstance(inner, list) else [inner]:
                if isinstance(one, promql_parser.Expr):
                    visit(one)

    visit(promql_parser.parse(expression))
    return found


def test_every_query_parses_and_names_metrics_that_a_node_has() -> None:
    have = names()
    for where, expression in queries():
        asked = selected(expression)
        assert asked, f"{where}: no metric found in {expression}"
        assert asked <= have, f"{where}: {asked - have} is exposed by no node"


def test_no_metric_is_exposed_that_nobody_is_shown() -> None:
    """What is worth counting is worth a panel; what the process and gRPC tell besides may stay unseen."""
    shown = set().union(*(selected(expression) for _, expression in queries()))
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}
    ours = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in names() if name.startswith(("latentbed_", "nv_"))}
    unseen = ours - shown
    assert unseen <= {
        "nv_inference_request_duration_us", "nv_gpu_power_usage", "nv_gpu_power_limit", ENERGY, "latentbed_request",
    }, unseen  # fmt: skip


def test_no_two_panels_cover_each_other() -> None:
    cells: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert cells.setdefault((x, y), panel["title"]) == panel["title"]


@pytest.mark.long
def test_prometheus_own_tool_takes_the_configuration_the_rules_and_every_nodes_metrics(watched: Trio) -> None:
    promtool = tool("promtool", "prometheus")
    for command in (["check", "rules", "alerts.yml"], ["check", "config", "--syntax-only", "prometheus.yml"]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, cwd=WATCH, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for node in watched.nodes:
        text = watched.get(node, "/metrics").text
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        # its advice on style is not an error; a text that it cannot read is
        assert done.returncode in (0, 3), done.stderr
        assert "error while linting" not in done.stderr


@pytest.fixture(scope="module")
def watched(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Under attack for as long as the tests look."""
    receiver = Receiver()
    options = {"all": ["--trace-endpoint", receiver.endpoint], "client": ["--trace-rate", "0.2"]}
    with contextlib.closing(receiver), trio(digits_artefact, tmp_path_factory.mktemp("watched"), options=options) as nodes:
        threat = {"norm": "linf", "eps": 1.0, "eps_unit": "std", "budget": 60}
        nodes.behave(kind="attack", run="watched", attack={"kind": "square"}, threat=threat)
        nodes.begin("watched", 100_000, window=16, load={"kind": "server", "rate_hz": 40})
        yield nodes


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_real_prometheus_scrapes_the_nodes_and_answers_every_panel(watched: Trio, tmp_path: Path) -> None:
    """With the configuration as it stands, only the addresses changed; every panel gets data, and no alert fires."""
    config = (WATCH / "prometheus.yml").read_text()
    for name, node in (("edge_server", "edge"), ("adversary", "adversary"), ("mobile_client", "client")):
        config = config.replace(f'"{name}:8080"', f'"{watched.nodes[node].control}"')
    (tmp_path / "prometheus.yml").write_text(config.replace("scrape_interval: 2s", "scrape_interval: 1s"))
    (tmp_path / "alerts.yml").write_text((WATCH / "alerts.yml").read_text())
    port = free_port()
    command = [
        tool("prometheus", "prometheus"), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (tmp_path / "log.txt").open("wb") as log:
        prometheus = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as api:
            missing = dict(queries())
            deadline = time.monotonic() + 60
            while missing and time.monotonic() < deadline:
                time.sleep(1)
                missing = {where: said for where, said in _unanswered(api) if where not in NEEDS_MORE}
            assert not missing, (missing, (tmp_path / "log.txt").read_text()[-2000:])
            firing = [alert for alert in api.get("/alerts").json()["data"]["alerts"] if alert["state"] == "firing"]
            assert firing == []
    finally:
        prometheus.terminate()
        prometheus.wait(20)


def _unanswered(api: httpx.Client) -> Iterator[tuple[str, str]]:
    """Queries of panels that got no series with a number, and why."""
    titles = {panel["title"] for panel in panels()}
    answered: set[str] = set()
    said: dict[str, str] = {}
    for where, expression in queries():
        if where not in titles:
            continue
        try:
            reply = api.get("/query", params={"query": expression}).json()
        except httpx.HTTPError as error:
            said[where] = repr(error)
            continue
        assert reply["status"] == "success", (where, reply)
        numbers = [one["value"][1] for one in reply["data"]["result"] if one["value"][1] != "NaN"]
        if numbers:
            answered.add(where)
        else:
            said[where] = expression
    # a panel of what does not happen in a good run (refusals, lost ones) is empty by right where its metric is there
    return ((where, text) for where, text in said.items() if where not in answered)
