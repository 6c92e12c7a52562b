"""Balls and budgets against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from splitcore.codec import fit
from splitcore.errors import ScenarioError
from splitcore.latent import LatentSpec
from splitcore.threat import BALLS, L2Ball, LinfBall, Norm, Scale, ThreatModel, absolute_eps

NONE = np.full(1, np.inf, np.float32)
SCALE = Scale(range=8.0, std=0.5, step=0.03, elements=100)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(seed=st.integers(0, 1000), eps=st.floats(1e-3, 100))
def test_a_projection_is_in_the_ball_and_moves_nothing_that_was_in_it(norm: Norm, seed: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((3, 4, 5)).astype(np.float32) * 3
    ball = BALLS[norm](centre, eps, -NONE, NONE)
    points = centre + rng.standard_normal((7, 3, 4, 5)).astype(np.float32) * np.float32(10 * eps)
    projected = ball.project(points)
    assert ball.contains(projected).all()
    inside = ball.sample(rng, 7)
    assert ball.contains(inside).all()
    assert np.allclose(ball.project(inside), inside, atol=1e-4 * (1 + eps))


def test_the_l2_projection_is_the_nearest_point() -> None:
    ball = L2Ball(np.zeros((2,), np.float32), 5.0, -NONE, NONE)
    assert ball.project(np.array([[6.0, 8.0]], np.float32)).tolist() == [[3.0, 4.0]]


def test_the_box_holds_after_the_ball() -> None:
    ball = LinfBall(np.zeros((2,), np.float32), 5.0, np.zeros(1, np.float32), np.full(1, 2, np.float32))
    assert ball.project(np.array([[-3.0, 9.0]], np.float32)).tolist() == [[0.0, 2.0]]


def test_on_a_grid_the_linf_projection_stops_at_its_last_value_inside() -> None:
    ball = LinfBall(np.zeros((2,), np.float32), 1.0, -NONE, NONE, np.array([0.3, 0.5], np.float32))
    assert ball.project(np.array([[9.0, 9.0]], np.float32))[0] == pytest.approx([0.9, 1.0])


def test_samples_fill_the_balls_uniformly() -> None:
    """In linf the mean of |x| is eps/2; in l2 the mean radius is eps·d/(d+1)."""
    rng = np.random.default_rng(0)
    cube = LinfBall(np.zeros((9,), np.float32), 2.0, -NONE, NONE).sample(rng, 20_000)
    assert np.abs(cube).mean() == pytest.approx(1.0, abs=0.01)
    sphere = L2Ball(np.zeros((9,), np.float32), 2.0, -NONE, NONE)
    assert sphere.distance(sphere.sample(rng, 20_000)).mean() == pytest.approx(2 * 9 / 10, abs=0.01)


@pytest.mark.parametrize(
    ("unit", "norm", "radius"),
    [
        ("absolute", "linf", 0.2), ("fraction_of_range", "linf", 1.6), ("std", "linf", 0.1), ("codec_steps", "linf", 0.006),
        ("absolute", "l2", 0.2), ("fraction_of_range", "l2", 16.0), ("std", "l2", 1.0), ("codec_steps", "l2", 0.06),
        ("mse", "l2", math.sqrt(20)),
    ],
)  # fmt: skip
def test_eps_in_every_unit(unit: str, norm: str, radius: float) -> None:
    threat = ThreatModel(norm=norm, eps=0.2, eps_unit=unit)  # type: ignore[arg-type]
    assert absolute_eps(threat, SCALE) == pytest.approx(radius)


def test_a_unit_without_meaning_is_refused() -> None:
    with pytest.raises(ScenarioError, match="mse is a mean squared error"):
        absolute_eps(ThreatModel(norm="linf", eps_unit="mse"), SCALE)
    with pytest.raises(ScenarioError, match="codec_steps has no meaning"):
        absolute_eps(ThreatModel(eps_unit="codec_steps"), Scale(8.0, 0.5, 0.0, 100))


@pytest.mark.parametrize(
    "wrong", [{"eps": 0}, {"eps": math.inf}, {"budget": 0}, {"norm": "l1"}, {"deadline_ms": 0}, {"epsilon": 1}]
)
def test_a_threat_model_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ThreatModel(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_rounding_put_outside_is_pulled_back_and_stays_near_the_surface(norm: Norm, bits: int) -> None:
    """Points on the surface of a ball, on the grid of a codec: inside after it, and in l2 hardly nearer to the centre."""
    codec = fit(f"uniform{bits}/tensor", LatentSpec((8, 4, 4), (-4.0,) * 8, (4.0,) * 8, 1.0))
    rng = np.random.default_rng(0)
    centre = codec.snap(rng.standard_normal((1, 8, 4, 4), np.float32))[0]
    eps = 3.0 * float(codec.step.max()) * (1 if norm == "linf" else 4)
    ball = BALLS[norm](centre, eps, codec.lo, codec.hi)
    points = centre + rng.standard_normal((50, 8, 4, 4), np.float32)
    points = np.clip(centre + (points - centre) * (eps / ball.distance(points)).reshape(-1, 1, 1, 1), codec.lo, codec.hi)
    pulled = ball.pull_back(codec.snap(points), codec.snap_towards(points, centre))
    assert ball.contains(pulled).all()
    assert np.array_equal(codec.snap(pulled), pulled)
    if norm == "l2":
        least = np.minimum(ball.distance(points), ball.distance(codec.snap(points)))
        assert (ball.distance(pulled) >= 0.8 * least).all()
