"""One cell: its samples under attack, judged, counted, and the books compared. What comes out is one row."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adversary.attacks.base import About, Attack, Pool, learns, taught
from adversary.campaign import Campaign
from adversary.oracle import LiveOracle
from adversary.session import Outcome, Session
from splitcore.errors import ScenarioError
from splitcore.threat import Scale, ThreatModel, absolute_eps
from testbed.report.statistics import median, rate_of
from testbed.study.config import Cell, Study
from testbed.study.scene import Books, Scene

VERSION = 1
"""of a row; rows of another are measured again"""
Row = dict[str, Any]
Progress = Callable[[int, int], None]
"""(sessions that ended, of them fell)"""


def key(cell: Cell, study: Study, handshake: str) -> str:
    """By it a journal knows a cell again: everything that its result depends on."""
    what = {
        "version": VERSION, "artefact": handshake, "point": cell.place.point, "codec": dataclasses.asdict(cell.place.codec),
        "label": cell.label, "attack": settings(cell.attack), "norm": cell.norm, "eps": cell.eps,
        "samples": cell.samples, "budget": cell.budget, "pool": study.pool, "box": study.box, "seed": study.seed,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def settings(attack: Attack) -> dict[str, Any]:
    """An attack as data; one that is no dataclass says what it is."""
    if dataclasses.is_dataclass(attack):
        return dataclasses.asdict(attack)
    return {"kind": attack.kind, "as": repr(attack)}


def measure(scene: Scene, cell: Cell, study: Study, progress: Progress) -> Row:
    """The row of a cell. An attack that fails, and books that disagree, are in the row: `problems` is not empty then."""
    clean = scene.clean(cell.place)
    chosen = np.flatnonzero(clean.right)[: cell.samples]
    if not len(chosen):
        raise ScenarioError(f"{cell.title}: no sample is classified as its label says: nothing to attack")
    tried = int(chosen[-1]) + 1
    row = _described(scene, cell, study)
    row |= {"n": len(chosen), "tried": tried, "clean_accuracy": rate_of(int(clean.right.sum()), len(clean.right)).model_dump()}
    threat = threat_of(scene, cell, study)
    pool = scene.pool(cell.place, slice(tried, tried + study.pool)) if study.pool else None
    if pool is not None and not len(pool.labels):
        pool = None
    started = time.perf_counter()
    try:
        spaces = [scene.space(cell.place, int(sample)) for sample in chosen]
        # an eps that this quantiser cannot carry is a result, not a failure
        Session("", spaces[0], cell.attack, threat, rng=np.random.default_rng(0))
    except ScenarioError as error:
        return row | {"skipped": str(error), "problems": []}
    attack = taught(cell.attack, pool, lambda: _about(scene, cell, threat, pool, study.seed))
    learn_s = time.perf_counter() - started if learns(cell.attack) else None
    with scene.books(key(cell, study, scene.artefact.manifest.handshake)) as books:
        sessions = [
            Session(
                f"{books.run}/c/{sample}", space, attack, threat, rng=np.random.default_rng([study.seed, int(sample)]),
                deadline=time.monotonic() + study.limit_s, pool=pool,
            )
            for sample, space in zip(chosen, spaces, strict=True)
        ]  # fmt: skip
        attacked = _attacked(scene, cell, study, sessions, books, scene.truth[chosen], progress)
    counts, wrong = books.compared([session.outcome for session in sessions], cell.budget)
    problems = wrong + [outcome.error or "" for outcome in attacked.outcomes if outcome.reason == "error"]
    return row | _figures(attacked, tried, threat, scene, cell) | {
        "learn_s": learn_s, "learned": dict(getattr(attack, "learned", {})) if learns(cell.attack) else {},
        "rows": counts.queries + counts.forwarded, "queries": counts.queries, "lost": counts.lost, "requests": counts.entries,
        "rows_per_s": (counts.queries + counts.forwarded) / attacked.wall_s,
        "books_agree": not wrong, "problems": problems,
    }  # fmt: skip


@dataclass(frozen=True)
class _Attacked:
    outcomes: list[Outcome]
    fell: NDArray[np.bool_]
    """[n]"""
    wall_s: float


def _attacked(
    scene: Scene, cell: Cell, study: Study, sessions: Sequence[Session], books: Books, truth: NDArray[np.int64],
    progress: Progress,
) -> _Attacked:  # fmt: skip
    """All sessions in one campaign; what blind attacks came to is sent on once, and the label that comes back is judged."""
    campaign = Campaign(
        LiveOracle(scene.target), books.ledger, run=books.run, nonce="0", max_rows=study.max_rows, in_flight=study.in_flight
    )
    ended, lock = threading.Semaphore(0), threading.Lock()
    count: Counter[str] = Counter()

    def done(outcome: Outcome) -> None:
        with lock:
            count["ended"] += 1
            count["fell"] += outcome.success
        progress(count["ended"], count["fell"])
        ended.release()

    started = time.perf_counter()
    try:
        for session in sessions:
            campaign.submit(session, done)
        for _ in sessions:
            ended.acquire()
    finally:
        campaign.close()
    outcomes = [session.outcome for session in sessions]
    fell = np.array([outcome.success for outcome in outcomes])
    blind = [number for number, outcome in enumerate(outcomes) if outcome.reason == "blind"]
    if blind:
        codec = scene.codec(cell.place)
        frames = [scene.frame(sessions[number].frame, codec, [outcomes[number].payload or b""]) for number in blind]
        for number, reply in zip(blind, scene.send(frames, books.ledger, "forwarded"), strict=True):
            assert reply.scores is not None
            outcome = outcomes[number]
            outcome.predicted = int(reply.scores[0].argmax())
            inside = outcome.distance is not None and outcome.distance <= sessions[number].ball.reach
            fell[number] = outcome.predicted != truth[number] and inside
        progress(len(outcomes), int(fell.sum()))
    return _Attacked(outcomes, fell, time.perf_counter() - started)


def threat_of(scene: Scene, cell: Cell, study: Study) -> ThreatModel:
    """eps as the session takes it: at `input` in pixels, since there a session's std would be that of its own image."""
    common: dict[str, Any] = {"point": cell.place.point, "norm": cell.norm, "budget": cell.budget, "box": study.box}
    if cell.place.point != "input":
        return ThreatModel(eps=cell.eps, eps_unit="std", **common)
    spread = scene.pixel_std * (math.sqrt(scene.images[0].size) if cell.norm == "l2" else 1.0)
    return ThreatModel(eps=cell.eps * spread, eps_unit="absolute", **common)


def _described(scene: Scene, cell: Cell, study: Study) -> Row:
    scale = _scale(scene, cell)
    eps = absolute_eps(threat_of(scene, cell, study), scale)
    rms = eps if cell.norm == "linf" else eps / math.sqrt(scale.elements)
    return {
        "key": key(cell, study, scene.artefact.manifest.handshake), "artefact": scene.artefact.manifest.handshake,
        "cut": scene.artefact.manifest.cut,
        "subject": cell.subject, "place": cell.place.name, "point": cell.place.point, "codec": scene.codec(cell.place).name,
        "attack": cell.label, "settings": settings(cell.attack), "feedback": cell.attack.feedback, "norm": cell.norm,
        "eps": cell.eps, "eps_absolute": eps, "mse": rms**2, "snr_db": 20 * math.log10(1 / cell.eps),
        "steps": rms / scale.step if scale.step else None, "elements": scale.elements,
        "samples": cell.samples, "budget": cell.budget, "box": study.box, "seed": study.seed,
    }  # fmt: skip


def _scale(scene: Scene, cell: Cell) -> Scale:
    if cell.place.point == "input":
        return Scale(1.0, scene.pixel_std, 0.0, scene.images[0].size)
    return scene.space(cell.place, 0).scale


def _about(scene: Scene, cell: Cell, threat: ThreatModel, pool: Pool | None, seed: int) -> About:
    assert pool is not None, "a learner without a pool is refused before"
    space = scene.space(cell.place, 0)
    lo, hi = space.box(threat.box)
    return About(
        norm=cell.norm, eps=absolute_eps(threat, _scale(scene, cell)), lo=lo, hi=hi, snap=space.snap,
        classes=len(scene.artefact.manifest.classes), target=None, seed=seed,
    )  # fmt: skip


def _figures(attacked: _Attacked, tried: int, threat: ThreatModel, scene: Scene, cell: Cell) -> Row:
    outcomes, fell = attacked.outcomes, attacked.fell
    successes = [outcome for outcome, success in zip(outcomes, fell, strict=True) if success]
    distance = median(outcome.distance for outcome in successes if outcome.distance is not None)
    eps = absolute_eps(threat, _scale(scene, cell))
    needed = sorted(outcome.first_success for outcome in successes if outcome.first_success is not None)
    wrong_already = tried - len(outcomes)
    return {
        "asr": rate_of(len(successes), len(outcomes)).model_dump(),
        # of all samples up to the last one attacked: those that were wrong without an attack are wrong with it
        "asr_raw": rate_of(len(successes) + wrong_already, tried).model_dump(),
        "median_queries": median(needed), "needed": needed,
        "median_distance": distance, "median_distance_of_eps": None if distance is None else distance / eps,
        "ends": dict(Counter(outcome.reason for outcome in outcomes)),
        "by_phase": dict(sum((Counter(outcome.by_phase) for outcome in outcomes), Counter[str]())),
        "wall_s": attacked.wall_s,
    }  # fmt: skip
