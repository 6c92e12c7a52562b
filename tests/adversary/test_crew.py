"""Worker processes against a real edge server: one is killed, the whole adversary is killed, and the books agree."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adversary.attacks.hopskipjump import HopSkipJump
from adversary.attacks.square import Square
from adversary.behaviour import AttackBehaviour, Workshop
from adversary.crew import Crew, Place, ledgers
from adversary.engine import Engine, Job
from adversary.ledger import Ledger
from adversary.session import Outcome
from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.errors import ScenarioError
from splitcore.frame import Frame
from splitcore.head import Head
from splitcore.journal import read
from splitcore.threat import ThreatModel
from testbed.nodes import Process
from testbed.report.reconcile import asked_of, entries_of, reconcile, server_rows_of

FRAMES = 16


@dataclass
class Edge:
    artefact: Artefact
    target: str
    log: Path

    def jobs(self, run: str) -> list[Job]:
        codec = fit(self.artefact.manifest.codec, self.artefact.latent)
        payloads = codec.encode(Head(self.artefact).from_uint8(self.artefact.samples[0][:FRAMES]))
        return [
            Job(Frame(id=f"{run}/phone/{n}", payloads=(payload,), codec=codec.name, shape=self.artefact.latent.shape))
            for n, payload in enumerate(payloads)
        ]


@pytest.fixture(scope="module")
def edge(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    state = tmp_path_factory.mktemp("edge")
    process = Process(
        "edge_server", state, ["--artefact", str(digits_artefact), "--device", "cpu", "--tail", "eager", "--threads", "1"]
    )
    try:
        yield Edge(Artefact(digits_artefact), process.wait_ready()["grpc"], state / "server.jsonl")
    finally:
        process.stop()


def behaviour(run: str, workers: int, attack: Any = None) -> AttackBehaviour:
    # near enough to the boundary that some frames fall and some do not
    threat = ThreatModel(norm="l2" if isinstance(attack, HopSkipJump) else "linf", eps=0.3, eps_unit="std", budget=400)
    return AttackBehaviour(run=run, attack=attack or Square(), threat=threat, workers=workers, sections=2, seed=4)


def place(edge: Edge, state: Path) -> Place:
    return Place(edge.artefact.folder, edge.target, state, None, frozenset())


def collect(engine: Engine, jobs: list[Job], while_running: Any = lambda: None) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    ended = threading.Semaphore(0)

    def done(outcome: Outcome) -> None:
        assert outcome.frame not in outcomes
        outcomes[outcome.frame] = outcome
        ended.release()

    for job in jobs:
        engine.submit(job, done)
    while_running()
    for _ in jobs:
        assert ended.acquire(timeout=60)
    engine.close()
    return outcomes


def disagreements(edge: Edge, state: Path, run: str, outcomes: dict[str, Outcome]) -> list[str]:
    rows = [row for path in ledgers(state, run) for row in read(path)]
    entries = entries_of(rows)
    server = {key: row for key, row in server_rows_of(read(edge.log)).items() if key[0].startswith(f"{run}/")}
    _, wrong = reconcile(entries, server, outcomes.values(), budget=400)
    assert sum(asked_of(entries).values()) == sum(outcome.queries for outcome in outcomes.values())
    return wrong


def told(outcomes: dict[str, Outcome]) -> dict[str, tuple[object, ...]]:
    return {
        frame.partition("/")[2]: (outcome.reason, outcome.queries, outcome.first_success, outcome.error)
        for frame, outcome in outcomes.items()
    }


@pytest.mark.long
@pytest.mark.parametrize("attack", [Square(), HopSkipJump()], ids=lambda attack: attack.kind)
def test_several_workers_find_what_one_finds_also_when_one_of_them_is_killed(
    edge: Edge, tmp_path: Path, attack: Square | HopSkipJump
) -> None:
    alone = Workshop(edge.artefact, edge.target, tmp_path, Ledger(tmp_path / "queries.jsonl"), None)
    expected = collect(alone.engine(behaviour("alone", 0, attack), tmp_path / "record"), edge.jobs("alone"))
    run = f"crew-{attack.kind}"
    crew = Crew(place(edge, tmp_path), behaviour(run, 2, attack))

    def kill_one() -> None:
        deadline = time.monotonic() + 20
        while sum(1 for path in ledgers(tmp_path, run) for _ in read(path)) < 60 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(crew.pids[0], signal.SIGKILL)

    found = collect(crew, edge.jobs(run), kill_one)
    assert crew.deaths == 1
    assert disagreements(edge, tmp_path, run, found) == []
    assert not [outcome.error for outcome in found.values() if outcome.error]
    assert len({path.name for path in ledgers(tmp_path, run)}) == 2
    # the server's batches differ, and with them the last bits of its scores: nearly all, not all, sessions take the same way
    same = sum(told(found)[frame] == way for frame, way in told(expected).items())
    assert same >= FRAMES - 2


def test_a_run_goes_on_with_as_many_workers_as_it_began_with(edge: Edge, tmp_path: Path) -> None:
    collect(Crew(place(edge, tmp_path), behaviour("twice", 2)), edge.jobs("twice")[:2])
    with pytest.raises(ScenarioError, match="expected 1 workers as when run twice was begun, found"):
        Crew(place(edge, tmp_path), behaviour("twice", 1))


def test_more_workers_than_cores_are_refused(edge: Edge, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"expected at most \d+ workers, one a core, got 64"):
        Crew(place(edge, tmp_path), behaviour("many", 64))


def test_a_worker_that_cannot_begin_says_why(edge: Edge, tmp_path: Path) -> None:
    nowhere = Place(tmp_path / "no artefact", edge.target, tmp_path, None, frozenset())
    with pytest.raises(ScenarioError, match="worker 0 cannot begin: ArtefactError"):
        Crew(nowhere, behaviour("nowhere", 1))
