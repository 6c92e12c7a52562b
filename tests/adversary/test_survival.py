"""Every attack through SIGKILL: what comes out, and what was asked, is as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tails import LinearTail, clean_latents, wire_spaces

from adversary.attacks import ATTACKS, Attack
from adversary.campaign import Campaign
from adversary.ledger import Ledger
from adversary.oracle import TailOracle
from adversary.record import Record
from adversary.session import Outcome, Session
from splitcore.codec import fit
from splitcore.frame import Frame, Reply
from splitcore.journal import Journal, read
from splitcore.latent import LatentSpec
from splitcore.threat import Norm, ThreatModel
from testbed.report.reconcile import asked_of, entries_of, reconcile, server_rows_of

# latents in steps of 1/32 and small integer weights: sums are exact, whatever the batch
CODEC = fit("uniform8/channel", LatentSpec((4, 3, 3), (-4.0,) * 4, (-4 + 255 / 32,) * 4, 1.0))
FRAMES = 5
SEARCHES = [(kind, norm) for kind in ATTACKS for norm in kind.norms if kind.feedback != "none"]


def tail() -> LinearTail:
    made = LinearTail(CODEC)
    made.W = np.rint(made.W * 8).astype(np.float32)
    return made


def campaign(folder: Path, attack: Attack, norm: Norm, delay_s: float) -> None:
    """As an adversary's process would: what has ended has its line, the rest is begun or gone on with."""
    server, log, server_lock = tail(), Journal(folder / "server.jsonl"), threading.Lock()

    def answer(frame: Frame) -> Reply:
        with server_lock:
            log.append({"id": frame.id, "attempt": frame.attempt, "origin": frame.origin, "rows": frame.rows})
            time.sleep(delay_s)
            return server.answer(frame)

    ended = {row["frame"] for row in read(folder / "outcomes.jsonl")}
    outcomes = Journal(folder / "outcomes.jsonl")
    ledger = Ledger(folder / "queries.jsonl")
    record = Record(folder / "record")
    past = record.past(folder / "queries.jsonl", "run", ended)
    running = Campaign(
        TailOracle(answer), ledger, run="run", nonce=os.urandom(3).hex(), max_rows=7, in_flight=2, record=record, past=past
    )
    left = threading.Semaphore(0)

    def done(outcome: Outcome) -> None:
        row = asdict(outcome)
        row["payload"] = outcome.payload and outcome.payload.hex()
        outcomes.append(row)
        left.release()

    threat = ThreatModel(norm=norm, eps=0.15, eps_unit="std", budget=90)
    frames = [number for number in range(FRAMES) if f"run/phone/{number}" not in ended]
    spaces = wire_spaces(CODEC, clean_latents(CODEC, FRAMES))
    for number in frames:
        session = Session(f"run/phone/{number}", spaces[number], attack, threat, rng=np.random.default_rng([5, number]))
        running.submit(session, done)
    for _ in frames:
        left.acquire()
    running.close()
    ledger.close()


def outcomes_of(folder: Path) -> dict[str, dict[str, Any]]:
    keep = ("success", "reason", "queries", "by_phase", "first_success", "distance", "predicted", "payload", "nearest", "error")
    return {row["frame"]: {key: row[key] for key in keep} for row in read(folder / "outcomes.jsonl")}


@pytest.mark.long
@pytest.mark.parametrize(("kind", "norm"), SEARCHES, ids=lambda value: getattr(value, "__name__", value))
def test_a_killed_campaign_goes_on_as_if_nothing_had_happened(kind: type[Attack], norm: Norm, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    campaign(undisturbed, kind(), norm, 0.0)
    killed = tmp_path / "killed"
    fork = multiprocessing.get_context("fork")
    rng = np.random.default_rng(7)
    for _ in range(3):
        process = fork.Process(target=campaign, args=(killed, kind(), norm, 0.002))
        process.start()
        time.sleep(float(rng.uniform(0.03, 0.12)))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    campaign(killed, kind(), norm, 0.0)
    assert outcomes_of(killed) == outcomes_of(undisturbed)
    entries, rows = entries_of(read(killed / "queries.jsonl")), server_rows_of(read(killed / "server.jsonl"))
    _, wrong = reconcile(entries, rows, [_Asked(**row) for row in read(killed / "outcomes.jsonl")], budget=90)
    assert wrong == []
    # a retry is no second query: each request once, however often it was sent
    assert sum(asked_of(entries).values()) == sum(row["queries"] for row in outcomes_of(killed).values())
    assert not (killed / "record").exists()


class _Asked:
    def __init__(self, frame: str, queries: int, **_: object) -> None:
        self.frame, self.queries = frame, queries
