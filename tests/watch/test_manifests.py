"""What stands in docker/ and deploy/ is what their readers take: compose files, Kubernetes' schema, scenarios, and who may
reach whom."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from composition import compose_command
from tools import tool

from adversary.__main__ import main as adversary_main
from edge_server.__main__ import main as edge_main
from mobile_client.__main__ import main as phone_main
from splitcore.artefact import MANIFEST
from testbed.scenario import SCENARIO, load_scenario

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"


def documents() -> list[dict[str, Any]]:
    names = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    assert sorted([*names, "kustomization.yaml"]) == sorted(path.name for path in KUBERNETES.glob("*.yaml"))
    return [document for name in names for document in yaml.safe_load_all((KUBERNETES / name).read_text())]


def of(kind: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in documents() if document["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    found = {}
    for kind in ("Deployment", "StatefulSet", "Job"):
        found |= {name: document["spec"]["template"]["spec"] for name, document in of(kind).items()}
    return found


def test_every_manifest_is_valid_by_kubernetes_own_schema() -> None:
    for document in documents():
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_manifest_with_a_word_that_kubernetes_does_not_know_is_none() -> None:
    document = of("StatefulSet")["edge"]
    document["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", ["edge", "adversary", "client", "testbed", "train"])
def test_no_pod_may_more_than_its_container_in_compose_may(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_nodes_are_started_with_options_that_they_have() -> None:
    known = {"edge": edge_main, "adversary": adversary_main, "client": phone_main}
    for name, main in known.items():
        arguments = pods()[name]["containers"][0]["args"]
        options = {
            option.partition("=")[0].removeprefix("--").replace("-", "_") for option in arguments if option.startswith("--")
        }
        assert options <= set(main.__annotations__), name
    waits = pods()["edge"]["initContainers"][0]["command"][-1]
    assert f"/{MANIFEST};" in waits


def test_the_scenario_asks_every_replica_for_its_log() -> None:
    scenario = SCENARIO.validate_python(yaml.safe_load(of("ConfigMap")["scenario"]["data"]["scenario.yaml"]))
    assert scenario.nodes is not None
    replicas = of("StatefulSet")["edge"]["spec"]["replicas"]
    assert [edge.control for edge in scenario.nodes.edges] == [f"edge-{n}.edge:8080" for n in range(replicas)]
    composed = load_scenario(ROOT / "scenarios" / "compose-scale.yaml")
    assert composed.nodes is not None and len(composed.nodes.edges) == 2


def reached_by(app: str) -> set[tuple[str, int]]:
    """(app, port) that egress policies let it reach, less names and telemetry of the testbed."""
    found = set()
    for policy in of("NetworkPolicy").values():
        spec = policy["spec"]
        if "Egress" not in spec["policyTypes"] or not _selects(spec["podSelector"], app):
            continue
        for rule in spec.get("egress", ()):
            for peer in rule["to"]:
                for target in ("edge", "adversary", "client", "testbed"):
                    if "podSelector" in peer and _selects(peer["podSelector"], target):
                        found |= {(target, port["port"]) for port in rule["ports"]}
    return found


def _selects(selector: dict[str, Any], app: str) -> bool:
    for expression in selector.get("matchExpressions", ()):
        assert (expression["key"], expression["operator"]) == ("app", "In")
        if app not in expression["values"]:
            return False
    return selector.get("matchLabels", {}).get("app", app) == app


def test_the_clients_only_way_on_is_the_adversary() -> None:
    assert {reach for reach in reached_by("client") if reach[0] != "testbed"} == {("adversary", 8001)}
    assert {reach for reach in reached_by("adversary") if reach[0] != "testbed"} == {("edge", 8001)}
    assert {reach for reach in reached_by("edge") if reach[0] != "testbed"} == set()
    denying = of("NetworkPolicy")["nothing"]["spec"]
    assert denying["podSelector"] == {} and set(denying["policyTypes"]) == {"Ingress", "Egress"}
    frames = [rule for rule in of("NetworkPolicy")["edge"]["spec"]["ingress"] if {"port": 8001} in rule["ports"]]
    assert [rule["from"] for rule in frames] == [[{"podSelector": {"matchLabels": {"app": "adversary"}}}]]


@pytest.mark.parametrize("files, profile", [((), "watch"), (("docker/scale/compose.yml",), None)])
def test_compose_takes_its_files(files: tuple[str, ...], profile: str | None) -> None:
    tool("docker-compose" if compose_command() == ["docker-compose"] else "docker", "docker-compose")
    chosen = [part for name in ("docker-compose.yml", *files) for part in ("-f", name)]
    command = [*compose_command(), *chosen, *(["--profile", profile] if profile else []), "config"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    expected = {"prometheus", "grafana", "jaeger"} if profile else {"edge_server_2", "balancer"}
    assert expected <= set(services)
    for name in expected | {"edge_server", "adversary", "mobile_client"}:
        for published in services[name].get("ports", ()):
            text = published if isinstance(published, str) else published.get("host_ip", "")
            assert "127.0.0.1" in text, f"{name} is published beyond this machine"
    if not profile:
        assert "--upstream=balancer:8001" in services["adversary"]["command"]


def test_what_is_mounted_is_there_and_provisions_what_it_says() -> None:
    watch = ROOT / "docker" / "watch"
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        for volume in services[name]["volumes"]:
            assert (ROOT / volume.partition(":")[0]).exists()
    sources = yaml.safe_load((watch / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    dashboard = json.loads((watch / "grafana/dashboards/latentbed.json").read_text())
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"] if panel["type"] != "row"}
    assert used <= {source["uid"] for source in sources}
