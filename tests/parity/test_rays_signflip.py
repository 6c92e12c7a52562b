"""RayS and SignFlip beside ART's HopSkipJump for linf, which both papers claim to beat, and RayS beside a plain twin.

No library that is installed here has either.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from arena import Arena
from compare import beside, compared

from adversary.attacks import Attack
from adversary.attacks.rays import RayS
from adversary.attacks.signflip import SignFlip
from splitcore.latent import F32

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("iterations", [2, 5])
@pytest.mark.parametrize("attack", [RayS(), RayS(order="HWC"), SignFlip()], ids=["rays", "rays-hwc", "signflip"])
def test_it_comes_nearer_than_arts_hopskipjump_with_as_many_queries(attack: Attack, iterations: int, arena: Arena) -> None:
    from art.attacks.evasion import HopSkipJump

    np.random.seed(0)
    theirs = HopSkipJump(arena.art(), norm=np.inf, max_iter=iterations, max_eval=400, init_eval=100, verbose=False)
    result = beside(arena, attack, theirs.generate(arena.latents[:12].copy(), y=None), norm="linf")
    print(result)
    assert result.high < 1


def twin(arena: Arena, sample: int, budget: int) -> float:
    """The paper's RayS as it stands: unit directions, l2 radii to 1e-3, first the cube's diagonal. The linf radius found."""
    z, y = arena.latents[sample].ravel(), arena.labels[sample]
    d = z.size
    left = budget

    def adversarial(radius: float, direction: F32) -> bool:
        nonlocal left
        left -= 1
        point = np.clip(z + np.float32(radius) * direction / np.float32(math.sqrt(d)), 0, 1)
        return bool(arena.scores(point.reshape(1, *arena.latents.shape[1:])).argmax() != y)

    best, level, block = math.inf, 0, 0
    direction: F32 = np.ones(d, np.float32)
    while left > 0:
        trial = direction.copy()
        length = math.ceil(d / 2**level)
        trial[block * length : (block + 1) * length] *= -1
        if best == math.inf:
            trial = direction if adversarial(math.sqrt(d), direction) else trial
        high = min(best, math.sqrt(d))
        if adversarial(high, trial):
            low = 0.0
            while high - low > 1e-3 and left > 0:
                middle = (low + high) / 2
                low, high = (low, middle) if adversarial(middle, trial) else (middle, high)
            if high < best:
                best, direction = high, trial
        block += 1
        if block == 2**level or block * length >= d:
            level, block = (0 if length == 1 else level + 1), 0
    return best / math.sqrt(d)


@pytest.mark.parametrize("budget", [150, 600])
def test_rays_comes_as_near_as_a_plain_one(budget: int, arena: Arena) -> None:
    n = 12
    theirs = np.array([twin(arena, sample, budget) for sample in range(n)])
    outcomes = arena.ours(RayS(), norm="linf", eps=1e-9, budget=budget, n=n)
    ours = np.array([outcome.nearest[-1][1] if outcome.nearest else np.inf for outcome in outcomes])
    result = compared(budget, ours, theirs)
    print(result)
    assert result.low <= 1
