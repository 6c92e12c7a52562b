"""Surrogates: any shape, gradients that are gradients, the same net from the same lesson."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from splitcore.latent import F32
from splitcore.nn.surrogate import Surrogate, fit

SETTINGS: dict[str, Any] = {
    "members": 2, "width": 8, "epochs": 3, "batch": 16, "lr": 0.01, "weight_decay": 0.0, "noise": 0.5, "seed": 0,
}  # fmt: skip
SHAPES = [
    (8, 4, 4),
    (3, 7, 14),
    (3, 14, 7),
    (1, 1, 1),
    (64, 1, 1),
    (256, 2, 3),
    (16, 32, 32),
    (2, 1, 40),
    (40,),
    (6, 10),
    (2, 3, 4, 5),
]


def lesson(shape: tuple[int, ...], n: int = 24, classes: int = 3) -> tuple[F32, F32]:
    rng = np.random.default_rng(0)
    answers = rng.random((n, classes)).astype(np.float32)
    return rng.standard_normal((n, *shape)).astype(np.float32), answers / answers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_latents_of_any_shape_have_logits_and_gradients_of_that_shape(shape: tuple[int, ...]) -> None:
    points, answers = lesson(shape)
    points.flags.writeable = False  # as codecs give them
    net = fit(points, answers, **SETTINGS)
    assert net.logits(points).shape == (24, 3)
    loss, gradient = net.loss_gradient(points, np.zeros(24, np.int64))
    assert (loss.shape, gradient.shape) == ((24,), points.shape)
    logits, jacobian = net.jacobian(points[5])
    assert jacobian.shape == (3, *shape)
    np.testing.assert_allclose(logits, net.logits(points)[5], rtol=1e-4, atol=1e-5)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in (loss, gradient, logits, jacobian))


def test_a_gradient_is_that_of_the_loss_and_a_jacobian_that_of_the_logits() -> None:
    points, answers = lesson((4, 3, 3))
    net = fit(points, answers, **SETTINGS)
    labels = np.arange(24) % 3
    loss, gradient = net.loss_gradient(points, labels)
    logits = net.logits(points).astype(np.float64)
    np.testing.assert_allclose(loss, np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(24), labels], rtol=1e-4)
    direction = np.random.default_rng(5).standard_normal(points.shape).astype(np.float32)
    h = np.float32(1e-2)
    ahead, behind = (net.loss_gradient(points + side * h * direction, labels)[0] for side in (1, -1))
    slope = (gradient * direction).sum(axis=(1, 2, 3))
    np.testing.assert_allclose((ahead - behind) / (2 * h), slope, rtol=0.05, atol=0.02)
    _, jacobian = net.jacobian(points[0])
    steps = [(net.logits((points[0] + side * h * direction[0])[None])[0]) for side in (1, -1)]
    np.testing.assert_allclose(
        (steps[0] - steps[1]) / (2 * h), (jacobian * direction[0]).sum(axis=(1, 2, 3)), rtol=0.05, atol=0.02
    )


def test_the_same_lesson_gives_the_same_net_whatever_was_drawn_before() -> None:
    points, answers = lesson((4, 3, 3))
    first = fit(points, answers, **SETTINGS).logits(points)
    torch.rand(3)
    state = torch.random.get_rng_state()
    assert np.array_equal(fit(points, answers, **SETTINGS).logits(points), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not np.array_equal(fit(points, answers, **{**SETTINGS, "seed": 1}).logits(points), first)


@pytest.mark.parametrize("n", [1, 2])
def test_a_recording_of_one_latent_and_constant_channels_are_no_division_by_zero(n: int) -> None:
    points, answers = np.ones((n, 4, 3, 3), np.float32), lesson((4, 3, 3), n)[1]
    assert np.isfinite(fit(points, answers, **SETTINGS).logits(points)).all()
    points = np.zeros((n, 7), np.float32)
    assert np.isfinite(fit(points, answers, **SETTINGS).logits(points)).all()


def test_the_logits_of_several_members_are_their_mean() -> None:
    points, answers = lesson((4, 3, 3))
    net = fit(points, answers, **SETTINGS)
    members = [Surrogate(member).logits(points) for member in net.net.nets]  # type: ignore[union-attr]
    assert len(members) == 2
    np.testing.assert_allclose(net.logits(points), (members[0] + members[1]) / 2, atol=1e-6)
    assert np.abs(members[0] - members[1]).max() > 1e-3


def test_it_learns_what_a_line_divides() -> None:
    points, _ = lesson((5, 2, 2), 600)
    w = np.random.default_rng(8).standard_normal(points.shape[1:]).astype(np.float32)
    labels = ((points * w).sum(axis=(1, 2, 3)) > 0).astype(np.int64)
    net = fit(points[:500], np.eye(2, dtype=np.float32)[labels[:500]], **{**SETTINGS, "width": 32, "epochs": 20, "noise": 0.0})
    assert (net.logits(points[500:]).argmax(axis=1) == labels[500:]).mean() > 0.9


@pytest.mark.gpu
def test_on_a_gpu_it_learns_the_same_and_gives_arrays() -> None:
    points, answers = lesson((8, 4, 4), 64)
    nets = [fit(points, answers, **SETTINGS, device="cuda") for _ in range(2)]
    assert np.array_equal(nets[0].logits(points), nets[1].logits(points))
    on_cpu = fit(points, answers, **SETTINGS, device="cpu")
    np.testing.assert_allclose(nets[0].logits(points), on_cpu.logits(points), rtol=1e-2, atol=1e-2)
    assert nets[0].loss_gradient(points, np.zeros(64, np.int64))[1].shape == points.shape
