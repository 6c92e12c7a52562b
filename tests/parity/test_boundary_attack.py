"""The boundary attack beside ART's and that of foolbox, by the authors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from arena import Arena
from compare import beside

from adversary.attacks.boundary_attack import BoundaryAttack

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("steps", [500, 1500])
def test_it_comes_as_near_as_foolboxs_with_as_many_queries(steps: int, arena: Arena) -> None:
    import foolbox

    torch.manual_seed(0)
    np.random.seed(0)
    n = 8
    # from where the line to the clean point crosses the boundary, as ours
    start = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(steps=50)
    theirs = foolbox.attacks.BoundaryAttack(init_attack=start, steps=steps)
    found, _, _ = theirs(
        arena.foolbox(), torch.from_numpy(arena.latents[:n]), torch.from_numpy(arena.labels[:n]), epsilons=None
    )
    result = beside(arena, BoundaryAttack(), found.numpy(), norm="l2")
    print(result)
    assert result.low <= 1


def test_it_comes_as_near_as_arts_with_as_many_queries(arena: Arena) -> None:
    from art.attacks.evasion import BoundaryAttack as Theirs

    np.random.seed(0)
    theirs = Theirs(arena.art(), targeted=False, max_iter=40, verbose=False)
    result = beside(arena, BoundaryAttack(), theirs.generate(arena.latents[:8].copy(), y=None), norm="l2")
    print(result)
    assert result.low <= 1
