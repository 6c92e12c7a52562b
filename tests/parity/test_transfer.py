"""Steps on a surrogate beside torchattacks' MI-FGSM and PGD on the same surrogate, judged by the tail that neither has seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from arena import Arena

from adversary.attacks import Pool
from adversary.attacks.base import About
from adversary.attacks.surrogate import SurrogateTraining
from adversary.attacks.transfer import TaughtTransfer, Transfer
from splitcore.latent import F32
from splitcore.nn.surrogate import Surrogate
from splitcore.threat import Norm
from testbed.report.statistics import rate

pytestmark = pytest.mark.parity

SEEN, N = 200, 120
"""latents that were recorded; latents that are attacked, others"""
LINF, L2 = 0.1, 1.0


@pytest.fixture(scope="module")
def others(arena: Arena) -> Arena:
    """The arena without what was recorded."""
    return Arena(arena.model, arena.latents[SEEN:], arena.labels[SEEN:])


@pytest.fixture(scope="module")
def surrogate(arena: Arena) -> Surrogate:
    seen = arena.latents[:SEEN]
    scores = arena.scores(seen)
    bound = np.ones(1, np.float32)
    about = About(norm="linf", eps=LINF, lo=0 * bound, hi=bound, snap=lambda x: x, classes=10)
    net, _ = SurrogateTraining().trained(Pool(seen, scores.argmax(axis=1), scores), about)
    assert isinstance(net, Surrogate)
    return net


def theirs(attack: type[Any], surrogate: Surrogate, others: Arena, **settings: Any) -> F32:
    """[N, *shape], from the labels that the surrogate itself gives."""
    x = torch.from_numpy(others.latents[:N].copy())
    labels = torch.from_numpy(surrogate.logits(others.latents[:N]).argmax(axis=1))
    torch.manual_seed(0)
    found: F32 = attack(surrogate.net, **settings)(x, labels).numpy()
    return found


def ours(settings: Transfer, surrogate: Surrogate, others: Arena, norm: Norm, eps: float) -> F32:
    outcomes = others.ours(TaughtTransfer(settings, surrogate), norm=norm, eps=eps, budget=1, n=N)
    assert {(outcome.reason, outcome.queries) for outcome in outcomes} == {("blind", 0)}
    return others.codec.decode([outcome.payload or b"" for outcome in outcomes])


@pytest.mark.parametrize("steps", [1, 10])
def test_mi_fgsm_sends_what_torchattacks_does(surrogate: Surrogate, others: Arena, steps: int) -> None:
    from torchattacks import MIFGSM

    there = theirs(MIFGSM, surrogate, others, eps=LINF, alpha=LINF / steps, steps=steps, decay=1.0)
    here = ours(Transfer(steps=steps), surrogate, others, "linf", LINF)
    fell = [others.wrong(x) for x in (there, here)]
    print(f"\nMI-FGSM {steps}: theirs {fell[0].mean():.3f}, ours {fell[1].mean():.3f}, same point in "
          f"{np.isclose(there, here, atol=1e-5).all(axis=(1, 2, 3)).mean():.3f}")  # fmt: skip
    # a gradient of nearly nothing has one sign in a stack and another alone: a coordinate in ten thousand
    assert np.isclose(there, here, atol=1e-5).mean() > 0.999
    assert (fell[0] != fell[1]).mean() <= 0.01
    assert fell[0].mean() > 0.1


def test_pgd_in_l2_sends_what_torchattacks_does(surrogate: Surrogate, others: Arena) -> None:
    from torchattacks import PGDL2

    there = theirs(PGDL2, surrogate, others, eps=L2, alpha=L2 / 4, steps=10, random_start=False)
    here = ours(Transfer(momentum=0.0, step=0.25), surrogate, others, "l2", L2)
    fell = [others.wrong(x) for x in (there, here)]
    print(f"\nPGD l2: theirs {fell[0].mean():.3f}, ours {fell[1].mean():.3f}, farthest {np.abs(there - here).max():.2g}")
    # rounding that turns a unit of the surrogate on or off leads one latent in a hundred another way
    assert np.isclose(there, here, atol=1e-4).all(axis=(1, 2, 3)).mean() >= 0.98
    assert (fell[0] != fell[1]).mean() <= 0.01
    assert fell[0].mean() > 0.1


def test_pgd_from_a_random_start_falls_no_shorter_than_torchattacks(surrogate: Surrogate, others: Arena) -> None:
    from torchattacks import PGD

    there = theirs(PGD, surrogate, others, eps=LINF, alpha=LINF / 4, steps=10, random_start=True)
    here = ours(Transfer(momentum=0.0, random_start=True, step=0.25), surrogate, others, "linf", LINF)
    found, expected = (rate(others.wrong(x).tolist()) for x in (here, there))
    print(f"\nPGD: theirs {expected.value:.3f} [{expected.low:.3f}, {expected.high:.3f}], ours {found.value:.3f}")
    assert found.value is not None and expected.low is not None
    assert found.value >= expected.low  # of the Wilson 95 % interval
