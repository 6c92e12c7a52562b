"""`docker-compose up` in a fresh clone, watched from outside and from inside the client's container while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from composition import Composition, run

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

SERVICES = ("mobile_client", "adversary", "edge_server", "testbed")

OPENS = """
import concurrent.futures, json, socket, sys
def opens(address):
    try:
        socket.create_connection(tuple(address), 3).close()
    except OSError:
        return False
    return True
asked = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    print(json.dumps([address for address, opened in zip(asked, pool.map(opens, asked)) if opened]))
"""
"""prints those of the given [host, port] that a TCP connection opens to"""


@dataclass(frozen=True)
class Watched:
    """What was seen of one whole run."""

    status: int
    log: str
    root: list[str]
    """command lines of processes with uid 0"""
    edge: list[list[Any]]
    """every [host, port] at which the edge, or what it publishes, might be found"""
    opened: dict[str, list[list[Any]]]
    """by asking service: those of the edge's, the adversary's and the internet's addresses that opened"""


@pytest.fixture(scope="module")
def watched(composition: Composition) -> Iterator[Watched]:
    composition.forget_runs()
    up = composition.start()
    try:
        _wait_for_pass(composition, up)
        root = [line for service in SERVICES for line in _root_processes(composition.container(service))]
        edge = _edge_addresses(composition)
        outside = [["1.1.1.1", 443], ["8.8.8.8", 53], ["pypi.org", 443]]
        asked = json.dumps([*edge, ["adversary", 8001], *outside])
        opened = {service: composition.python(service, OPENS, asked) for service in ("mobile_client", "adversary")}
        status = up.wait(600)
        yield Watched(status, composition.log(), root, edge, opened)
    finally:
        up.terminate()
        up.wait(60)
        composition.down()


def _wait_for_pass(composition: Composition, up: Any) -> None:
    """Until the first frames flow: then every program runs, and as whom it will."""
    deadline = time.monotonic() + 600
    while not list(composition.runs.glob("*/passes/*")):
        assert up.poll() is None, f"the run ended with {up.returncode} before its first pass:\n{composition.log()}"
        assert time.monotonic() < deadline, f"no pass began:\n{composition.log()}"
        time.sleep(0.2)


def _root_processes(container: str) -> list[str]:
    rows = run("docker", "top", container, "-eo", "pid,uid,args").splitlines()[1:]
    return [args for _, uid, args in (row.split(None, 2) for row in rows) if uid == "0"]


def _edge_addresses(composition: Composition) -> list[list[Any]]:
    """The edge by name and address, and every gateway there is, since ports are published on the host."""
    ends = composition.networks("edge_server")
    hosts = {"edge_server", "edge", *(end["IPAddress"] for end in ends.values())}
    for service in SERVICES:
        for end in composition.networks(service).values():
            # internal networks show no gateway, but the host has the first address of each
            hosts |= {end["Gateway"], end["IPAddress"].rpartition(".")[0] + ".1"} - {""}
    return [[host, port] for host in sorted(hosts) for port in (8001, 8080, *composition.ports)]


def test_a_run_in_a_fresh_clone_ends_with_0_and_leaves_its_report(watched: Watched, composition: Composition) -> None:
    assert watched.status == 0, watched.log
    latest = composition.runs / "latest"
    report = json.loads((latest / "report.json").read_text())
    assert report["clean"]["accuracy"] >= 0.95
    assert report["ledger"]["rows"] == report["ledger"]["server_rows"] > 0
    assert report["telemetry"]["full"] == report["telemetry"]["frames"] > 0
    assert {attack["name"] for attack in report["attacks"]} >= {"noise", "square"}
    assert "<html" in (latest / "report.html").read_text()


def test_the_report_belongs_to_the_owner_of_runs_who_is_not_root(watched: Watched, composition: Composition) -> None:
    assert watched.status == 0, watched.log
    owner = composition.runs.stat().st_uid
    assert owner == (composition.folder.stat().st_uid or 1000)
    assert unreadable(composition.runs, owner) == []


def unreadable(folder: Path, owner: int) -> list[str]:
    """What below `folder` is not `owner`'s, or not for the owner to read."""
    return [
        str(path)
        for path in [folder, *folder.rglob("*")]
        if not path.is_symlink()
        and (
            path.stat().st_uid != owner
            or not path.stat().st_mode & 0o400
            or (path.is_dir() and not path.stat().st_mode & 0o100)
        )
    ]


def test_no_process_runs_the_program_as_root(watched: Watched) -> None:
    # the engine's own init is root's where the entrypoint starts as root, and runs nothing but that entrypoint
    assert [line for line in watched.root if not line.startswith("/sbin/docker-init ")] == []


def test_from_the_clients_container_no_connection_opens_to_the_edge_or_outside(watched: Watched) -> None:
    assert len(watched.edge) >= 4 * 4
    assert watched.opened["mobile_client"] == [["adversary", 8001]]


def test_the_same_question_from_the_adversary_finds_the_edge(watched: Watched) -> None:
    """So the probe would have seen it."""
    assert ["edge", 8001] in watched.opened["adversary"]
    assert ["edge_server", 8080] in watched.opened["adversary"]
