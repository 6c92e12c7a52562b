"""A recipe: one training, as data. YAML checked by pydantic; unknown keys are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from splitcore import document
from splitcore.codec.base import STRICT
from splitcore.data import DatasetName
from splitcore.nn.bottleneck import BottleneckConfig
from splitcore.nn.net import NetConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """Cross-entropy through the bottleneck, AdamW on a one-cycle schedule."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]{1,64}$")]
    """the artefact's name"""
    dataset: DatasetName
    net: NetConfig
    bottleneck: BottleneckConfig
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    """passes over the training images"""
    batch: Annotated[int, Field(ge=2, le=65_536)] = 64
    """images a step"""
    lr: Annotated[float, Field(gt=0, le=1)] = 5e-3
    """largest learning rate of the cycle (Smith and Topin, arXiv 1708.07120)"""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-2
    """AdamW's, decoupled"""
    augment: Literal["none", "shift", "shift_flip"] = "none"
    """training images moved by up to an eighth of their side, and mirrored"""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """of the weights, the order of the images and dropout"""

    @property
    def digest(self) -> str:
        """sha256 of the recipe as canonical JSON: the manifest says by it how an artefact was made."""
        canonical = json.dumps(RECIPE.dump_python(self, mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises ScenarioError."""
    return document.load(RECIPE, path, "recipe")
