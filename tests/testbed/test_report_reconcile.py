"""The ledger against the server's log: each conversation is written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from splitcore.journal import Journal, read
from testbed.report.model import LedgerCounts
from testbed.report.read import SessionLine
from testbed.report.reconcile import entries_of, reconcile, server_rows_of

FRAME = "run/phone/0"


def query(number: int, rows: int = 1, attempt: int = 1, frame: str = FRAME) -> dict[str, Any]:
    asks = [[frame, "search", rows]]
    return {"event": "sent", "id": f"run/adversary/{number}", "attempt": attempt, "kind": "query", "rows": rows, "asks": asks}


def forwarded(frame: str = FRAME, attempt: int = 1) -> dict[str, Any]:
    return {"event": "sent", "id": frame, "attempt": attempt, "kind": "forwarded", "rows": 1, "why": "success"}


def end(sent: dict[str, Any], event: str = "answered") -> dict[str, Any]:
    return {"event": event, "id": sent["id"], "attempt": sent["attempt"], "reason": "cut" if event == "lost" else None}


def logged(sent: dict[str, Any], rows: int | None = None) -> dict[str, Any]:
    origin = "query" if sent["kind"] == "query" else "client"
    return {"id": sent["id"], "attempt": sent["attempt"], "origin": origin, "rows": rows or sent["rows"], "t_ns": 1}


def session(queries: int, frame: str = FRAME) -> SessionLine:
    return SessionLine(frame=frame, success=True, queries=queries, reason="success")


def compare(
    ledger: list[dict[str, Any]],
    server: list[dict[str, Any]],
    sessions: list[SessionLine] | None = None,
    budget: int | None = None,
) -> tuple[LedgerCounts, list[str]]:
    if sessions is None:
        asked = sum(row["rows"] for row in ledger if row.get("kind") == "query")
        sessions = [session(asked)] if asked else []
    return reconcile(entries_of(ledger), server_rows_of(server), sessions, budget)


def test_a_conversation_that_both_tell_alike_agrees() -> None:
    first, second, onward = query(1, rows=3), query(2), forwarded()
    ledger = [first, end(first), second, end(second), onward, end(onward)]
    counts, wrong = compare(ledger, [logged(first), logged(second), logged(onward)], budget=4)
    assert wrong == []
    assert counts == LedgerCounts(
        rows=5, server_rows=5, queries=4, forwarded=1, clean=0, lost=0, entries=3, server_entries=3, unended=0, agrees=True
    )


def test_nothing_said_on_either_side_agrees() -> None:
    counts, wrong = compare([], [])
    assert counts.agrees and counts.rows == counts.server_rows == 0 and not wrong


def test_a_row_answered_but_not_logged_is_a_disagreement() -> None:
    asked = query(1)
    counts, [wrong] = compare([asked, end(asked)], [])
    assert not counts.agrees
    assert wrong == "run/adversary/1 attempt 1: answered in the ledger, but not in the server's log"


def test_a_row_logged_that_the_ledger_does_not_know_is_a_disagreement() -> None:
    counts, [wrong] = compare([], [logged(query(1))])
    assert not counts.agrees
    assert "in the server's log, but neither answered nor lost" in wrong


def test_rows_that_differ_are_a_disagreement() -> None:
    asked = query(1, rows=3)
    _, [wrong] = compare([asked, end(asked)], [logged(asked, rows=2)])
    assert "3 rows in the ledger, 2 in the server's log" in wrong


def test_a_query_that_the_server_takes_for_a_frame_is_a_disagreement() -> None:
    asked = query(1)
    _, [wrong] = compare([asked, end(asked)], [logged(asked) | {"origin": "client"}])
    assert "query in the ledger, origin client" in wrong


def test_a_session_that_counts_otherwise_is_a_disagreement() -> None:
    asked = query(1, rows=3)
    _, [wrong] = compare([asked, end(asked)], [logged(asked)], [session(2)])
    assert wrong == f"{FRAME}: its session counts 2 queries, the ledger 3"


def test_a_session_that_claims_queries_never_asked_is_a_disagreement() -> None:
    _, [wrong] = compare([], [], [session(1)])
    assert "counts 1 queries, the ledger 0" in wrong


def test_a_frame_over_its_budget_is_a_disagreement() -> None:
    asked = query(1, rows=3)
    _, [wrong] = compare([asked, end(asked)], [logged(asked)], budget=2)
    assert wrong == f"{FRAME}: 3 queries, over its budget of 2"


def test_the_budget_is_held_where_a_killed_adversary_left_no_session() -> None:
    asked = query(1, rows=3)
    _, [missing, over] = compare([asked], [logged(asked)], sessions=[], budget=2)
    assert missing == f"{FRAME}: 3 queries in the ledger, but no session"
    assert "over its budget" in over


def test_the_frame_on_its_way_is_not_in_the_budget() -> None:
    asked, onward = query(1, rows=2), forwarded()
    counts, wrong = compare([asked, end(asked), onward, end(onward)], [logged(asked), logged(onward)], budget=2)
    assert counts.agrees, wrong


def test_a_lost_row_agrees_whether_the_server_logged_it_or_not() -> None:
    seen, unseen = query(1), query(2)
    counts, wrong = compare([seen, unseen, end(seen, "lost"), end(unseen, "lost")], [logged(seen)])
    assert counts.agrees, wrong
    assert (counts.rows, counts.lost, counts.server_rows, counts.unended) == (2, 2, 1, 0)


def test_a_retry_is_an_entry_of_its_own_and_no_new_query() -> None:
    first, again = query(1), query(1, attempt=2)
    ledger = [first, end(first, "lost"), again, end(again)]
    counts, wrong = compare(ledger, [logged(first), logged(again)], [session(1)])
    assert counts.agrees, wrong
    assert (counts.entries, counts.queries, counts.lost) == (2, 2, 1)


def test_the_same_attempt_told_twice_counts_once() -> None:
    asked = query(1, rows=2)
    counts, wrong = compare([asked, asked, end(asked)], [logged(asked), logged(asked)], [session(2)])
    assert counts.agrees, wrong
    assert counts.rows == counts.server_rows == 2


def test_what_a_killed_adversary_sent_counts_as_lost_and_is_shown() -> None:
    answered, open_ = query(1), query(2)
    counts, wrong = compare([answered, end(answered), open_], [logged(answered), logged(open_)])
    assert counts.agrees, wrong
    assert (counts.lost, counts.unended) == (1, 1)


def test_an_end_without_a_beginning_is_a_disagreement() -> None:
    _, wrong = compare([end(query(1))], [logged(query(1))], [])
    assert wrong == ["run/adversary/1 attempt 1: answered in the ledger, but never sent"]


def test_a_row_both_answered_and_lost_is_a_disagreement() -> None:
    asked = query(1)
    _, [wrong] = compare([asked, end(asked, "lost"), end(asked)], [logged(asked)])
    assert "both answered and lost" in wrong


def test_a_frame_that_came_twice_has_an_end_for_each_and_counts_once() -> None:
    passed = forwarded()
    counts, wrong = compare([passed, end(passed, "lost"), passed, end(passed)], [logged(passed), logged(passed)])
    assert wrong == []
    assert (counts.rows, counts.server_rows, counts.lost) == (1, 1, 0)


def test_torn_last_lines_are_passed_over(tmp_path: Path) -> None:
    asked = query(1)
    ledger, server = tmp_path / "queries.jsonl", tmp_path / "server.jsonl"
    for path, rows in ((ledger, [asked, end(asked)]), (server, [logged(asked)])):
        with Journal(path) as journal:
            journal.append(*rows)
        with path.open("ab") as file:
            file.write(b'{"event": "sent", "id": "run/adver')
    counts, wrong = reconcile(entries_of(read(ledger)), server_rows_of(read(server)), [session(1)], 1)
    assert counts.agrees, wrong
    assert counts.entries == counts.server_entries == 1


def test_what_two_replicas_have_computed_is_told() -> None:
    """A balancer that sends a request on to a second server makes two rows of one attempt."""
    events = [
        {"event": "sent", "id": "r/c/0", "attempt": 1, "kind": "clean", "rows": 1},
        {"event": "answered", "id": "r/c/0", "attempt": 1},
    ]
    line = {"id": "r/c/0", "attempt": 1, "origin": "client", "rows": 1}
    once = server_rows_of([{**line, "edge": "a:1"}])
    twice = server_rows_of([{**line, "edge": "a:1"}, {**line, "edge": "b:1"}])
    assert reconcile(entries_of(events), once)[1] == []
    assert reconcile(entries_of(events), twice)[1] == ["r/c/0 attempt 1: computed by a:1 and by b:1, a balancer sent it twice"]
