"""One trained tail on latents scaled to [0, 1], as the other libraries take for granted: for comparisons in one run."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adversary.attacks import Attack, Pool
from adversary.campaign import Campaign
from adversary.ledger import Ledger
from adversary.oracle import TailOracle
from adversary.session import Outcome, Session
from adversary.space import WireSpace
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.frame import Frame, Reply
from splitcore.head import Head
from splitcore.latent import F32, LatentSpec
from splitcore.nn.tail import load_tail
from splitcore.threat import Norm, ThreatModel


class Unit(nn.Module):
    """Latents [k, *shape] in [0, 1] to logits; counts the rows that it sees."""

    def __init__(self, tail: nn.Module, lo: Tensor, hi: Tensor) -> None:
        super().__init__()
        self.tail = tail
        self.register_buffer("lo", lo)
        self.register_buffer("hi", hi)
        self.rows = 0
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        self.calls += 1
        logits: Tensor = self.tail(self.lo + x * (self.hi - self.lo))
        return logits


@dataclass
class Arena:
    """Latents of held-out samples that the model gets right, and the model."""

    model: Unit
    latents: F32
    """[n, C, H, W] in [0, 1]"""
    labels: NDArray[np.int64]
    """[n], as the model says"""
    codec: Codec = field(init=False)

    def __post_init__(self) -> None:
        shape = self.latents.shape[1:]
        self.codec = fit("identity", LatentSpec(shape, (0.0,) * shape[0], (1.0,) * shape[0], float(self.latents.std())))

    def scores(self, x: F32) -> F32:
        """Logits [k, classes] of latents [k, *shape]; counted."""
        with torch.inference_mode():
            logits: F32 = self.model(torch.from_numpy(np.array(x, np.float32))).numpy()
        return logits

    def wrong(self, x: F32) -> NDArray[np.bool_]:
        """Which of x [n, *shape], one for each latent from the first on, are no longer what they were."""
        changed: NDArray[np.bool_] = self.scores(x).argmax(axis=1) != self.labels[: len(x)]
        return changed

    def ours(
        self, attack: Attack, *, norm: Norm, eps: float, budget: int, n: int, seed: int = 0,
        target: Sequence[int] | None = None, pool: Pool | None = None
    ) -> list[Outcome]:  # fmt: skip
        """The first n latents under attack within [0, 1], as a campaign does it, in this process. eps is absolute.

        An eps of 1e-9 is never reached: the whole budget is spent, and `outcome.nearest` says how near it came.
        """
        outcomes: dict[str, Outcome] = {}
        done = threading.Semaphore(0)

        def take(outcome: Outcome) -> None:
            outcomes[outcome.frame] = outcome
            done.release()

        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder) / "queries.jsonl")
            campaign = Campaign(TailOracle(self._answer), ledger, run="run", nonce="0")
            for number, payload in enumerate(self.codec.encode(self.latents[:n])):
                threat = ThreatModel(
                    norm=norm, eps=eps, eps_unit="absolute", budget=budget, box=(0.0, 1.0),
                    target=None if target is None else int(target[number]),
                )  # fmt: skip
                space = WireSpace(payload, self.codec, self.codec.latent.std)
                rng = np.random.default_rng([seed, number])
                campaign.submit(Session(f"run/a/{number}", space, attack, threat, rng=rng, pool=pool), take)
            for _ in range(n):
                assert done.acquire(timeout=100)
            campaign.close()
            ledger.close()
        failed = [outcome.error for outcome in outcomes.values() if outcome.error]
        assert not failed, failed[:3]
        return [outcomes[f"run/a/{number}"] for number in range(n)]

    def _answer(self, frame: Frame) -> Reply:
        scores = self.scores(self.codec.decode(frame.payloads))
        return Reply(id=frame.id, scores=scores, labels=scores.argmax(axis=1).astype(np.int64))

    def art(self) -> Any:
        """The model as ART's black box; ask it for `arena.model.rows` afterwards."""
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork

        return BlackBoxClassifierNeuralNetwork(
            self.scores, self.latents.shape[1:], 10, clip_values=(0.0, 1.0), channels_first=True
        )

    def foolbox(self) -> Any:
        from foolbox import PyTorchModel

        return PyTorchModel(self.model.eval(), bounds=(0, 1), device="cpu")


def build(artefact: Artefact) -> Arena:
    """Out of an artefact's tail, and its samples through its head."""
    spec = artefact.latent
    lo, hi = spec.per_channel(spec.lo), spec.per_channel(spec.hi)
    model = Unit(load_tail(artefact), torch.from_numpy(lo.copy()), torch.from_numpy(hi.copy())).eval()
    images, truth = artefact.samples
    latents = np.clip((Head(artefact).from_uint8(images) - lo) / (hi - lo), 0, 1).astype(np.float32)
    with torch.inference_mode():
        said = model(torch.from_numpy(latents)).argmax(1).numpy()
    right = said == truth
    model.rows = model.calls = 0
    return Arena(model, latents[right], said[right])
