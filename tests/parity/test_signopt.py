"""Sign-OPT beside ART's, which knows l2 alone and sends its probes one by one."""

from __future__ import annotations

import numpy as np
import pytest
from arena import Arena
from compare import beside

from adversary.attacks.signopt import SignOPT

pytestmark = pytest.mark.parity


def test_it_comes_as_near_as_arts_with_as_many_queries(arena: Arena) -> None:
    from art.attacks.evasion import SignOPTAttack

    np.random.seed(0)
    theirs = SignOPTAttack(arena.art(), targeted=False, query_limit=1500, verbose=False)
    result = beside(arena, SignOPT(), theirs.generate(arena.latents[:4].copy(), y=None), norm="l2")
    print(result)
    assert result.low <= 1


def test_its_linf_variant_comes_as_near_as_hopskipjump_of_art(arena: Arena) -> None:
    """No library has the linf variant: the nearest in kind stands beside it."""
    from art.attacks.evasion import HopSkipJump as Theirs

    np.random.seed(0)
    theirs = Theirs(arena.art(), norm=np.inf, max_iter=6, max_eval=400, init_eval=100, verbose=False)
    result = beside(arena, SignOPT(), theirs.generate(arena.latents[:16], y=None), norm="linf")
    print(result)
    assert result.low <= 1
