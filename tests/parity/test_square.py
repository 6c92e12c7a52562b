"""Square beside ART's and torchattacks', at as many rows as their model sees: ART sends three for each nominal query.

On images of one channel windows are the paper's; on latents of eight channels ours are blocks of channels too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from arena import Arena, Unit
from compare import Fell, fell_beside
from torch import Tensor, nn

from adversary.attacks.square import Square
from splitcore.artefact import Artefact
from splitcore.head import Head
from splitcore.latent import F32
from splitcore.nn.tail import load_tail
from splitcore.threat import Norm

pytestmark = pytest.mark.parity

N, BUDGET = 60, 200


class Whole(nn.Module):
    """Head and tail: images [k, 1, 8, 8] in [0, 1] to logits."""

    def __init__(self, artefact: Artefact) -> None:
        super().__init__()
        self.head = Head(artefact)
        self.tail = load_tail(artefact)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.tail(torch.from_numpy(self.head(x.numpy())))
        return logits


@pytest.fixture(scope="module")
def pixels(digits_artefact: Path) -> Arena:
    """The digits themselves, as the other libraries know them."""
    artefact = Artefact(digits_artefact)
    images, truth = artefact.samples
    x = images.astype(np.float32) / 255
    model = Unit(Whole(artefact), torch.zeros(1), torch.ones(1)).eval()
    with torch.inference_mode():
        said = model(torch.from_numpy(x)).argmax(1).numpy()
    model.rows = 0
    return Arena(model, x[said == truth], said[said == truth])


def art(arena: Arena, norm: Norm, eps: float, p_init: float) -> F32:
    from art.attacks.evasion import SquareAttack

    np.random.seed(0)
    order = np.inf if norm == "linf" else 2
    attack = SquareAttack(arena.art(), norm=order, eps=eps, max_iter=BUDGET // 3, p_init=p_init, verbose=False)
    found: F32 = attack.generate(arena.latents[:N].copy(), y=None)
    return found


def torchattacks(arena: Arena, norm: Norm, eps: float, p_init: float) -> F32:
    from torchattacks import Square as Theirs

    name = "Linf" if norm == "linf" else "L2"
    attack = Theirs(arena.model, norm=name, eps=eps, n_queries=BUDGET - 3, p_init=p_init, seed=0)
    found: F32 = attack(torch.from_numpy(arena.latents[:N].copy()), torch.from_numpy(arena.labels[:N].copy())).numpy()
    return found


def no_worse(result: Fell) -> None:
    print(result)
    assert 0.1 < result.ours < 0.98  # neither hopeless nor too easy to tell anything
    assert result.high >= 0
    assert result.our_rows <= result.their_rows or result.low > 0


@pytest.mark.parametrize("library", [art, torchattacks], ids=["art", "torchattacks"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.15), ("l2", 0.9)])
def test_on_images_as_many_fall_as_to_theirs(norm: Norm, eps: float, library: type, pixels: Arena) -> None:
    pixels.model.rows = 0
    found = library(pixels, norm, eps, 0.3)
    no_worse(fell_beside(pixels, Square(p_init=0.3), found, norm=norm, eps=eps, budget=BUDGET))


@pytest.mark.parametrize("library", [art, torchattacks], ids=["art", "torchattacks"])
def test_on_latents_as_many_fall_as_to_theirs(library: type, arena: Arena) -> None:
    found = library(arena, "linf", 0.075, 0.3)
    no_worse(fell_beside(arena, Square(), found, norm="linf", eps=0.075, budget=BUDGET))


def test_in_l2_arts_runs_on_latents_of_small_maps_and_ours_makes_more_fall(arena: Arena) -> None:
    """torchattacks' divides by zero there: a fifth of a side of 4 is nothing."""
    found = art(arena, "l2", 0.8, 0.3)
    no_worse(fell_beside(arena, Square(), found, norm="l2", eps=0.8, budget=BUDGET))
    with pytest.raises(ZeroDivisionError):
        torchattacks(arena, "l2", 0.8, 0.3)
