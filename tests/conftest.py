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


@pytest.fixture(scope="session")
def digits_cuts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of digits-wide (a large latent) and digits-narrow (a small one), with light heads and hardly trained."""
    from splitcore.data import load
    from splitcore.nn.export import export
    from splitcore.nn.recipe import load_recipe
    from splitcore.nn.training import train

    folder = tmp_path_factory.mktemp("cuts")
    for name in ("digits-wide", "digits-narrow"):
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        recipe = dataclasses.replace(recipe, epochs=1, net=dataclasses.replace(recipe.net, head_width=8, tail_width=16))
        export(train(recipe, progress=False, device="cpu"), recipe, load("digits", "test"), folder / name)
    return folder / "digits-wide", folder / "digits-narrow"
