"""The ledger against the server's own log, by distinct (id, attempt).

Delivery to the server is at least once, so the two agree exactly when every answered entry is in the server's log with as
many rows, and every logged entry is answered or lost in the ledger. An entry that was sent and never ended (its process was
killed) counts as lost. One that came twice under the same attempt has an end for each sending; one answer makes it answered.
A session may ask no more than its budget, and what it says it asked is what the ledger holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from testbed.report.model import Against, LedgerCounts

Key = tuple[str, int]
SHOWN = 20
"""disagreements in the report; all of them are counted"""


@dataclass
class Entry:
    """One request of the ledger: (id, attempt), how it began and how it ended."""

    id: str
    attempt: int
    kind: Literal["query", "forwarded", "clean"] | None = None
    """None: an end without a beginning"""
    rows: int = 0
    asks: list[tuple[str, str, int]] = field(default_factory=list)
    """frame id, phase, rows"""
    why: str = ""
    bytes: int = 0
    sendings: int = 0
    """more than 1 where the way before the adversary brought it twice"""
    sent_ns: int | None = None
    ended_ns: int | None = None
    ends: list[Literal["answered", "lost"]] = field(default_factory=list)
    reason: str = ""

    @property
    def answered(self) -> bool:
        return "answered" in self.ends


@dataclass(frozen=True)
class ServerRow:
    id: str
    attempt: int
    origin: str
    rows: int
    edges: frozenset[str] = frozenset()
    """whose logs have it, where there are several"""
    detected: dict[str, list[int]] = field(default_factory=dict)
    """which of its rows a detector detected, by the detector's kind"""


@dataclass(frozen=True)
class Counted:
    """What a server without a log says that it answered in a pass; None: it does not say."""

    requests: int | None = None
    rows: int | None = None


class Asker(Protocol):
    """What reconciliation needs of a session."""

    @property
    def frame(self) -> str: ...
    @property
    def queries(self) -> int: ...


def entries_of(events: Iterable[Mapping[str, Any]]) -> dict[Key, Entry]:
    """The journal's events, folded by (id, attempt)."""
    entries: dict[Key, Entry] = {}
    for row in events:
        key = (str(row["id"]), int(row["attempt"]))
        entry = entries.setdefault(key, Entry(*key))
        if row["event"] == "sent":
            entry.kind, entry.rows, entry.sent_ns = row["kind"], int(row["rows"]), row.get("t_ns")
            entry.sendings += 1
            entry.asks = [(str(frame), str(phase), int(count)) for frame, phase, count in row.get("asks") or ()]
            entry.why, entry.bytes = str(row.get("why") or ""), int(row.get("bytes") or 0)
        else:
            entry.ends.append(row["event"])
            entry.ended_ns, entry.reason = row.get("t_ns"), str(row.get("reason") or "")
    return entries


def server_rows_of(lines: Iterable[Mapping[str, Any]]) -> dict[Key, ServerRow]:
    rows: dict[Key, ServerRow] = {}
    for line in lines:
        edges = frozenset({str(line["edge"])} if "edge" in line else ())
        row = ServerRow(
            str(line["id"]), int(line["attempt"]), str(line["origin"]), int(line["rows"]), edges, line.get("detected") or {}
        )
        before = rows.setdefault((row.id, row.attempt), row)
        if not edges <= before.edges:
            rows[row.id, row.attempt] = replace(before, edges=before.edges | edges)
    return rows


def queries_of(ledger: Mapping[Key, Entry]) -> list[Entry]:
    """The query requests, each once: a retry has the same id and asks nothing new."""
    first: dict[str, Entry] = {}
    for entry in ledger.values():
        if entry.kind == "query" and (entry.id not in first or entry.attempt < first[entry.id].attempt):
            first[entry.id] = entry
    return list(first.values())


def asked_of(ledger: Mapping[Key, Entry]) -> Counter[str]:
    """Queries in the ledger by the frame that they were asked for."""
    asked: Counter[str] = Counter()
    for entry in queries_of(ledger):
        for frame, _, count in entry.asks:
            asked[frame] += count
    return asked


def reconcile(
    ledger: Mapping[Key, Entry],
    server: Mapping[Key, ServerRow],
    sessions: Iterable[Asker] = (),
    budget: int | None = None,
) -> tuple[LedgerCounts, list[str]]:
    """The counts, and every disagreement in words."""
    wrong = [*_ledger_against_log(ledger, server), *_log_against_ledger(ledger, server)]
    wrong += _sessions_against_ledger(ledger, sessions, budget)
    counts = _counts(
        ledger, server_rows=sum(row.rows for row in server.values()), server_entries=len(server), wrong=wrong, against="log"
    )
    return counts, wrong


def reconcile_at_one_end(
    ledger: Mapping[Key, Entry],
    client: Mapping[Key, Entry],
    counted: Counted,
    sessions: Iterable[Asker] = (),
    budget: int | None = None,
) -> tuple[LedgerCounts, list[str]]:
    """Where the server keeps no log: the ledger against the client's own attempts, and sums of both against its counters."""
    wrong = []
    if client is not ledger:
        mine = {key: entry for key, entry in ledger.items() if entry.kind != "query"}
        wrong += [f"{_name(key)}: sent by the client, but not in the ledger" for key in client if key not in mine]
        wrong += [f"{_name(key)}: in the ledger, but never sent by the client" for key in mine if key not in client]
        wrong += [
            f"{_name(key)}: the client has an answer, the ledger has none"
            for key, entry in client.items()
            if entry.answered and key in mine and not mine[key].answered
        ]
    for key, entry in ledger.items():
        if len(set(entry.ends)) > 1:
            wrong.append(f"{_name(key)}: both answered and lost in the ledger")
        if entry.asks and sum(count for *_, count in entry.asks) != entry.rows:
            wrong.append(f"{_name(key)}: {entry.rows} rows sent, asked for {sum(count for *_, count in entry.asks)}")
    wrong += _sessions_against_ledger(ledger, sessions, budget)
    against: Against = "client"
    for what, said, weigh in (("requests", counted.requests, lambda _: 1), ("rows", counted.rows, lambda entry: entry.rows)):
        if said is None:
            continue
        against = "counts"
        answered = sum(weigh(entry) for entry in ledger.values() if entry.answered)
        sent = sum(weigh(entry) for entry in ledger.values())
        if not answered <= said <= sent:
            wrong.append(f"{answered} {what} answered of {sent} sent in the ledger, the server counted {said}")
    counts = _counts(ledger, server_rows=counted.rows or 0, server_entries=counted.requests or 0, wrong=wrong, against=against)
    return counts, wrong


def _counts(
    ledger: Mapping[Key, Entry], *, server_rows: int, server_entries: int, wrong: list[str], against: Against
) -> LedgerCounts:
    by_kind: Counter[str | None] = Counter()
    lost = 0
    for entry in ledger.values():
        by_kind[entry.kind] += entry.rows
        lost += 0 if entry.answered else entry.rows
    return LedgerCounts(
        rows=sum(by_kind.values()),
        server_rows=server_rows,
        queries=by_kind["query"],
        forwarded=by_kind["forwarded"],
        clean=by_kind["clean"],
        lost=lost,
        entries=len(ledger),
        server_entries=server_entries,
        unended=sum(not entry.ends for entry in ledger.values()),
        against=against,
        agrees=not wrong,
    )


def _ledger_against_log(ledger: Mapping[Key, Entry], server: Mapping[Key, ServerRow]) -> list[str]:
    wrong = []
    for key, entry in ledger.items():
        name, row = _name(key), server.get(key)
        if entry.kind is None:
            wrong.append(f"{name}: {entry.ends[0]} in the ledger, but never sent")
        if entry.sendings == 1 and len(set(entry.ends)) > 1:
            wrong.append(f"{name}: both answered and lost in the ledger")
        if entry.answered and row is None:
            wrong.append(f"{name}: answered in the ledger, but not in the server's log")
        if entry.asks and sum(count for *_, count in entry.asks) != entry.rows:
            wrong.append(f"{name}: {entry.rows} rows sent, asked for {sum(count for *_, count in entry.asks)}")
        if row is None or entry.kind is None:
            continue
        if row.rows != entry.rows:
            wrong.append(f"{name}: {entry.rows} rows in the ledger, {row.rows} in the server's log")
        if (row.origin == "query") != (entry.kind == "query"):
            wrong.append(f"{name}: {entry.kind} in the ledger, origin {row.origin} in the server's log")
    return wrong


def _log_against_ledger(ledger: Mapping[Key, Entry], server: Mapping[Key, ServerRow]) -> list[str]:
    twice = [
        f"{_name(key)}: computed by {' and by '.join(sorted(row.edges))}, a balancer sent it twice"
        for key, row in server.items()
        if len(row.edges) > 1
    ]
    return twice + [
        f"{_name(key)}: in the server's log, but neither answered nor lost in the ledger" for key in server if key not in ledger
    ]


def _sessions_against_ledger(ledger: Mapping[Key, Entry], sessions: Iterable[Asker], budget: int | None) -> list[str]:
    wrong = []
    asked, seen = asked_of(ledger), set()
    for session in sessions:
        rows = asked[session.frame]
        if session.frame in seen:
            wrong.append(f"{session.frame}: more than one session")
            continue
        seen.add(session.frame)
        if session.queries != rows:
            wrong.append(f"{session.frame}: its session counts {session.queries} queries, the ledger {rows}")
    wrong += [f"{frame}: {asked[frame]} queries in the ledger, but no session" for frame in asked if frame not in seen]
    if budget is not None:
        wrong += [f"{frame}: {rows} queries, over its budget of {budget}" for frame, rows in asked.items() if rows > budget]
    return wrong


def _name(key: Key) -> str:
    return f"{key[0]} attempt {key[1]}"
