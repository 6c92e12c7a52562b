"""What learners share: a surrogate, trained on recorded latents and answers.

The only way from the attacks to torch, taken when one learns. They work on arrays, and on anything `Differentiable`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import About, Pool
from adversary.verdict import log_probabilities
from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError
from splitcore.latent import F32

HELD_OUT = 10
"""one recorded row in so many says how well the surrogate agrees with the server, and trains nothing"""


class Differentiable(Protocol):
    """What gradients are taken of."""

    def logits(self, points: F32) -> F32:
        """[k, classes] of points [k, *shape]."""
        ...

    def loss_gradient(self, points: F32, labels: NDArray[np.int64]) -> tuple[F32, F32]:
        """Cross-entropy [k] of points [k, *shape] at `labels` [k], and the gradient of each by its own point [k, *shape]."""
        ...

    def jacobian(self, point: F32) -> tuple[F32, F32]:
        """Logits [classes] at one point [*shape], and the gradient of each [classes, *shape]."""
        ...


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SurrogateTraining:
    """Two or more convolutions and a linear layer, trained to answer as the server did. All defaults are ours."""

    members: Annotated[int, Field(ge=1, le=16)] = 2
    """nets trained from different first weights, whose logits are averaged: what fools them all transfers more often"""
    width: Annotated[int, Field(ge=1, le=512)] = 48
    """channels of each convolution"""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 30
    batch: Annotated[int, Field(ge=1, le=4096)] = 64
    lr: Annotated[float, Field(gt=0)] = 0.002
    """the one-cycle schedule's highest"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0001
    noise: Annotated[float, Field(ge=0)] = 1.0
    """Gaussian, on each latent each time that it is shown; in standard deviations of its channel"""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """where it trains and where its gradients are computed; `cpu` gives the same net on every machine of one kind"""

    def trained(self, pool: Pool, about: About) -> tuple[Differentiable, dict[str, Any]]:
        """The surrogate, and what there is to say of it. Raises ScenarioError where torch is missing."""
        try:
            from splitcore.nn.surrogate import fit
        except ImportError as error:
            raise ScenarioError(
                f"a surrogate needs torch where the adversary runs, got {error}: pip install 'latentbed[adversary,edge]'"
            ) from error
        answers, soft = probabilities(pool, about)
        rng = np.random.default_rng([about.seed, len(answers)])
        order = rng.permutation(len(answers))
        held, rest = np.split(order, [len(answers) // HELD_OUT])
        net: Differentiable = fit(
            pool.points[rest], answers[rest], members=self.members, width=self.width,
            epochs=self.epochs, batch=self.batch, lr=self.lr, weight_decay=self.weight_decay, noise=self.noise,
            seed=about.seed, device=self.device,
        )  # fmt: skip
        said: dict[str, Any] = {"rows_recorded": len(answers), "rows_with_scores": soft, "rows_asked": 0, "agreement": None}
        if len(held):
            agree = net.logits(pool.points[held]).argmax(axis=1) == pool.labels[held]
            said |= {"agreement": float(agree.mean()), "held_out": len(held)}
        return net, said


def probabilities(pool: Pool, about: About) -> tuple[F32, int]:
    """What the server answered as probabilities [n, classes], and of how many rows it gave scores; a label alone counts 1."""
    classes = max(about.classes, int(pool.labels.max()) + 1, (about.target or 0) + 1)
    classes = max(classes, 0 if pool.scores is None else pool.scores.shape[1])
    answers = np.zeros((len(pool.labels), classes), np.float32)
    seen = np.zeros(len(pool.labels), bool) if pool.scores is None else ~np.isnan(pool.scores).any(axis=1)
    answers[np.flatnonzero(~seen), pool.labels[~seen]] = 1
    if pool.scores is not None and seen.any():
        scores = pool.scores[seen]
        answers[np.flatnonzero(seen), : scores.shape[1]] = np.exp(log_probabilities(scores, np.ones(len(scores), bool)))
    return answers, int(seen.sum())
