"""The universal perturbation beside ART's, both with the tail's own gradients: what a surrogate costs is not the question here.

ART's is the paper's algorithm 1 with a DeepFool that measures in l2 also where the ball is linf.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from arena import Arena
from torch import nn

from adversary.attacks.base import About
from adversary.attacks.universal import Universal
from splitcore.latent import F32
from splitcore.nn.surrogate import Surrogate
from splitcore.threat import Norm
from testbed.report.model import Rate
from testbed.report.statistics import rate

pytestmark = pytest.mark.parity

LEARNED = 80
"""latents that v is made from; it is judged on the others"""


def fooled(arena: Arena, v: F32) -> Rate:
    """Over the latents that v was not made from, with its Wilson 95 % interval."""
    others = arena.latents[LEARNED:]
    wrong = arena.scores(np.clip(others + v, 0, 1).astype(np.float32)).argmax(axis=1) != arena.labels[LEARNED:]
    return rate(wrong.tolist())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.15), ("l2", 1.2)])
def test_universal_fools_as_many_unseen_latents_as_arts(arena: Arena, norm: Norm, eps: float) -> None:
    from art.attacks.evasion import UniversalPerturbation
    from art.estimators.classification import PyTorchClassifier

    points = arena.latents[:LEARNED]
    model = arena.model.eval()
    theirs = UniversalPerturbation(
        PyTorchClassifier(model, nn.CrossEntropyLoss(), points.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu"),
        attacker="deepfool", attacker_params={"max_iter": 10, "epsilon": 0.02, "nb_grads": 10, "verbose": False},
        delta=0.2, max_iter=4, eps=eps, norm=np.inf if norm == "linf" else 2, verbose=False,
    )  # fmt: skip
    random.seed(0)
    np.random.seed(0)
    theirs.generate(points)
    assert theirs.noise is not None
    by_theirs = fooled(arena, theirs.noise[0])
    bound = np.ones(1, np.float32)
    about = About(norm=norm, eps=eps, lo=0 * bound, hi=bound, snap=lambda x: x, classes=10)
    net = Surrogate(model)
    ours = {
        "deepfool": Universal(inner="deepfool", passes=4, fooled=0.8).over(points, net, about),
        "gradient": Universal().over(points, net, about),
    }
    torch.set_grad_enabled(True)
    by_ours = {name: fooled(arena, np.float32(eps) * taught.v) for name, taught in ours.items()}
    print(f"\n{norm} {eps}: theirs {by_theirs.value:.3f} [{by_theirs.low:.3f}, {by_theirs.high:.3f}]",
          {name: f"{found.value:.3f}" for name, found in by_ours.items()})  # fmt: skip
    for found in by_ours.values():
        # the band: ours is no lower than the lower end of the Wilson interval of theirs
        assert found.value is not None and by_theirs.low is not None
        assert found.value >= by_theirs.low
