"""What the edge's detectors made of each pass: false alarms where nobody attacked, and how soon they saw who did.

The server's log says which rows of a request were detected, the ledger for which frame each of them was asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from testbed.report.model import Attack, Detection
from testbed.report.read import Pass, PassInfo
from testbed.report.reconcile import Entry, Key, queries_of
from testbed.report.statistics import median, rate_of

OF_ONE_PASS = {"name", "run", "wall_s", "detectors", "eps_absolute"}
"""what of a pass may differ where the same was measured with its detectors and without"""


def detections(passes: Sequence[Pass], attacks: Sequence[Attack]) -> list[Detection]:
    """One for each pass and detector that watched it, in their order."""
    by_name = {attack.name: attack for attack in attacks}
    return [_of(p, detector, passes, by_name) for p in passes for detector in p.info.detectors]


def _of(p: Pass, detector: Mapping[str, Any], passes: Sequence[Pass], attacks: Mapping[str, Attack]) -> Detection:
    name, action = str(detector["kind"]), str(detector["action"])
    frames = {row.id for row in p.server.values() if row.origin != "query"}
    found = {row.id for row in p.server.values() if row.origin != "query" and name in row.detected}
    asked = sum(entry.rows for entry in queries_of(p.ledger))
    numbers = list(_numbers(p, name))
    first: dict[str, int] = {}
    for frame, number in numbers:
        first[frame] = min(number, first.get(frame, number))
    sessions = [session.frame for session in p.sessions if session.queries]
    attack = attacks.get(p.info.name)
    other = _without(p.info, passes) if action == "reject" else None
    return Detection(
        name=p.info.name,
        detector=name,
        action="reject" if action == "reject" else "flag",
        settings={key: value for key, value in detector.items() if key not in ("kind", "action")},
        attacked=attack is not None and not attack.baseline,
        frames=rate_of(len(found), len(frames)),
        queries=rate_of(len(set(numbers)), asked) if asked else None,
        sessions=rate_of(sum(frame in first for frame in sessions), len(sessions)) if sessions else None,
        first_detection=median(first.values()),
        first_detections=sorted(first.values()),
        asr=attack.asr if attack else None,
        without=other,
        asr_without=attacks[other].asr if other else None,
    )


def _numbers(p: Pass, kind: str) -> Iterator[tuple[str, int]]:
    """(frame that it was asked for, its number among that frame's queries from 1) of every detected query."""
    asked: Counter[str] = Counter()
    by_id: dict[str, list[tuple[str, int]]] = {}
    for entry in queries_of(p.ledger):
        rows = by_id[entry.id] = []
        for frame, _, count in entry.asks:
            rows += [(frame, asked[frame] + n) for n in range(1, count + 1)]
            asked[frame] += count
    for key, row in p.server.items():
        rows = by_id.get(row.id, []) if _is_query(p.ledger, key) else []
        yield from (rows[at] for at in row.detected.get(kind, ()) if at < len(rows))


def _is_query(ledger: Mapping[Key, Entry], key: Key) -> bool:
    return key in ledger and ledger[key].kind == "query"


def _without(info: PassInfo, passes: Sequence[Pass]) -> str | None:
    """The pass that is the same but for its detectors, which let everything through there."""
    for other in (p.info for p in passes):
        through = all(detector["action"] != "reject" for detector in other.detectors)
        if through and other.name != info.name and _same(info, other):
            return other.name
    return None


def _same(one: PassInfo, other: PassInfo) -> bool:
    return one.kind == other.kind == "attack" and one.model_dump(exclude=OF_ONE_PASS) == other.model_dump(exclude=OF_ONE_PASS)
