"""NES: its estimate beside the true gradient and ART's wrapper, the whole attack beside a plain twin and torchattacks' SPSA.

foolbox's estimator adds up the losses of a batch and is no comparison.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from arena import Arena
from compare import difference
from conversation import case_of, converse
from numpy.typing import NDArray

from adversary.attacks.estimate import Objective
from adversary.attacks.nes import NES
from splitcore.latent import F32
from splitcore.threat import Norm

pytestmark = pytest.mark.parity

N, ROWS = 40, 50
SOFTER = np.float32(4)
"""what logits are divided by: as the tail is, ART's float32 probabilities of the class are 1"""
EPS: dict[Norm, float] = {"linf": 0.07, "l2": 0.6}


def true_gradients(arena: Arena) -> F32:
    """[N, *shape]: of the cross-entropy, by autograd."""
    x = torch.from_numpy(arena.latents[:N].copy()).requires_grad_()
    logits = arena.model(x) / SOFTER.item()
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(arena.labels[:N].copy()), reduction="sum").backward()
    assert x.grad is not None
    gradients: F32 = x.grad.numpy()
    return gradients


def cosines(a: F32, b: F32) -> NDArray[Any]:
    a, b = a.reshape(N, -1), b.reshape(N, -1)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def by_art(arena: Arena) -> F32:
    """ART's estimate with as many rows."""
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork
    from art.estimators.classification.query_efficient_bb import QueryEfficientGradientEstimationClassifier as Theirs

    def probabilities(x: F32) -> F32:
        p: F32 = torch.softmax(torch.from_numpy(arena.scores(x) / SOFTER), 1).numpy()
        return p

    np.random.seed(0)
    shape = arena.latents.shape[1:]
    black_box = BlackBoxClassifierNeuralNetwork(probabilities, shape, 10, clip_values=(0.0, 1.0), channels_first=True)
    theirs = Theirs(black_box, num_basis=ROWS // 2, sigma=0.01)
    # one at a time, as it draws once for a whole batch
    found = [theirs.loss_gradient(arena.latents[i : i + 1], np.eye(10)[arena.labels[i : i + 1]])[0] for i in range(N)]
    return np.stack(found).astype(np.float32)


def by_plain_code(arena: Arena) -> F32:
    """Algorithm 1 of the paper, in double precision."""
    rng = np.random.default_rng(0)
    found = []
    for z, y in zip(arena.latents[:N], arena.labels[:N], strict=True):
        u = rng.standard_normal((ROWS // 2, *z.shape))
        points = np.concatenate([z + 0.01 * u, z - 0.01 * u]).astype(np.float32)
        loss = -torch.log_softmax(torch.from_numpy(arena.scores(points) / SOFTER).double(), 1)[:, y].numpy()
        found.append(np.tensordot(loss[: ROWS // 2] - loss[ROWS // 2 :], u, axes=1) / (ROWS * 0.01))
    return np.stack(found).astype(np.float32)


def by_us(arena: Arena) -> F32:
    """Where the first step in l2 goes: up the cross-entropy."""
    found = []
    for number in range(N):
        z, y = arena.latents[number], int(arena.labels[number])
        eps = 0.01 * np.sqrt(z.size) / 0.02  # σ is 0.01 then
        attack = NES(samples=ROWS, momentum=0, learning_rate=0.001, objective="cross-entropy")
        case = case_of(z, "l2", float(eps), budget=ROWS + 1, label=y, seed=number)
        first, second = converse(attack, case, lambda x: arena.scores(x) / SOFTER)
        assert len(first.points) == ROWS
        found.append(second.points[0] - z)
    return np.stack(found)


def test_the_estimate_is_as_near_to_the_true_gradient_as_arts_and_as_a_plain_one(arena: Arena) -> None:
    true = true_gradients(arena)
    ours, art, plain = cosines(by_us(arena), true), cosines(by_art(arena), true), cosines(by_plain_code(arena), true)
    d, pairs = arena.latents[0].size, ROWS // 2
    expected = np.sqrt(pairs / (pairs + d + 1))
    print(f"{ROWS} rows: cosine {ours.mean():.3f}, ART's {art.mean():.3f}, plain {plain.mean():.3f}, expected {expected:.3f}")
    picks = np.random.default_rng(0).integers(0, N, (2000, N))
    for other in (art, plain):
        assert np.percentile(ours[picks].mean(axis=1) - other[picks].mean(axis=1), 97.5) > 0
    assert ours.mean() == pytest.approx(expected, abs=4 * ours.std() / np.sqrt(N))


def plain(arena: Arena, norm: Norm, eps: float, budget: int, objective: Objective) -> NDArray[np.bool_]:
    """The attack as the authors run it, in double precision, its check counted: which of the first N fall."""
    fell = np.zeros(N, bool)
    for number in range(N):
        rng = np.random.default_rng([7, number])
        z, y = arena.latents[number].astype(np.float64), arena.labels[number]
        sigma = 0.02 * eps / (1 if norm == "linf" else np.sqrt(z.size))

        def ask(x: NDArray[Any], y: int = int(y)) -> tuple[NDArray[Any], NDArray[Any]]:
            """What is lowered, and which are adversarial."""
            logits = arena.scores(x.astype(np.float32)).astype(np.float64)
            margin = logits[:, y] - np.delete(logits, y, axis=1).max(axis=1)
            log_p = torch.log_softmax(torch.from_numpy(logits), 1).numpy()[:, y]
            return (margin if objective == "margin" else log_p), margin < 0

        x, m, rate, last = z.copy(), np.zeros(z.shape), 0.2, list[float]()
        for _ in range((budget - 1) // (ROWS + 1)):
            u = rng.standard_normal((ROWS // 2, *z.shape))
            u = np.concatenate([u, -u])
            points = np.clip(x + sigma * u, 0, 1)
            loss, adversarial = ask(points)
            inside = np.abs(points - z).reshape(ROWS, -1)
            length = inside.max(axis=1) if norm == "linf" else np.linalg.norm(inside, axis=1)
            m = 0.9 * m + 0.1 * np.tensordot(loss, u, axes=1) / (ROWS * sigma)
            last = [*last, float(loss.mean())][-6:]
            if len(last) == 6 and last[-1] >= last[0]:
                rate, last = max(rate / 2, 0.001), []
            if norm == "linf":
                x = np.clip(np.clip(x - rate * eps * np.sign(m), z - eps, z + eps), 0, 1)
            else:
                delta = x - rate * eps * m / np.linalg.norm(m) - z
                x = np.clip(z + delta * min(1, eps / np.linalg.norm(delta)), 0, 1)
            if ask(x[None])[1][0] or (adversarial & (length <= eps)).any():
                fell[number] = True
                break
    return fell


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("objective", ["margin", "cross-entropy"])
def test_as_many_fall_as_to_a_plain_twin(arena: Arena, norm: Norm, objective: Objective) -> None:
    budget = 1021
    outcomes = arena.ours(NES(objective=objective), norm=norm, eps=EPS[norm], budget=budget, n=N)
    ours = np.array([outcome.success for outcome in outcomes])
    theirs = plain(arena, norm, EPS[norm], budget, objective)
    low, high = difference(ours, theirs)
    print(f"{norm} {objective}: {ours.mean():.2f} fell, of the twin's {theirs.mean():.2f}: {low:+.2f} to {high:+.2f}")
    assert 0.3 < theirs.mean() < 0.95
    assert high >= 0
    assert ours.mean() >= theirs.mean() - 0.1


def test_as_many_fall_as_to_torchattacks_spsa(arena: Arena) -> None:
    """Another estimator, the same idea, ADAM's steps: at the same rows."""
    from torchattacks import SPSA

    eps, rounds = EPS["linf"], 20
    torch.manual_seed(0)
    theirs_attack = SPSA(arena.model, eps=eps, delta=0.01, lr=0.2 * eps, nb_iter=rounds, nb_sample=ROWS // 2, max_batch_size=64)
    found = theirs_attack(torch.from_numpy(arena.latents[:N].copy()), torch.from_numpy(arena.labels[:N].copy())).numpy()
    rows = arena.model.rows // N
    assert rows == pytest.approx(ROWS * rounds, rel=0.1)
    theirs = arena.wrong(found)
    outcomes = arena.ours(NES(), norm="linf", eps=eps, budget=rows, n=N)
    ours = np.array([outcome.success for outcome in outcomes])
    low, high = difference(ours, theirs)
    print(f"{rows} rows: {ours.mean():.2f} fell, of SPSA's {theirs.mean():.2f}: {low:+.2f} to {high:+.2f}")
    assert high >= 0
