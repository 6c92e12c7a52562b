"""The nodes as the driver sees them: processes that it starts on loopback, or addresses that it is given."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from edge_server.detectors.read import said
from splitcore.control import load_token
from splitcore.errors import LatentbedError
from splitcore.node import END_WITH_STDIN, begin, read_ready
from splitcore.wire.tls import ClientTls
from testbed.foreign.server import Foreign, foreign_server
from testbed.scenario import Scenario
from testbed.security import Arming

START_S = 60.0
POLL_S = 0.1


class NodeError(LatentbedError):
    """A node ended, did not start, or refused what it was told."""


@dataclass(frozen=True)
class Node:
    """One node's control API."""

    name: str
    control: str
    token: str
    trust: Path | None = None
    """authorities of a control API that speaks TLS; None: clear text"""

    @property
    def base(self) -> str:
        return f"{'http' if self.trust is None else 'https'}://{self.control}"

    @property
    def _believed(self) -> ssl.SSLContext | bool:
        return True if self.trust is None else ClientTls(trust=self.trust).context()

    def get(self, path: str, **query: str) -> Any:
        return self._ask("GET", path, params=query).json()

    def put(self, path: str, body: Any, *, patience_s: float = 60.0) -> Any:
        return self._ask("PUT", path, json=body, timeout=patience_s).json()

    def post(self, path: str, body: Any) -> Any:
        return self._ask("POST", path, json=body).json()

    def save(self, path: str, into: Path, **query: str) -> None:
        """A journal, as it is, under another name first: a file that is there is whole."""
        temporary = into.with_name(into.name + ".new")
        try:
            with (
                httpx.stream(
                    "GET", f"{self.base}{path}", params=query, timeout=120, trust_env=False, verify=self._believed
                ) as reply,
                temporary.open("wb") as file,
            ):
                self._check(reply)
                for chunk in reply.iter_bytes():
                    file.write(chunk)
        except httpx.HTTPError as error:
            raise NodeError(f"{self.name} at {self.control} does not answer GET {path}: {error!r}") from error
        temporary.replace(into)

    def _ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            reply = httpx.request(
                method,
                f"{self.base}{path}",
                headers=headers,
                trust_env=False,
                verify=self._believed,
                **{"timeout": 60, **arguments},
            )
        except httpx.HTTPError as error:
            raise NodeError(f"{self.name} at {self.control} does not answer {method} {path}: {error!r}") from error
        self._check(reply)
        return reply

    def _check(self, reply: httpx.Response) -> None:
        if reply.is_error:
            reply.read()
            raise NodeError(f"{self.name}: {reply.request.method} {reply.request.url.path}: {reply.status_code} {reply.text}")


def following(client: Node, run: str, *, every_s: float = POLL_S) -> Iterator[int]:
    """Frames that are done, again and again, until the client's pass has ended. Raises NodeError."""
    while True:
        state = client.get(f"/passes/{run}")
        yield int(state["done"])
        if state["state"] == "failed":
            raise NodeError(f"{run}: the client gave up: {state['error']}")
        if state["state"] == "done":
            return
        time.sleep(every_s)


@dataclass(frozen=True)
class Trio:
    """The three nodes of a run; without an adversary two."""

    client: Node
    edge: Node | Foreign
    adversary: Node | None
    replicas: tuple[Node, ...] = ()
    """further edge servers behind the same balancer"""

    @property
    def edges(self) -> tuple[Node, ...]:
        return tuple(edge for edge in (self.edge, *self.replicas) if isinstance(edge, Node))


class Process:
    """A node that was started here: `python -m <package>`, its log in `<state>/log.txt`."""

    def __init__(self, package: str, state: Path, arguments: list[str]) -> None:
        self.package = package
        self.state = state
        begin(state)
        self._log = state / "log.txt"
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", package, "--state", str(state), *arguments],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=node_environment(), start_new_session=True,
            )  # fmt: skip

    def wait_ready(self) -> dict[str, Any]:
        """What the node wrote when it was ready. Raises NodeError."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if (ready := read_ready(self.state)) is not None:
                return ready
            if self.popen.poll() is not None:
                raise NodeError(f"{self.package} ended with {self.popen.returncode} before it was ready:\n{self.tail()}")
            time.sleep(0.02)
        raise NodeError(f"{self.package} was not ready within {START_S:.0f} s:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        """SIGTERM, and SIGKILL to one that does not end within 15 s. Gives the exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        return self.popen.returncode


def node_environment() -> dict[str, str]:
    """One core's worth of threads a library: three nodes share this machine. Big eager batches keep their pages."""
    return {
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(2 << 30),
        **os.environ, "PYTHONUNBUFFERED": "1",
        END_WITH_STDIN: "1",  # a driver that is killed leaves no nodes behind
    }  # fmt: skip


@contextlib.contextmanager
def local_nodes(
    scenario: Scenario,
    artefact: Path,
    states: Path,
    telemetry: str | None,
    data_dir: Path | None,
    cuts: Sequence[Path] = (),
    arming: Arming | None = None,
) -> Iterator[Trio]:
    """Three processes on loopback: client to adversary to edge (or client to edge), stopped at the end.

    `cuts`: further artefacts for client and edge; the adversary knows the first alone. `arming`: what protects the frames;
    None: nothing.
    """
    arming = arming or Arming()
    token_file = states / "token"
    token = load_token(token_file)
    common, ours = ["--token-file", str(token_file)], ["--artefact", str(artefact)]
    if telemetry is not None:
        common += ["--telemetry", telemetry]
    further = [text for cut in cuts for text in ("--artefact", str(cut))]
    data = [] if data_dir is None else ["--data-dir", str(data_dir)]
    edge = scenario.edge
    edge_options = {
        "--device": edge.device, "--threads": edge.threads, "--tail": edge.tail, "--max-batch-size": edge.max_batch_size,
        "--preferred-batch-size": ",".join(map(str, edge.preferred_batch_size)),
        "--priority-levels": edge.priority_levels, "--default-priority-level": edge.default_priority_level,
        "--timeout-action": edge.timeout_action, "--default-timeout-microseconds": edge.default_timeout_microseconds,
        "--max-queue-delay-microseconds": edge.max_queue_delay_microseconds, "--max-queue-size": edge.max_queue_size,
    }  # fmt: skip
    started: list[Process] = []
    with contextlib.ExitStack() as stopping:

        def start(package: str, name: str, arguments: list[str]) -> tuple[Node, str]:
            process = Process(package, states / name, [*common, *arguments])
            started.append(process)
            stopping.callback(process.stop)
            ready = process.wait_ready()
            return Node(name, ready["control"], token), ready["grpc"] or ""

        options = [text for key, value in edge_options.items() if value is not None for text in (key, str(value))]
        options += ["--preserve-ordering"] * edge.preserve_ordering
        options += ["--no-allow-timeout-override"] * (not edge.allow_timeout_override)
        options += [text for entry in edge.trust for text in ("--trust", entry)]
        options += [text for detector in edge.detectors for text in ("--detector", json.dumps(said(detector)))]
        edge_node: Node | Foreign
        endpoint: list[str] = []
        if scenario.server is None:
            edge_node, target = start("edge_server", "edge", [*ours, *further, *options, *arming.edge])
        else:
            edge_node = stopping.enter_context(foreign_server(scenario.server, artefact, states / "server"))
            target = edge_node.target
            endpoint = ["--endpoint", str(edge_node.describe(states / "endpoint.json"))]
        adversary_node, edge_target = None, target
        if scenario.adversary:
            trust = () if isinstance(scenario.adversary, bool) else scenario.adversary.trust
            options = [text for entry in trust for text in ("--trust", entry)]
            if isinstance(edge_node, Foreign):
                options += [text for host in edge_node.allow for text in ("--allow", host)]
            options += [*(endpoint or ours), *arming.adversary]
            adversary_node, target = start("adversary", "adversary", ["--upstream", target, *data, *options])
        options = ["--head", scenario.phone.head, "--threads", str(scenario.phone.threads), *endpoint, *arming.client]
        options += ["--direct", edge_target]
        client_node, _ = start("mobile_client", "client", [*ours, *further, "--target", target, *data, *options])
        yield Trio(client_node, edge_node, adversary_node)


def remote_nodes(scenario: Scenario) -> Trio:
    """The nodes at the scenario's addresses, once they all answer. Raises NodeError."""
    assert scenario.nodes is not None
    token = load_token(scenario.nodes.token_file)
    first, *others = scenario.nodes.edges
    addresses = {"client": scenario.nodes.client, "edge": first, "adversary": scenario.nodes.adversary}
    addresses |= {f"edge-{number}": address for number, address in enumerate(others, 2)}
    trust = scenario.nodes.trust
    nodes = {name: Node(name, address.control, token, trust) for name, address in addresses.items() if address is not None}
    deadline = time.monotonic() + START_S
    for node in nodes.values():
        while True:
            try:
                node.get("/healthz")
                break
            except NodeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
    replicas = tuple(node for name, node in nodes.items() if name.startswith("edge-"))
    return Trio(nodes["client"], nodes["edge"], nodes.get("adversary"), replicas)
