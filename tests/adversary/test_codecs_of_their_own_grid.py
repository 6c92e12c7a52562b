"""Attacks through codecs whose grid is the payload's own, a learned density's, or a block's: what is claimed arrives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tails import LinearTail, attack_all, clean_latents, identity, spec, wire_spaces

from adversary.attacks import Attack
from adversary.attacks.hopskipjump import HopSkipJump
from adversary.attacks.nes import NES
from adversary.attacks.noise import Noise
from adversary.attacks.signopt import SignOPT
from adversary.attacks.square import Square
from splitcore.codec import Codec, fit
from splitcore.codec.entropy import Entropy
from splitcore.codec.prior import Prior
from splitcore.threat import BALLS, Norm, ThreatModel

SHAPE = (6, 8, 8)
CODECS = ["jpeg75", "jpeg95/rgb-triples", "uniform4/channel/sample", "uniform1/tensor", "entropy"]


def codec_of(name: str) -> Codec:
    if name != "entropy":
        return fit(name, spec(SHAPE))
    prior = Prior.counted(clean_latents(identity(SHAPE), 50), [0.5] * SHAPE[0])
    return fit(Entropy(), dataclasses.replace(spec(SHAPE), prior=prior))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    ("attack", "norm"),
    [(Noise(), "linf"), (Square(), "linf"), (Square(), "l2"), (NES(), "linf"), (HopSkipJump(), "l2"), (SignOPT(), "l2")],
    ids=lambda value: getattr(value, "kind", value),
)
def test_what_a_success_claims_is_what_arrives(attack: Attack, norm: Norm, name: str, tmp_path: Path) -> None:
    codec = codec_of(name)
    tail = LinearTail(codec)
    spaces = wire_spaces(codec, clean_latents(codec, 3))
    eps, root = (8.5, 1.0) if name == "uniform1/tensor" and norm == "linf" else (1.0, np.sqrt(codec.latent.elements))
    threat = ThreatModel(norm=norm, eps=eps, eps_unit="std", budget=150)
    outcomes = attack_all(tail, attack, threat, dict(enumerate(spaces)), tmp_path)
    assert sum(outcome.queries for outcome in outcomes.values()) == tail.rows
    for number, outcome in outcomes.items():
        assert outcome.error is None
        if outcome.payload is None:
            continue
        arrived = codec.decode([outcome.payload])
        ball = BALLS[norm](spaces[number].centre, eps * (root if norm == "l2" else 1), spaces[number].lo, spaces[number].hi)
        assert ball.distance(arrived)[0] == pytest.approx(outcome.distance, abs=1e-4)
        if outcome.success:
            assert ball.contains(arrived)[0]
            assert tail.scores(arrived).argmax() == outcome.predicted != outcome.label
    # one step of 1 bit is the whole range; the corners of a linf ball do not survive the rounding of JPEG's blocks
    if attack.feedback != "none" and name != "uniform1/tensor" and not (name.startswith("jpeg") and norm == "linf"):
        assert any(outcome.success for outcome in outcomes.values())
