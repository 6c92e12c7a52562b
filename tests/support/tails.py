"""Small real tails for the engine's tests: linear classifiers, whose nearest boundary has a closed form."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from adversary.attacks import Attack, Pool
from adversary.attacks.base import learns
from adversary.campaign import Campaign
from adversary.ledger import Ledger
from adversary.oracle import TailOracle
from adversary.pool import Stock
from adversary.session import Outcome, Session
from adversary.space import Space, WireSpace
from splitcore.codec import Codec, fit
from splitcore.frame import Frame, Reply
from splitcore.latent import F32, LatentSpec
from splitcore.threat import Norm, ThreatModel


def spec(shape: tuple[int, ...], bound: float = 4.0) -> LatentSpec:
    return LatentSpec(shape, (-bound,) * shape[0], (bound,) * shape[0], 1.0)


class LinearTail:
    """scores = z·W + b; counts the rows that reach it."""

    def __init__(self, codec: Codec, classes: int = 5, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        d = codec.latent.elements
        self.codec = codec
        self.W = (rng.standard_normal((d, classes)) / np.sqrt(d)).astype(np.float32)
        self.rows = 0

    def scores(self, latents: F32) -> F32:
        return latents.reshape(len(latents), -1) @ self.W

    def answer(self, frame: Frame) -> Reply:
        assert frame.codec == self.codec.name
        scores = self.scores(self.codec.decode(frame.payloads))
        self.rows += frame.rows
        return Reply(id=frame.id, scores=scores, labels=scores.argmax(axis=1).astype(np.int64))

    def to_boundary(self, z: F32, norm: Norm = "l2") -> float:
        """The closed form: min over classes j of (f_y - f_j) / ‖w_y - w_j‖, in the dual norm: ℓ1 for linf."""
        dual = 1 if norm == "linf" else 2
        scores = self.scores(z[None])[0]
        y = int(scores.argmax())
        gaps = [
            (scores[y] - scores[j]) / np.linalg.norm(self.W[:, y] - self.W[:, j], dual) for j in range(len(scores)) if j != y
        ]
        return float(min(gaps))


def clean_latents(codec: Codec, n: int, seed: int = 1) -> F32:
    """Latents [n, *shape] as they arrive."""
    rng = np.random.default_rng(seed)
    return codec.snap(rng.standard_normal((n, *codec.latent.shape), np.float32))


def wire_spaces(codec: Codec, latents: F32) -> list[Space]:
    return [WireSpace(payload, codec, codec.latent.std) for payload in codec.encode(latents)]


def recorded(tail: LinearTail, n: int = 32, seed: int = 9) -> Stock:
    """What a recorder would have of n frames."""
    latents = clean_latents(tail.codec, n, seed)
    scores = tail.scores(latents)
    return Stock(Pool(latents, scores.argmax(axis=1), scores), wire_spaces(tail.codec, latents[:1])[0])


def taught(tail: LinearTail, attack: Attack, threat: ThreatModel) -> Attack:
    """The attack itself, or what it learned from a recording."""
    if not learns(attack):
        return attack
    stock = recorded(tail)
    learned: Attack = attack.learn_from(stock.pool, stock.about(threat, tail.W.shape[1], 0))
    return learned


def attack_all(
    tail: LinearTail, attack: Attack, threat: ThreatModel, spaces: dict[int, Space], folder: Path, **campaign: int
) -> dict[int, Outcome]:
    """Outcomes by sample number, from one campaign over all of `spaces`; a learner has its lesson first."""
    attack = taught(tail, attack, threat)
    ledger = Ledger(folder / "queries.jsonl")
    running = Campaign(TailOracle(tail.answer), ledger, run="run", nonce="0", **campaign)
    outcomes: dict[int, Outcome] = {}
    all_done = threading.Event()

    def done(outcome: Outcome) -> None:
        outcomes[int(outcome.frame.rpartition("/")[2])] = outcome
        if len(outcomes) == len(spaces):
            all_done.set()

    for number, space in spaces.items():
        rng = np.random.default_rng([3, number])
        running.submit(Session(f"run/phone/{number}", space, attack, threat, rng=rng), done)
    assert all_done.wait(60)
    running.close()
    ledger.close()
    return outcomes


def identity(shape: tuple[int, ...]) -> Codec:
    return fit("identity", spec(shape))
