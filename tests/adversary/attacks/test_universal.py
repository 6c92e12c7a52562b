"""One perturbation for all frames: closed forms on flat boundaries, and what it comes to by way of a surrogate."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gradients import about, sent, two_classes
from tails import LinearTail, clean_latents, identity, recorded, spec, wire_spaces
from traffic import digits

from adversary.attacks import Pool
from adversary.attacks.noise import Noise
from adversary.attacks.surrogate import SurrogateTraining
from adversary.attacks.universal import Universal
from adversary.session import Session
from splitcore.codec import fit
from splitcore.latent import F32
from splitcore.threat import Norm, ThreatModel

SHAPE = (4, 3, 5)
QUICK = SurrogateTraining(epochs=10)


def latents(n: int, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> F32:
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


@pytest.mark.parametrize("bias", [-0.5, 0.0, 0.5])
def test_in_linf_the_perturbation_of_a_two_class_linear_tail_is_eps_times_the_signs_of_its_weights(bias: float) -> None:
    net, w = two_classes(SHAPE, bias=bias)
    v = Universal().over(latents(150), net, about("linf", 0.2)).v
    side = np.sign(v.ravel()[0] * w.ravel()[0])
    np.testing.assert_array_equal(v, side * np.sign(w))
    if bias:
        assert side == -np.sign(bias)  # towards the class that fewer are in: so many more can change


@pytest.mark.parametrize("bias", [-0.5, 0.5])
def test_in_l2_it_is_eps_along_the_weights(bias: float) -> None:
    net, w = two_classes(SHAPE, bias=bias)
    v = Universal().over(latents(150), net, about("l2", 1.5)).v
    np.testing.assert_allclose(v, -np.sign(bias) * w, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfools_steps_add_up_along_the_same_direction(norm: Norm) -> None:
    """All points on one side: v grows until the nearer 80 % have crossed, and no farther than eps."""
    net, w = two_classes(SHAPE, bias=2.0)
    points = latents(150)
    points = points[net.logits(points).argmax(axis=1) == 1]
    direction = np.sign(w) if norm == "linf" else w
    margins = np.sort((points * w).sum(axis=(1, 2, 3)) + 2) / float((w * direction).sum())
    enough = margins[int(0.8 * len(margins))]
    taught = Universal(inner="deepfool", fooled=0.8).over(points, net, about(norm, 10.0))
    length = -taught.v * 10 / direction
    np.testing.assert_allclose(length, length.ravel()[0], rtol=1e-3)
    assert enough * 0.99 <= length.ravel()[0] <= margins[-1] * 1.03
    assert taught.learned["fooled_on_surrogate"] >= 0.8
    short = Universal(inner="deepfool").over(points, net, about(norm, float(margins[5])))
    np.testing.assert_allclose(-short.v, direction, atol=1e-3)


@pytest.mark.parametrize("inner", ["gradient", "deepfool"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_targeted_one_leads_to_the_target_and_no_other(norm: Norm, inner: str) -> None:
    for target in (0, 1):
        net, w = two_classes(SHAPE)
        taught = Universal(inner=inner, passes=3).over(latents(100), net, about(norm, 20.0, target=target))  # type: ignore[arg-type]
        assert taught.learned["fooled_on_surrogate"] == 1.0
        assert float((taught.v * w).sum()) * (2 * target - 1) > 0


def test_the_fooling_rate_that_it_claims_is_that_of_the_points_as_they_arrive() -> None:
    codec = fit("uniform4/tensor", spec((8, 4, 4)))
    tail = LinearTail(codec)
    stock = recorded(tail, 100)
    told = stock.about(ThreatModel(norm="linf", eps=1.3, eps_unit="codec_steps"), 5, 0)
    taught = Universal(surrogate=QUICK).learn_from(stock.pool, told)
    net, _ = QUICK.trained(stock.pool, told)
    arrived = codec.decode(codec.encode(np.clip(stock.pool.points + np.float32(told.eps) * taught.v, told.lo, told.hi)))
    before, after = (net.logits(points).argmax(axis=1) for points in (stock.pool.points, arrived))
    assert taught.learned["fooled_on_surrogate"] == pytest.approx((before != after).mean())


def test_a_frame_gets_it_at_its_own_radius_within_its_own_box() -> None:
    net, w = two_classes(SHAPE, bias=0.5)
    taught = Universal().over(latents(100), net, about("linf", 0.2))
    z = latents(1, seed=7)[0]
    np.testing.assert_allclose(sent(taught, z, "linf", 0.05), z - np.float32(0.05) * np.sign(w), atol=1e-6)
    z = np.clip(z, -0.5, 0.5)
    bounded = sent(taught, z, "linf", 0.3, bound=0.5)
    np.testing.assert_allclose(bounded, np.clip(z - np.float32(0.3) * np.sign(w), -0.5, 0.5), atol=1e-6)


def test_what_is_learned_is_a_function_of_seed_and_pool_alone_and_says_what_it_cost() -> None:
    stock = recorded(LinearTail(identity((8, 4, 4))), 60)
    told = [stock.about(ThreatModel(norm="l2", eps=0.5), 5, seed) for seed in (0, 0, 1)]
    first, again, other = (Universal(surrogate=QUICK).learn_from(stock.pool, each) for each in told)
    np.testing.assert_array_equal(first.v, again.v)
    assert first.learned == again.learned
    assert np.abs(first.v - other.v).max() > 0
    assert first.learned.items() >= {"rows_recorded": 60, "rows_with_scores": 60, "rows_asked": 0, "passes": 20}.items()
    assert np.array_equal(pickle.loads(pickle.dumps(first)).v, first.v)


@pytest.mark.long
@pytest.mark.parametrize(("norm", "eps", "codec"), [("linf", 1.2, "uniform4/channel"), ("l2", 1.0, "uniform8/channel")])
def test_through_a_surrogate_it_beats_noise_on_a_tail_that_was_never_asked(
    norm: Norm, eps: float, codec: str, digits_artefact: Path
) -> None:
    traffic = digits(digits_artefact, codec)
    threat = ThreatModel(norm=norm, eps=eps)
    stock = traffic.stock(500)
    fell = traffic.fell(Universal(surrogate=QUICK).learn_from(stock.pool, stock.about(threat, 10, 0)), threat).mean()
    by_noise = traffic.fell(Noise(), threat).mean()
    assert fell > by_noise + 0.2


def test_one_that_was_taught_nothing_says_so_and_lets_the_frame_go() -> None:
    codec = identity(SHAPE)
    [space] = wire_spaces(codec, clean_latents(codec, 1))
    session = Session("r/c/0", space, Universal(), ThreatModel(norm="linf", eps=0.5), rng=np.random.default_rng(0))
    with pytest.raises(Exception, match="has learned nothing: call `learn_from` with a pool first"):
        session.begin()


def test_one_recorded_row_is_enough_to_learn_something() -> None:
    pool = Pool(latents(1), np.array([1]), None)
    taught = Universal(surrogate=QUICK).learn_from(pool, about("linf", 0.5))
    assert taught.learned["agreement"] is None
    assert np.isfinite(taught.v).all()


def test_the_adversary_needs_torch_only_where_an_attack_learns() -> None:
    program = """
import sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None
import numpy as np
import adversary.__main__, adversary.node, adversary.crew, testbed.scenario
from adversary.attacks import ATTACKS, Pool
from adversary.attacks.base import About
from adversary.attacks.universal import Universal
from splitcore.errors import ScenarioError
for attack in ATTACKS:
    attack()
one = np.ones(1, np.float32)
try:
    Universal().learn_from(Pool(np.zeros((4, 2), np.float32), np.zeros(4, np.int64)),
                      About(norm="linf", eps=1.0, lo=-one, hi=one, snap=lambda x: x, classes=2))
except ScenarioError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "a surrogate needs torch where the adversary runs" in done.stdout
