"""Fixtures that many test files share: small real things, made once a session."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(scope="session")
def digits_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an artefact of recipes/digits.yaml, trained for a few epochs only: about 95 % accurate."""
    from splitcore.data import load
    from splitcore.nn.export import export
    from splitcore.nn.recipe import load_recipe
    from splitcore.nn.training import train

    recipe = dataclasses.replace(load_recipe(RECIPES / "digits.yaml"), epochs=4)
    folder = tmp_path_factory.mktemp("artefacts") / "digits"
    export(train(recipe, progress=False, device="cpu"), recipe, load("digits", "test"), folder)
    return folder
