"""The campaign over a server that fails, refuses, answers twice, or answers nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tails import LinearTail, attack_all, clean_latents, spec, wire_spaces

from adversary.attacks.base import Ask
from adversary.attacks.hopskipjump import HopSkipJump
from adversary.attacks.square import Square
from adversary.campaign import Campaign
from adversary.ledger import Ledger
from adversary.oracle import Answered
from adversary.session import Outcome, Session
from splitcore.codec import fit
from splitcore.frame import Frame, Reply
from splitcore.journal import Journal, read
from splitcore.threat import ThreatModel

CODEC = fit("uniform8/channel", spec((4, 3, 3)))
THREAT = ThreatModel(norm="linf", eps=0.05, eps_unit="std", budget=60)

Misbehaviour = Callable[[Frame, Answered, LinearTail], None]


class Server:
    """A tail behind a misbehaving line, in a thread of its own, with a log as the edge server keeps one."""

    def __init__(self, misbehave: Misbehaviour) -> None:
        self.tail = LinearTail(CODEC)
        self.log: Counter[tuple[str, int]] = Counter()
        self._misbehave = misbehave

    def ask(self, frame: Frame, answered: Answered, timeout_s: float | None = None) -> None:
        threading.Thread(target=self._misbehave, args=(frame, answered, self.tail), daemon=True).start()

    def close(self) -> None:
        return


def campaign(
    misbehave: Misbehaviour, folder: Path, n: int = 6, max_rows: int = 4
) -> tuple[dict[str, Outcome], list[dict[str, object]]]:
    ledger = Ledger(folder / "queries.jsonl")
    running = Campaign(Server(misbehave), ledger, run="run", nonce="0", max_rows=max_rows)
    outcomes: dict[str, Outcome] = {}
    done = threading.Semaphore(0)

    def take(outcome: Outcome) -> None:
        outcomes[outcome.frame] = outcome
        done.release()

    for number, space in enumerate(wire_spaces(CODEC, clean_latents(CODEC, n))):
        running.submit(Session(f"run/p/{number}", space, Square(), THREAT, rng=np.random.default_rng(number)), take)
    for _ in range(n):
        assert done.acquire(timeout=30)
    running.close()
    ledger.close()
    return outcomes, list(read(folder / "queries.jsonl"))


def test_a_retry_is_neither_a_second_query_nor_a_second_observation(tmp_path: Path) -> None:
    """Every first sending is lost on the way back: the server has seen it, and its answer is that of the retry."""

    def lose_the_first(frame: Frame, answered: Answered, tail: LinearTail) -> None:
        reply = tail.answer(frame)
        answered(ConnectionError("the line was cut") if frame.attempt == 1 and frame.id.endswith("3") else reply)

    faulty, rows = campaign(lose_the_first, tmp_path / "faulty")
    flawless, _ = campaign(lambda frame, answered, tail: answered(tail.answer(frame)), tmp_path / "flawless")
    retried = [row for row in rows if row["event"] == "sent" and row["attempt"] == 2]
    assert retried
    for frame, outcome in faulty.items():
        assert outcome.queries == flawless[frame].queries <= THREAT.budget
        assert outcome.success == flawless[frame].success
    sent = {(row["id"], row["attempt"]) for row in rows if row["event"] == "sent"}
    ended = {(row["id"], row["attempt"]) for row in rows if row["event"] != "sent"}
    assert sent == ended
    first_sendings = [row for row in rows if row["event"] == "sent" and row["attempt"] == 1]
    assert sum(row["rows"] for row in first_sendings) == sum(outcome.queries for outcome in faulty.values())


def test_a_duplicated_answer_is_taken_once(tmp_path: Path) -> None:
    def twice(frame: Frame, answered: Answered, tail: LinearTail) -> None:
        reply = tail.answer(frame)
        answered(reply)
        answered(reply)

    doubled, rows = campaign(twice, tmp_path / "doubled")
    once, _ = campaign(lambda frame, answered, tail: answered(tail.answer(frame)), tmp_path / "once")
    assert {frame: outcome.queries for frame, outcome in doubled.items()} == {
        frame: outcome.queries for frame, outcome in once.items()
    }
    answered = [(row["id"], row["attempt"]) for row in rows if row["event"] == "answered"]
    assert len(answered) == len(set(answered))


def test_refused_queries_count_and_the_search_goes_on(tmp_path: Path) -> None:
    def refuse_some(frame: Frame, answered: Answered, tail: LinearTail) -> None:
        refused = int(frame.id.rpartition("/")[2]) % 5 == 4
        answered(Reply(id=frame.id, error="RESOURCE_EXHAUSTED: full") if refused else tail.answer(frame))

    outcomes, rows = campaign(refuse_some, tmp_path)
    refused = [row for row in rows if row["event"] == "lost"]
    assert refused
    assert all("RESOURCE_EXHAUSTED" in str(row["reason"]) for row in refused)
    sent = sum(int(str(row["rows"])) for row in rows if row["event"] == "sent")
    assert sent == sum(outcome.queries for outcome in outcomes.values())


def test_a_server_that_is_gone_ends_the_sessions_with_the_reason(tmp_path: Path) -> None:
    outcomes, _ = campaign(lambda frame, answered, tail: answered(ConnectionError("gone")), tmp_path, n=2)
    assert {outcome.reason for outcome in outcomes.values()} == {"error"}
    assert all("gone" in (outcome.error or "") for outcome in outcomes.values())


def test_a_session_whose_time_is_up_goes_on_without_its_answer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "queries.jsonl")
    silent = Server(lambda frame, answered, tail: None)
    running = Campaign(silent, ledger, run="run", nonce="0")
    ended = threading.Event()
    outcomes: list[Outcome] = []

    def take(outcome: Outcome) -> None:
        outcomes.append(outcome)
        ended.set()

    space = wire_spaces(CODEC, clean_latents(CODEC, 1))[0]
    deadline = time.monotonic() + 0.05
    running.submit(Session("run/p/0", space, Square(), THREAT, rng=np.random.default_rng(0), deadline=deadline), take)
    assert ended.wait(10)
    assert (outcomes[0].reason, outcomes[0].payload, outcomes[0].queries) == ("deadline", None, 1)
    running.close()
    ledger.close()
    assert [row["event"] for row in read(tmp_path / "queries.jsonl")] == ["sent", "lost"]


def test_an_attack_that_raises_ends_its_own_session_and_no_other(tmp_path: Path) -> None:
    class Broken(Square):
        def p(self, i: int, n: int) -> float:
            raise ZeroDivisionError("no schedule")

    ledger = Ledger(tmp_path / "queries.jsonl")
    running = Campaign(Server(lambda frame, answered, tail: answered(tail.answer(frame))), ledger, run="run", nonce="0")
    outcomes: dict[str, Outcome] = {}
    done = threading.Semaphore(0)

    def take(outcome: Outcome) -> None:
        outcomes[outcome.frame] = outcome
        done.release()

    spaces = wire_spaces(CODEC, clean_latents(CODEC, 2))
    for name, attack, space in (("bad", Broken(), spaces[0]), ("good", Square(), spaces[1])):
        running.submit(Session(name, space, attack, THREAT, rng=np.random.default_rng(0)), take)
    assert done.acquire(timeout=30) and done.acquire(timeout=30)
    running.close()
    ledger.close()
    assert outcomes["bad"].error == "ZeroDivisionError: no schedule"
    assert outcomes["good"].error is None


def test_one_request_carries_the_asks_of_many_sessions(tmp_path: Path) -> None:
    tail = LinearTail(CODEC)
    spaces = dict(enumerate(wire_spaces(CODEC, clean_latents(CODEC, 64))))
    threat = ThreatModel(norm="l2", eps=0.001, eps_unit="std", budget=300)
    outcomes = attack_all(tail, HopSkipJump(), threat, spaces, tmp_path, max_rows=256)
    requests = [row for row in read(tmp_path / "queries.jsonl") if row["event"] == "sent"]
    queries = sum(outcome.queries for outcome in outcomes.values())
    assert queries == sum(row["rows"] for row in requests)
    assert queries / len(requests) > 16
    assert max(row["rows"] for row in requests) <= 256


def test_a_few_rows_that_are_dear_go_in_two_requests_that_take_turns(tmp_path: Path) -> None:
    """While one is computed the other's samples think of their next query: the server is never without work."""
    n, arrived, all_clean, tail_is_free = 6, 0, threading.Condition(), threading.Lock()

    def dear(frame: Frame, answered: Answered, tail: LinearTail) -> None:
        nonlocal arrived
        with all_clean:  # so that all begin together, as one crowd
            arrived += frame.rows
            all_clean.notify_all()
            all_clean.wait_for(lambda: arrived >= n)
        with tail_is_free:
            time.sleep(0.002 * frame.rows)
            reply = tail.answer(frame)
        answered(reply)

    _, rows = campaign(dear, tmp_path, n, max_rows=64)
    out, together = 0, Counter[int]()
    for row in rows:
        out += 1 if row["event"] == "sent" else -1
        together[out] += row["event"] == "sent"
    assert together[2] > 0.5 * sum(together.values()), together


def test_a_ledger_that_a_killed_process_left_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    before = Ledger(path)
    before.sent("a/b/1", 1, "query", 3, payload_bytes=9)
    before.sent("a/b/2", 1, "query", 3, payload_bytes=9)
    before.answered("a/b/2", 1)
    Ledger(path).close()  # another process, after SIGKILL of the first
    assert [(row["event"], row["id"]) for row in read(path)][-1] == ("lost", "a/b/1")


def test_a_ledger_that_cannot_be_written_lets_its_frames_go_and_the_campaign_lives(tmp_path: Path) -> None:
    """A full disk: the sessions that are there end with the reason, and those that come when there is room again run."""
    ledger = Ledger(tmp_path / "queries.jsonl")
    running = Campaign(Server(lambda frame, answered, tail: answered(tail.answer(frame))), ledger, run="run", nonce="0")
    outcomes: list[Outcome] = []
    done = threading.Semaphore(0)

    def take(outcome: Outcome) -> None:
        outcomes.append(outcome)
        done.release()

    space = wire_spaces(CODEC, clean_latents(CODEC, 1))[0]
    room = ledger._journal
    ledger._journal = Journal(Path("/dev/full"))
    running.submit(Session("run/p/0", space, Square(), THREAT, rng=np.random.default_rng(0)), take)
    assert done.acquire(timeout=10)
    assert (outcomes[0].reason, "No space left" in (outcomes[0].error or "")) == ("error", True)
    ledger._journal = room
    running.submit(Session("run/p/1", space, Square(), THREAT, rng=np.random.default_rng(0)), take)
    assert done.acquire(timeout=10)
    assert outcomes[1].error is None
    running.close()
    ledger.close()


def test_an_attack_that_asks_for_nan_ends_its_own_session(tmp_path: Path) -> None:
    class Broken(Square):
        def perturb(self, z, case):  # type: ignore[no-untyped-def]
            yield Ask("search", z[None] * np.float32(np.nan))

    tail = LinearTail(CODEC)
    outcomes = attack_all(tail, Broken(), THREAT, {0: wire_spaces(CODEC, clean_latents(CODEC, 1))[0]}, tmp_path)
    assert "NaN or infinity in phase search" in (outcomes[0].error or "")
