"""A trained tail and the traffic that it answered: what a recorder holds, and other frames to attack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adversary.attacks import Attack, Pool
from adversary.pool import Stock
from adversary.session import Session
from adversary.space import WireSpace
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.data import load
from splitcore.head import Head
from splitcore.latent import F32
from splitcore.nn.tail import load_tail
from splitcore.threat import ThreatModel


@dataclass(frozen=True)
class Traffic:
    """Latents as they arrive."""

    codec: Codec
    tail: torch.nn.Module
    recorded: F32
    """[n, *shape], of the training images"""
    attacked: F32
    """[m, *shape], of the artefact's samples"""

    def scores(self, latents: F32) -> F32:
        with torch.inference_mode():
            logits: F32 = self.tail(torch.from_numpy(latents)).numpy()
        return logits

    def stock(self, n: int) -> Stock:
        """What a recorder has after n frames."""
        points = self.recorded[:n]
        scores = self.scores(points)
        return Stock(Pool(points, scores.argmax(axis=1), scores), self.space(points[0]))

    def space(self, latent: F32) -> WireSpace:
        return WireSpace(self.codec.encode(latent[None])[0], self.codec, self.codec.latent.std)

    def fell(self, attack: Attack, threat: ThreatModel) -> NDArray[np.bool_]:
        """[m]: which of the attacked frames have another label with what the blind attack sends unasked."""
        payloads = []
        for number, latent in enumerate(self.attacked):
            rng = np.random.default_rng([5, number])
            session = Session(f"r/phone/{number}", self.space(latent), attack, threat, rng=rng)
            session.begin()
            assert (session.outcome.reason, session.outcome.queries) == ("blind", 0)
            assert session.ball.contains(self.codec.decode([session.outcome.payload or b""]))[0]
            payloads.append(session.outcome.payload or b"")
        before, after = (self.scores(x).argmax(axis=1) for x in (self.attacked, self.codec.decode(payloads)))
        wrong: NDArray[np.bool_] = before != after
        return wrong


@cache
def digits(folder: Path, codec: str = "uniform8/channel", frames: int = 80) -> Traffic:
    """Of an artefact of recipes/digits.yaml."""
    artefact = Artefact(folder)
    fitted, head = fit(codec, artefact.latent), Head(artefact)
    recorded, attacked = (
        fitted.snap(head.from_uint8(images)) for images in (load("digits", "train").images, artefact.samples[0][:frames])
    )
    return Traffic(fitted, load_tail(artefact), recorded, attacked)
