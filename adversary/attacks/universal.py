"""One perturbation for all frames, learned before the first of them: at attack time it asks nothing and costs no time.

Moosavi-Dezfooli, Fawzi, Fawzi, Frossard, "Universal Adversarial Perturbations", CVPR 2017: the problem and, as
`inner: deepfool`, algorithm 1: each point that v leaves unfooled adds its own DeepFool step (Moosavi-Dezfooli, Fawzi, Frossard,
"DeepFool", CVPR 2016, algorithm 2; in linf with the dual norm of section 3.3), and v is projected. The default, `inner:
gradient`, is the stochastic gradient method for the same problem of Shafahi, Najibi, Xu, Dickerson, Davis, Goldstein,
"Universal Adversarial Training", AAAI 2020: steps up the mean of the points' losses, each of them clipped. It fools more, in
less time.

Departures: gradients are a surrogate's, points and answers were recorded. The loss is clipped at a multiple of log(classes),
and the step falls to zero. After each pass v is measured on the points as they arrive, and the best v is kept. v is learned in
units of eps, and takes each frame's own. A targeted v lowers the loss of the target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import About, Case, Pool, Search
from adversary.attacks.surrogate import Differentiable, SurrogateTraining
from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError
from splitcore.latent import F32
from splitcore.threat import BALLS, Ball, Feedback, Norm

TINY = np.float32(1e-30)
DEEPFOOL_STEPS = 10
AT_ONCE = 256
"""points that are measured in one stack"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Universal:
    """One v for every frame."""

    feedback: ClassVar[Feedback] = "none"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    kind: Literal["universal"] = "universal"
    inner: Literal["gradient", "deepfool"] = "gradient"
    passes: Annotated[int, Field(ge=1, le=1000)] = 20
    """over all points, at most; ours"""
    fooled: Annotated[float, Field(gt=0, le=1)] | None = None
    """1 - δ: the fooling rate on the surrogate that is enough. None: all passes; the paper stops at 0.8"""
    batch: Annotated[int, Field(ge=1)] = 64
    """points of a gradient step"""
    step: Annotated[float, Field(gt=0)] = 0.2
    """of the first gradient step, in units of eps; ours"""
    clip: Annotated[float, Field(gt=0)] = 4.0
    """β in units of log(classes), the loss of a guess: a point with a higher one pushes no more; ours. At 1 the points that are
    fooled let those that are not push v back"""
    overshoot: Annotated[float, Field(ge=0)] = 0.02
    """η of DeepFool, the paper's"""
    surrogate: SurrogateTraining = Field(default_factory=SurrogateTraining)

    def learn_from(self, pool: Pool, about: About) -> TaughtUniversal:
        net, said = self.surrogate.trained(pool, about)
        return self.over(pool.points, net, about, said)

    def over(self, points: F32, net: Differentiable, about: About, said: dict[str, Any] | None = None) -> TaughtUniversal:
        """v over points [n, *shape], by the gradients of any `net`; `said` is what there was to say of that."""
        lesson = _Lesson(self, points, net, about)
        v, rate, passes = lesson.best()
        return TaughtUniversal(v / np.float32(about.eps), {**(said or {}), "fooled_on_surrogate": rate, "passes": passes})

    def perturb(self, z: F32, case: Case) -> Search:
        yield from ()
        raise ScenarioError("attack universal has learned nothing: call `learn_from` with a pool first")


@plain_dataclass(frozen=True)
class TaughtUniversal:
    """The perturbation."""

    feedback: ClassVar[Feedback] = Universal.feedback
    norms: ClassVar[tuple[Norm, ...]] = Universal.norms

    v: F32
    """[*shape], in units of eps"""
    learned: dict[str, Any] = field(default_factory=dict)
    kind: str = "universal"

    def perturb(self, z: F32, case: Case) -> Search:
        yield from ()
        x: F32 = case.ball.project((z + np.float32(case.ball.eps) * self.v)[None])[0]
        return x


class _Lesson:
    """The search for v over points [n, *shape]."""

    def __init__(self, settings: Universal, points: F32, net: Differentiable, about: About) -> None:
        self.settings, self.points, self.net, self.about = settings, points, net, about
        zero = np.zeros(points.shape[1:], np.float32)
        none = np.full(1, np.inf, np.float32)
        self.ball: Ball = BALLS[about.norm](zero, about.eps, -none, none)
        """of v"""
        self.rng = np.random.default_rng([about.seed, len(points), 1])
        self.beta = settings.clip * math.log(max(2, net.logits(points[:1]).shape[1]))
        self.own = self.labels(points)
        """[n]: k(x), what the net says of the points themselves"""

    def labels(self, points: F32) -> NDArray[np.int64]:
        parts = [self.net.logits(points[at : at + AT_ONCE]) for at in range(0, len(points), AT_ONCE)]
        labels: NDArray[np.int64] = np.concatenate(parts).argmax(axis=1)
        return labels

    def arrived(self, points: F32, v: F32) -> F32:
        """Points [k, *shape] under v [*shape], as they reach the tail."""
        return self.about.snap(np.clip(points + v, self.about.lo, self.about.hi))

    def fooled(self, v: F32) -> float:
        """The fooling rate (eq. 1): of the points that are not the target already, where there is one."""
        said = np.concatenate(
            [self.labels(self.arrived(self.points[at : at + AT_ONCE], v)) for at in range(0, len(self.points), AT_ONCE)]
        )
        if self.about.target is None:
            return float((said != self.own).mean())
        others = self.own != self.about.target
        return float((said[others] == self.about.target).mean()) if others.any() else 1.0

    def best(self) -> tuple[F32, float, int]:
        """(v [*shape], its fooling rate, passes made)."""
        v = found = np.zeros(self.points.shape[1:], np.float32)
        rate, enough = -1.0, self.settings.fooled or math.inf
        made = 0
        while made < self.settings.passes and rate < enough:
            order = self.rng.permutation(len(self.points))
            v = self.up(v, order, made) if self.settings.inner == "gradient" else self.gather(v, order)
            made += 1
            now = self.fooled(v)
            if now >= rate:
                found, rate = v, now
        return found, rate, made

    def up(self, v: F32, order: NDArray[np.int64], made: int) -> F32:
        """One pass of gradient steps over the mean of min(loss, β)."""
        about, passes, batch = self.about, self.settings.passes, self.settings.batch
        steps = -(-len(order) // batch)
        for number, at in enumerate(range(0, len(order), batch)):
            rows = order[at : at + batch]
            labels = self.own[rows] if about.target is None else np.full(len(rows), about.target)
            loss, gradient = self.net.loss_gradient(np.clip(self.points[rows] + v, about.lo, about.hi), labels)
            if about.target is None:
                gradient = gradient * (loss < self.beta).reshape(-1, *([1] * v.ndim))
            g = gradient.sum(axis=0) * (1 if about.target is None else -1)
            left = 1 - (made * steps + number) / (passes * steps)
            ahead = np.sign(g) if about.norm == "linf" else g / np.maximum(np.linalg.norm(g), TINY)
            v = self.ball.project((v + np.float32(self.settings.step * about.eps * left) * ahead)[None])[0]
        return v

    def gather(self, v: F32, order: NDArray[np.int64]) -> F32:
        """One pass of algorithm 1: the points that v leaves as they were push it, one after the other."""
        for row in order:
            x = np.clip(self.points[row] + v, self.about.lo, self.about.hi)
            wanted = self.about.target
            said = int(self.net.logits(x[None])[0].argmax())
            if (said == self.own[row]) if wanted is None else (said != wanted):
                v = self.ball.project((v + self.deepfool(x))[None])[0]
        return v

    def deepfool(self, x: F32) -> F32:
        """The least r [*shape] that changes what the net says of x [*shape], on its linearisation, with overshoot."""
        r = np.zeros_like(x)
        beyond = np.float32(1 + self.settings.overshoot)
        own = -1
        for _ in range(DEEPFOOL_STEPS):
            f, gradients = self.net.jacobian(x + beyond * r)
            now = int(f.argmax())
            own = now if own < 0 else own
            if now != own if self.about.target is None else now == self.about.target:
                break
            w = (gradients - gradients[own]).reshape(len(f), -1)
            dual = np.abs(w).sum(axis=1) if self.about.norm == "linf" else np.linalg.norm(w, axis=1)
            distance = np.abs(f - f[own]) / np.maximum(dual, TINY)
            distance[own] = np.inf
            nearest = int(distance.argmin()) if self.about.target is None else self.about.target
            away = np.sign(w[nearest]) if self.about.norm == "linf" else w[nearest] / np.maximum(dual[nearest], TINY)
            r = r + (np.float32(distance[nearest] + 1e-4) * away).reshape(x.shape)
        step: F32 = beyond * r
        return step
