"""Phone, adversary and edge as processes, with a way before and one behind the adversary that a test may choose."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from splitcore.control import load_token
from splitcore.journal import read
from testbed.nodes import Node, Process
from testbed.report.model import LedgerCounts
from testbed.report.reconcile import entries_of, reconcile, server_rows_of

FRAMES, BUDGET = 40, 150
PATIENCE_S = 3
WAIT_S = 120.0


class Way(Protocol):
    """What stands between two nodes; `address` is where the nearer one connects."""

    address: str

    def close(self) -> None: ...


@dataclass
class Straight:
    """Nothing in between."""

    address: str

    def close(self) -> None:
        return


@dataclass
class Session:
    """What reconciliation wants of a line of the sessions' journal."""

    frame: str
    queries: int


@dataclass
class Three:
    """phone -- near -- adversary -- far -- edge."""

    folder: Path
    artefact: Path
    token: str
    near: Any = None
    far: Any = None
    processes: dict[str, Process] = field(default_factory=dict)
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    _options: dict[str, list[str]] = field(default_factory=dict)

    def start(self, name: str, *options: str) -> str:
        """A node, or the same again where it was; its gRPC address."""
        package = {"client": "mobile_client", "adversary": "adversary", "edge": "edge_server"}[name]
        if name in self.ready:
            listen = [] if name == "client" else ["--listen", self.ready[name]["grpc"]]
            arguments = [*self._options[name], *listen]
        else:
            common = ["--artefact", str(self.artefact), "--token-file", str(self.folder / "token")]
            arguments = self._options[name] = [*common, *options]
        self.processes[name] = Process(package, self.folder / name, arguments)
        self.ready[name] = self.processes[name].wait_ready()
        return self.ready[name]["grpc"] or ""

    def node(self, name: str) -> Node:
        return Node(name, self.ready[name]["control"], self.token)

    def begin(self, run: str, *, hold_ms: float | None = None, attack: bool = True) -> None:
        """A pass of FRAMES frames, under attack."""
        self.behave(run, hold_ms=hold_ms, attack=attack)
        self.post(run)

    def behave(self, run: str, *, hold_ms: float | None = None, attack: bool = True) -> None:
        threat = {"norm": "linf", "eps": 0.3, "eps_unit": "std", "budget": BUDGET, "deadline_ms": hold_ms}
        attacking = {"kind": "attack", "run": run, "attack": {"kind": "square"}, "threat": threat}
        self.node("adversary").put("/behaviour", attacking if attack else {"kind": "pass", "run": run})

    def post(self, run: str, *, rate_hz: float | None = None) -> None:
        """`rate_hz`: frames a second, as a Poisson process; None: as fast as they go."""
        load = {"kind": "offline"} if rate_hz is None else {"kind": "server", "rate_hz": rate_hz}
        self.node("client").post("/passes", {"run": run, "count": FRAMES, "window": 16, "load": load})

    def wait(self, run: str, *, done: int | None = None) -> dict[str, Any]:
        """Until the pass ended, or `done` frames have their line."""
        deadline = time.monotonic() + WAIT_S
        while True:
            status: dict[str, Any] = self.node("client").get(f"/passes/{run}")
            if status["state"] != "running" or (done is not None and status["done"] >= done):
                return status
            assert time.monotonic() < deadline, f"{run}: not within {WAIT_S} s: {status}"
            time.sleep(0.05)

    def check(self, run: str) -> tuple[Counter[str], LedgerCounts]:
        """Asserts one line a frame and books that agree; gives the frames' ends and the ledger's counts."""
        self.node("adversary").put("/behaviour", {"kind": "pass"})
        lines = list(read(self.folder / "client" / "passes" / run / "frames.jsonl"))
        client = lines[0]["id"].split("/")[1]
        assert sorted(line["id"] for line in lines) == sorted(f"{run}/{client}/{n}" for n in range(FRAMES))
        deadline = time.monotonic() + 20
        while True:  # the server may still be computing what it was sent before the way broke
            counts, wrong = self.reconciled(run)
            if not wrong:
                return Counter("error" if line.get("error") else "label" for line in lines), counts
            assert time.monotonic() < deadline, wrong
            time.sleep(0.2)

    def reconciled(self, run: str) -> tuple[LedgerCounts, list[str]]:
        def mine(path: str) -> list[dict[str, Any]]:
            return [row for row in read(self.folder / path) if row["id"].startswith(f"{run}/")]

        path = self.folder / "adversary" / "sessions" / f"{run}.jsonl"
        sessions = [Session(row["frame"], row["queries"]) for row in read(path)]
        return reconcile(
            entries_of(mine("adversary/queries.jsonl")), server_rows_of(mine("edge/server.jsonl")), sessions, BUDGET
        )


@contextlib.contextmanager
def three_nodes(
    folder: Path,
    artefact: Path,
    *,
    near: Callable[[str], Way] = Straight,
    far: Callable[[str], Way] = Straight,
    options: tuple[str, ...] = (),
    patience_s: float = PATIENCE_S,
) -> Iterator[Three]:
    """All three, stopped at the end; `options` are for each of them."""
    three = Three(folder, artefact, load_token(folder / "token"))
    with contextlib.ExitStack() as stopping:
        stopping.callback(lambda: [process.stop() for process in reversed(three.processes.values())])
        three.far = far(three.start("edge", *options, "--device", "cpu", "--threads", "1"))
        stopping.callback(three.far.close)
        three.near = near(three.start("adversary", *options, "--upstream", three.far.address))
        stopping.callback(three.near.close)
        three.start("client", *options, "--target", three.near.address, "--patience-s", str(patience_s))
        yield three
