"""EVO: a (1+1) evolution strategy with a diagonal covariance, towards the clean point and along the boundary.

Dong, Su, Wu, Li, Liu, Zhang, Zhu, "Efficient Decision-based Black-box Adversarial Attacks on Face Recognition", CVPR 2019,
algorithm 1, equations 4 and 5; the rates are the paper's.

Departures. A mutant is put at the radius that μ alone would bring it to, so that every one that is adversarial is nearer, too.
The paper's σ is 0.01 of the distance, which with its 303 chosen coordinates of a 45x45x3 map, stretched to 112x112, moves a
mutant by about 0.3 of the distance; latents have from 20 to 20,000 coordinates, so here it is that length which is set, and
each chosen coordinate moves by a quantiser's step at least. The map is 2.5 times coarser than the latent's, as the paper's is,
but has four places a side where the latent has. The first adversarial point is brought to the boundary first. On a quantiser's
grid the walk goes over the points as they were asked: over those that arrived, its small steps would round to none. Where
round trips are dear several mutants are asked together.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search
from adversary.attacks.boundary import find_adversarial, to_boundary
from adversary.attacks.coarse import gain, plane, side, stretch
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, Norm, norms, per_row

WINDOW = 30
"""trials after which μ is adapted; the authors' number"""
MU = (1e-5, 0.5)
"""where μ stays: below, float32 does not tell the distances apart"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EVO:
    """Mutate, keep what is adversarial and nearer, and learn which coordinates help."""

    feedback: ClassVar[Feedback] = "label"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    kind: Literal["evo"] = "evo"
    mu: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """μ: first step towards the clean point, as a fraction of the distance"""
    length: Annotated[float, Field(gt=0)] = 0.2
    """of a mutation, root mean square, as a fraction of the distance: σ·√k once it is stretched"""
    path_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """c_c; the paper's"""
    covariance_rate: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """c_cov; the paper's"""
    chosen: Annotated[float, Field(gt=0, le=1)] = 0.05
    """k/m: share of the coordinates that one mutation changes; the paper's 1/20"""
    reduction: Annotated[float, Field(ge=1)] = 2.5
    """how much shorter the sides of the map are that mutations are drawn on; the paper's 112/45"""
    smallest: Annotated[int, Field(ge=1)] = 4
    """places a side that the map keeps in any case"""

    def perturb(self, z: F32, case: Case) -> Search:
        rng = case.rng
        x = yield from find_adversarial(z, case)
        if x is None:
            return None
        x = yield from to_boundary(z, x, case, theta=0.01)
        C, H, W = plane(z.shape)
        h, w = side(H, 1 / self.reduction, self.smallest), side(W, 1 / self.reduction, self.smallest)
        m = C * h * w
        k = max(1, round(self.chosen * m))
        grown = gain(H, h) * gain(W, w)
        variances, path = np.ones(m, np.float32), np.zeros(m, np.float32)
        weights = np.cumsum(variances, dtype=np.float64)
        mu, tried, won = self.mu, 0, 0
        offset = (x - z).reshape(C, H, W)
        distance = float(np.linalg.norm(offset))
        for _ in range(case.budget):
            sigma = max(self.length * distance / (math.sqrt(k) * grown), case.space.probe)
            v = np.zeros((case.sections - 1, m), np.float32)
            for each in v:
                at = choose(rng, weights, k)
                each[at] = rng.standard_normal(len(at), np.float32) * np.sqrt(variances[at])
            ahead = np.float32(sigma) * stretch(v.reshape(-1, C, h, w), H, W)
            ahead += np.float32(1 - mu) * offset
            ahead *= per_row(np.divide(np.float32((1 - mu) * distance), np.maximum(norms(ahead), np.float32(1e-30))), ahead)
            mutants = case.ball.boxed(z + ahead.reshape(-1, *z.shape))
            answers = yield Ask("walk", mutants)
            tried += int(np.count_nonzero(answers.answered))
            if answers.adversarial.any():
                won += int(np.count_nonzero(answers.adversarial))
                first = answers.adversarial.argmax()
                offset = (mutants[first] - z).reshape(C, H, W)
                distance = math.sqrt(np.vdot(offset, offset))
                path, variances = self.evolved(path, variances, v[first])
                weights = np.cumsum(variances, dtype=np.float64)
            if tried >= WINDOW:
                mu = adapted(mu, won / tried)
                tried, won = 0, 0
        return None

    def evolved(self, path: F32, variances: F32, v: F32) -> tuple[F32, F32]:
        """(p_c, the diagonal of C), [m] each, after the mutation v [m] in units of σ was kept (eqs. 4 and 5)."""
        path = np.float32(1 - self.path_rate) * path
        path += np.float32(math.sqrt(self.path_rate * (2 - self.path_rate))) * v
        variances = np.float32(1 - self.covariance_rate) * variances
        variances += np.float32(self.covariance_rate) * path * path
        return path, variances


def adapted(mu: float, success: float) -> float:
    """The rule of one success in five: μ·exp(success - 1/5)."""
    return min(max(mu * math.exp(success - 0.2), MU[0]), MU[1])


def choose(rng: np.random.Generator, weights: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Up to k different indices drawn in proportion to what `weights` [m], a running sum, grows by at each.

    Drawing with replacement and leaving out what came before is drawing without. Twice k draws give k different ones but where
    few weigh nearly all.
    """
    drawn = weights.searchsorted(rng.random(2 * k) * weights[-1], side="right")
    return np.fromiter(dict.fromkeys(drawn.tolist()), np.int64)[:k]
