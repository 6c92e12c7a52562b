"""ZOO beside ART's, without the resizing that hangs on small maps, at as many rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from arena import Arena
from compare import fell_beside
from conversation import case_of, converse

from adversary.attacks.zoo import ZOO, Solver
from splitcore.latent import F32

pytestmark = pytest.mark.parity

N = 12


@pytest.fixture(scope="module")
def art(arena: Arena) -> tuple[F32, int]:
    """What ART's finds of the first N, and the rows it took."""
    from art.attacks.evasion import ZooAttack

    arena.model.rows = 0
    np.random.seed(0)
    theirs = ZooAttack(
        arena.art(), learning_rate=0.01, max_iter=20, binary_search_steps=1, initial_const=1.0, nb_parallel=128, batch_size=1,
        use_resize=False, use_importance=False, variable_h=0.01, verbose=False,
    )  # fmt: skip
    found: F32 = theirs.generate(arena.latents[:N].copy(), y=None)
    return found, arena.model.rows


@pytest.mark.parametrize("solver", [None, "adam", "newton"])
@pytest.mark.parametrize("eps", [0.5, 1.0])
def test_as_many_fall_within_the_ball_as_to_arts(arena: Arena, art: tuple[F32, int], solver: Solver | None, eps: float) -> None:
    found, rows = art
    arena.model.rows = rows
    fell = fell_beside(arena, ZOO(solver=solver), found, norm="l2", eps=eps, budget=rows // N)
    print(f"{solver or 'default'} eps {eps}, {rows // N} rows: {fell}")
    assert fell.high >= 0
    assert fell.ours >= fell.theirs
    assert fell.our_rows <= fell.their_rows


def test_a_sweep_knows_the_gradient_that_autograd_has(arena: Arena) -> None:
    """One round of all 128 coordinates: Newton's step in l2 is along it."""
    cosines = []
    for number in range(20):
        z, y = arena.latents[number], int(arena.labels[number])
        x = torch.from_numpy(z[None].copy()).requires_grad_()
        logits = arena.model(x)[0]
        others = torch.cat([logits[:y], logits[y + 1 :]])
        (logits[y] - others.max()).backward()
        assert x.grad is not None
        true = x.grad[0].numpy()
        turns = converse(ZOO(), case_of(z, "l2", 0.02, budget=258, label=y), arena.scores)
        moved = z - turns[1].points[0]
        cosines.append(float(np.vdot(moved, true) / np.linalg.norm(moved) / np.linalg.norm(true)))
    print(f"cosine: median {np.median(cosines):.3f}, least {min(cosines):.3f}")
    assert np.median(cosines) > 0.99
