"""The three nodes as processes on loopback, with their control planes, as `latentbed run` starts them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from splitcore.control import load_token
from testbed.nodes import Node, Process, following


@dataclass
class Trio:
    """`control`: each node's base URL, by name."""

    nodes: dict[str, Node]
    processes: dict[str, Process]
    grpc: dict[str, str]

    def get(self, node: str, path: str) -> httpx.Response:
        answer = httpx.get(f"http://{self.nodes[node].control}{path}", trust_env=False, timeout=30)
        answer.raise_for_status()
        return answer

    def behave(self, **behaviour: Any) -> None:
        self.nodes["adversary"].put("/behaviour", behaviour)

    def begin(self, run: str, count: int, **request: Any) -> None:
        self.nodes["client"].post("/passes", {"run": run, "count": count, **request})

    def passed(self, run: str, count: int, **request: Any) -> list[dict[str, Any]]:
        """The frames of a whole pass."""
        self.begin(run, count, **request)
        for _ in following(self.nodes["client"], run):
            pass
        return [json.loads(line) for line in self.get("client", f"/passes/{run}/frames").text.splitlines()]


@contextlib.contextmanager
def trio(artefact: Path, states: Path, *, options: dict[str, list[str]] | None = None) -> Iterator[Trio]:
    """`options`: of one node, by its name in the folder; `all` of each."""
    token_file = states / "token"
    token = load_token(token_file)
    options = options or {}
    found = Trio({}, {}, {})
    with contextlib.ExitStack() as stopping:
        target: list[str] = []
        for package, name in (("edge_server", "edge"), ("adversary", "adversary"), ("mobile_client", "client")):
            own = ["--device", "cpu", "--tail", "eager", "--threads", "1"] if name == "edge" else []
            arguments = ["--artefact", str(artefact), "--token-file", str(token_file), *own, *target]
            process = Process(package, states / name, [*arguments, *options.get("all", ()), *options.get(name, ())])
            stopping.callback(process.stop)
            ready = process.wait_ready()
            found.nodes[name] = Node(name, ready["control"], token)
            found.processes[name] = process
            found.grpc[name] = ready["grpc"] or ""
            target = ["--upstream" if name == "edge" else "--target", found.grpc[name]]
        yield found
