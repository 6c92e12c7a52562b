"""Every attack over a line that loses and repeats answers, and a server that refuses and rejects: the books agree."""

from __future__ import annotations

import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from tails import LinearTail, clean_latents, spec, wire_spaces

from adversary import campaign as campaigns
from adversary.attacks import ATTACKS, Attack
from adversary.campaign import Campaign
from adversary.ledger import Ledger
from adversary.oracle import Answered
from adversary.session import Outcome, Session
from splitcore.codec import fit
from splitcore.frame import Frame, Reply
from splitcore.journal import Journal, read
from splitcore.threat import Norm, ThreatModel
from testbed.report.reconcile import asked_of, entries_of, reconcile, server_rows_of

CODEC = fit("uniform8/channel", spec((4, 3, 3)))
SEARCHES = [(kind, norm) for kind in ATTACKS for norm in kind.norms if kind.feedback != "none"]


class BadLine:
    """A tail that logs what it computes, behind everything that can go wrong. Clean queries alone are spared."""

    def __init__(self, log: Path) -> None:
        self._tail = LinearTail(CODEC)
        self._log = Journal(log)
        self._lock = threading.Lock()
        self.misdeeds: set[str] = set()

    def ask(self, frame: Frame, answered: Answered, timeout_s: float | None = None) -> None:
        threading.Thread(target=self._serve, args=(frame, answered), daemon=True).start()

    def _serve(self, frame: Frame, answered: Answered) -> None:
        draw = zlib.crc32(f"{frame.id} {frame.attempt}".encode())
        first = frame.id.endswith("/0")
        if not first and draw % 11 == 0:
            self.misdeeds.add("refused")
            answered(Reply(id=frame.id, error="RESOURCE_EXHAUSTED: the queue is full"))
            return
        with self._lock:
            self._log.append({"id": frame.id, "attempt": frame.attempt, "origin": frame.origin, "rows": frame.rows})
            reply = self._tail.answer(frame)
        if not first and draw % 7 == 1:
            self.misdeeds.add("timed out")
            answered(TimeoutError("no answer in time"))
            return
        if not first and draw % 5 == 2:
            self.misdeeds.add("rejected")
            assert reply.labels is not None
            reply.labels[:: 1 + draw % 3] = campaigns.REJECTED_ROW
        if draw % 4 == 3:
            time.sleep(0.002)
        answered(reply)
        if draw % 3 == 0:
            self.misdeeds.add("answered twice")
            answered(reply)

    def round_trip_s(self) -> float:
        return 0.0

    def close(self) -> None:
        self._log.close()


@pytest.mark.parametrize(("kind", "norm"), SEARCHES, ids=lambda value: getattr(value, "__name__", value))
def test_the_ledger_equals_the_servers_log_whatever_the_line_does(
    kind: type[Attack], norm: Norm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaigns, "BACKOFF_S", 0.0005)
    threat = ThreatModel(norm=norm, eps=0.05, eps_unit="std", budget=120)
    ledger = Ledger(tmp_path / "queries.jsonl")
    line = BadLine(tmp_path / "server.jsonl")
    running = Campaign(line, ledger, run="run", nonce="0", max_rows=5, in_flight=3)
    outcomes: list[Outcome] = []
    done = threading.Semaphore(0)

    def take(outcome: Outcome) -> None:
        outcomes.append(outcome)
        done.release()

    for number, space in enumerate(wire_spaces(CODEC, clean_latents(CODEC, 6))):
        running.submit(Session(f"run/p/{number}", space, kind(), threat, rng=np.random.default_rng(number)), take)
    for _ in range(6):
        assert done.acquire(timeout=30)
    running.close()
    ledger.close()
    entries = entries_of(read(tmp_path / "queries.jsonl"))
    counts, wrong = reconcile(entries, server_rows_of(read(tmp_path / "server.jsonl")), outcomes, budget=120)
    assert wrong == []
    assert counts.lost > 0
    assert sum(asked_of(entries).values()) == sum(outcome.queries for outcome in outcomes)
    assert {"timed out", "rejected", "answered twice"} <= line.misdeeds
    # a silent server would be an error; one that answers most of the time is none
    assert [outcome.error for outcome in outcomes if outcome.error and "clean query" not in outcome.error] == []
