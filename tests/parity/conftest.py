"""A trained tail to compare attacks on, made once a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from arena import Arena, build

from splitcore.data import load
from splitcore.nn.export import export
from splitcore.nn.recipe import load_recipe
from splitcore.nn.training import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """scikit-learn's digits behind the demo's head: latents [8, 4, 4] in [0, 1]."""
    torch.set_num_threads(1)
    recipe = load_recipe(ROOT / "recipes" / "digits.yaml")
    model = train(recipe, progress=False, device="cpu")
    return build(export(model, recipe, load("digits", "test"), tmp_path_factory.mktemp("digits") / "artefact"))


@pytest.fixture(autouse=True)
def _count_from_zero(arena: Arena) -> None:
    arena.model.rows = arena.model.calls = 0
