"""EVO, SurFree and Triangle beside the boundary attack, which their papers claim to beat, and beside HopSkipJump.

No library that is installed here has a right version of any of the three, so the others are independent yardsticks: foolbox's
boundary attack, by that attack's own authors, and ART's HopSkipJump, each with as many queries as it took.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from arena import Arena
from compare import Compared, beside

from adversary.attacks.evo import EVO
from adversary.attacks.surfree import SurFree
from adversary.attacks.triangle import Triangle
from splitcore.latent import F32

pytestmark = pytest.mark.parity


def each_beside(found: F32, arena: Arena) -> dict[str, Compared]:
    spent = arena.model.rows
    results = {}
    for attack in (EVO(), SurFree(), Triangle()):
        arena.model.rows = spent
        results[attack.kind] = beside(arena, attack, found, norm="l2")
        print(attack.kind, results[attack.kind])
    return results


@pytest.mark.parametrize("steps", [300, 1000])
def test_all_come_nearer_than_foolboxs_boundary_attack_with_as_many_queries(steps: int, arena: Arena) -> None:
    import foolbox

    torch.manual_seed(0)
    np.random.seed(0)
    n = 12
    # from where the line to the clean point crosses the boundary, as ours
    start = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(steps=50)
    theirs = foolbox.attacks.BoundaryAttack(init_attack=start, steps=steps)
    found, _, _ = theirs(
        arena.foolbox(), torch.from_numpy(arena.latents[:n]), torch.from_numpy(arena.labels[:n]), epsilons=None
    )
    for result in each_beside(found.numpy(), arena).values():
        assert result.high < 1


@pytest.mark.parametrize("iterations", [2, 5])
def test_all_come_as_near_as_arts_hopskipjump_with_as_many_queries(iterations: int, arena: Arena) -> None:
    from art.attacks.evasion import HopSkipJump

    np.random.seed(0)
    theirs = HopSkipJump(arena.art(), norm=2, max_iter=iterations, max_eval=400, init_eval=100, verbose=False)
    for result in each_beside(theirs.generate(arena.latents[:12].copy(), y=None), arena).values():
        assert result.low <= 1
