"""A tail whose gradients have a closed form: linear."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adversary.attacks import Case
from adversary.attacks.base import About, Attack
from splitcore.latent import F32
from splitcore.threat import BALLS, Norm

NONE = np.full(1, np.inf, np.float32)


class LinearNet:
    """logits = z·W + b, for W [d, classes] and b [classes]."""

    def __init__(self, W: F32, b: F32) -> None:
        self.W, self.b = W, b

    def logits(self, points: F32) -> F32:
        return points.reshape(len(points), -1) @ self.W + self.b

    def loss_gradient(self, points: F32, labels: NDArray[np.int64]) -> tuple[F32, F32]:
        logits = self.logits(points).astype(np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        each = np.arange(len(points))
        loss = -np.log(p[each, labels])
        p[each, labels] -= 1
        return loss.astype(np.float32), (p @ self.W.T).astype(np.float32).reshape(points.shape)

    def jacobian(self, point: F32) -> tuple[F32, F32]:
        return self.logits(point[None])[0], self.W.T.reshape(-1, *point.shape)


def two_classes(shape: tuple[int, ...], seed: int = 0, bias: float = 0.0) -> tuple[LinearNet, F32]:
    """The net, and w [*shape]: class 1 where w·z + bias > 0, with ‖w‖ = 1."""
    w = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    w /= np.float32(np.linalg.norm(w))
    W = np.stack([-w.ravel(), w.ravel()], axis=1) / np.float32(2)
    return LinearNet(W, np.array([-bias / 2, bias / 2], np.float32)), w


def about(norm: Norm, eps: float, *, target: int | None = None, seed: int = 0) -> About:
    """Of a campaign on two classes without a codec or a box."""
    return About(norm=norm, eps=eps, lo=-NONE, hi=NONE, snap=lambda points: points, classes=2, target=target, seed=seed)


def sent(
    attack: Attack, z: F32, norm: Norm, eps: float, *, target: int | None = None, seed: int = 0, bound: float = np.inf
) -> F32:
    """What a blind attack sends on in place of z [*shape], which it says without a question."""
    limit = np.full(1, bound, np.float32)
    ball = BALLS[norm](z, eps, -limit, limit)
    case = Case(ball=ball, space=None, budget=1, rng=np.random.default_rng(seed), target=target)  # type: ignore[arg-type]
    try:
        next(attack.perturb(z, case))
    except StopIteration as stop:
        point: F32 = stop.value
        assert point.dtype == np.float32
        assert ball.contains(point[None])[0]
        return point
    raise AssertionError("it asked")
