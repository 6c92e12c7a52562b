"""HopSkipJump beside ART's and foolbox's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from arena import Arena
from compare import beside

from adversary.attacks.hopskipjump import HopSkipJump
from splitcore.threat import Norm

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", np.inf)])
def test_it_comes_as_near_as_arts_with_as_many_queries(norm: Norm, order: float, arena: Arena) -> None:
    from art.attacks.evasion import HopSkipJump as Theirs

    np.random.seed(0)
    theirs = Theirs(arena.art(), norm=order, max_iter=6, max_eval=400, init_eval=100, verbose=False)
    result = beside(arena, HopSkipJump(), theirs.generate(arena.latents[:16], y=None), norm=norm)
    print(result)
    assert result.low <= 1


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_comes_as_near_as_foolboxs_with_as_many_queries(norm: Norm, arena: Arena) -> None:
    import foolbox

    torch.manual_seed(0)
    np.random.seed(0)
    constraint: Any = norm
    theirs = foolbox.attacks.HopSkipJumpAttack(steps=4, constraint=constraint)
    n = 16
    found, _, _ = theirs(
        arena.foolbox(), torch.from_numpy(arena.latents[:n]), torch.from_numpy(arena.labels[:n]), epsilons=None
    )
    result = beside(arena, HopSkipJump(), found.numpy(), norm=norm)
    print(result)
    assert result.low <= 1
