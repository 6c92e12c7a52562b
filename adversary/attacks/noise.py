"""The baseline: one point drawn uniformly from the ball, sent on without a question."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from adversary.attacks.base import Case, Search
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Noise:
    """What eps does by itself. An attack that is no better than this has found nothing."""

    feedback: ClassVar[Feedback] = "none"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    kind: Literal["noise"] = "noise"

    def perturb(self, z: F32, case: Case) -> Search:
        yield from ()
        sample: F32 = case.ball.sample(case.rng, 1)[0]
        return sample
