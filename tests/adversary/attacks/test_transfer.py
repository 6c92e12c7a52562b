"""Gradient steps on a surrogate: the papers' recurrences, closed forms on flat boundaries, and what transfers by wire."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from gradients import about, sent, two_classes
from numpy.typing import NDArray
from tails import LinearTail, identity, recorded
from traffic import digits

from adversary.attacks import Pool
from adversary.attacks.noise import Noise
from adversary.attacks.surrogate import SurrogateTraining, probabilities
from adversary.attacks.transfer import TaughtTransfer, Transfer
from splitcore.latent import F32
from splitcore.threat import Norm, ThreatModel

SHAPE = (4, 3, 5)
QUICK = SurrogateTraining(epochs=10)
PGD = {"momentum": 0.0, "random_start": True, "step": 0.25}


def z(seed: int = 1) -> F32:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


class Scripted:
    """Says class 0, and gives gradients one after the other."""

    def __init__(self, *gradients: F32) -> None:
        self.gradients = list(gradients)
        self.asked: list[F32] = []

    def logits(self, points: F32) -> F32:
        return np.tile(np.float32([1, 0]), (len(points), 1))

    def loss_gradient(self, points: F32, labels: NDArray[np.int64]) -> tuple[F32, F32]:
        assert labels.tolist() == [0]
        self.asked.append(points[0])
        return np.ones(1, np.float32), self.gradients.pop(0)[None]

    def jacobian(self, point: F32) -> tuple[F32, F32]:
        raise NotImplementedError


@pytest.mark.parametrize("settings", [{}, PGD], ids=["mi-fgsm", "pgd"])
def test_on_a_flat_surrogate_the_steps_end_at_eps_times_the_signs_of_the_weights(settings: dict[str, float]) -> None:
    net, w = two_classes(SHAPE)
    own = 1 if float((z() * w).sum()) > 0 else -1
    found = sent(TaughtTransfer(Transfer(**settings), net), z(), "linf", 0.3)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, z() - own * np.float32(0.3) * np.sign(w), atol=1e-6)


def test_in_l2_they_end_at_eps_along_the_weights() -> None:
    net, w = two_classes(SHAPE)
    own = 1 if float((z() * w).sum()) > 0 else -1
    found = sent(TaughtTransfer(Transfer(), net), z(), "l2", 1.7)
    np.testing.assert_allclose(found, z() - own * np.float32(1.7) * w, atol=1e-5)


def test_a_target_is_approached_from_either_side() -> None:
    net, w = two_classes(SHAPE)
    for target in (0, 1):
        found = sent(TaughtTransfer(Transfer(), net), z(), "l2", 1.7, target=target)
        np.testing.assert_allclose(found, z() + (2 * target - 1) * np.float32(1.7) * w, atol=1e-5)


def test_the_momentum_is_the_papers_recurrence() -> None:
    """g ← μ·g + ∇/‖∇‖₁, x ← x + α·sign(g): the second gradient is as large again, and outweighed where μ·g says otherwise."""
    g1, g2 = z(2), 100 * z(3)
    net = Scripted(g1, g2)
    found = sent(TaughtTransfer(Transfer(steps=2, momentum=0.7), net), z(), "linf", 0.4)
    first = z() + np.float32(0.2) * np.sign(g1)
    np.testing.assert_allclose(net.asked[0], z())
    np.testing.assert_allclose(net.asked[1], first, atol=1e-6)
    g = 0.7 * g1 / np.abs(g1).sum() + g2 / np.abs(g2).sum()
    np.testing.assert_allclose(found, first + np.float32(0.2) * np.sign(g), atol=1e-6)


def test_in_l2_a_step_is_alpha_along_the_momentum() -> None:
    g1, g2 = z(2), 100 * z(3)
    found = sent(TaughtTransfer(Transfer(steps=2), Scripted(g1, g2)), z(), "l2", 0.4)
    g = g1 / np.abs(g1).sum()
    expected = z() + 0.2 * g / np.linalg.norm(g)
    g = g + g2 / np.abs(g2).sum()
    np.testing.assert_allclose(found, expected + 0.2 * g / np.linalg.norm(g), atol=1e-6)


def test_a_step_of_more_than_eps_is_brought_back_into_ball_and_box() -> None:
    found = sent(TaughtTransfer(Transfer(steps=1, step=5.0), Scripted(z(2))), np.clip(z(), -1, 1), "linf", 0.4, bound=1.0)
    np.testing.assert_allclose(found, np.clip(np.clip(z(), -1, 1) + 0.4 * np.sign(z(2)), -1, 1), atol=1e-6)


def test_a_random_start_is_the_frames_own() -> None:
    def start(seed: int) -> F32:
        net = Scripted(z(2))
        sent(TaughtTransfer(Transfer(steps=1, random_start=True), net), z(), "linf", 0.4, seed=seed)
        return net.asked[0]

    assert np.array_equal(start(0), start(0))
    assert 0 < np.abs(start(0) - start(1)).max() <= 0.8
    assert np.abs(start(0) - z()).max() <= 0.4 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_of_nothing_moves_nothing_and_is_no_nan(norm: Norm) -> None:
    net = Scripted(*[np.zeros(SHAPE, np.float32)] * 10)
    np.testing.assert_allclose(sent(TaughtTransfer(Transfer(), net), z(), norm, 0.4), z())


def test_scores_teach_as_probabilities_and_labels_as_certainties() -> None:
    scores = np.float32([[2, 0, 0], [np.nan] * 3, [0, 0, 5]])
    answers, soft = probabilities(Pool(np.zeros((3, 2), np.float32), np.array([0, 1, 2]), scores), about("linf", 1.0))
    e = np.exp(2)
    np.testing.assert_allclose(answers[0], [e / (e + 2), 1 / (e + 2), 1 / (e + 2)], rtol=1e-5)
    assert answers[1].tolist() == [0, 1, 0]
    assert soft == 2
    hard, none = probabilities(Pool(np.zeros((2, 2), np.float32), np.array([1, 3]), None), about("linf", 1.0, target=5))
    assert (hard.shape, none) == ((2, 6), 0)  # as many classes as anybody has named
    assert hard.argmax(axis=1).tolist() == [1, 3]


def test_a_surrogate_agrees_with_the_tail_that_it_was_trained_after(digits_artefact: Path) -> None:
    traffic = digits(digits_artefact)
    stock = traffic.stock(500)
    told = stock.about(ThreatModel(norm="linf", eps=0.5), 10, 0)
    theirs = traffic.scores(traffic.attacked).argmax(axis=1)
    for pool, soft in ((stock.pool, 500), (Pool(stock.pool.points, stock.pool.labels, None), 0)):
        net, said = QUICK.trained(pool, told)
        agreement = (net.logits(traffic.attacked).argmax(axis=1) == theirs).mean()
        assert agreement > 0.85
        assert said["agreement"] == pytest.approx(agreement, abs=0.12)
        assert said.items() >= {"rows_recorded": 500, "rows_with_scores": soft, "rows_asked": 0, "held_out": 50}.items()


@pytest.mark.long
@pytest.mark.parametrize(("norm", "eps", "codec"), [("linf", 0.8, "uniform8/channel"), ("l2", 0.5, "uniform4/channel")])
def test_what_fools_the_surrogate_fools_a_tail_that_was_never_asked(
    norm: Norm, eps: float, codec: str, digits_artefact: Path
) -> None:
    traffic = digits(digits_artefact, codec)
    threat = ThreatModel(norm=norm, eps=eps)
    stock = traffic.stock(500)
    fell = traffic.fell(Transfer(surrogate=QUICK).learn_from(stock.pool, stock.about(threat, 10, 0)), threat).mean()
    by_noise = traffic.fell(Noise(), threat).mean()
    assert fell > 0.2 > 0.1 > by_noise


def test_what_was_learned_travels_between_processes() -> None:
    stock = recorded(LinearTail(identity((8, 4, 4))), 40)
    taught = Transfer(surrogate=QUICK).learn_from(stock.pool, stock.about(ThreatModel(norm="linf", eps=0.3), 5, 0))
    point = stock.pool.points[3]
    again = pickle.loads(pickle.dumps(taught))
    assert again.learned == taught.learned
    assert np.array_equal(sent(again, point, "linf", 0.3), sent(taught, point, "linf", 0.3))
