"""A recipe: one training, or weights that are there, as data. YAML checked by pydantic; unknown keys are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from splitcore import document
from splitcore.artefact import NAME
from splitcore.codec.base import STRICT
from splitcore.data import DatasetName
from splitcore.nn.bottleneck import BottleneckConfig
from splitcore.nn.net import Narrow, NetConfig
from splitcore.nn.stage import Stage


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Pretrained:
    """Weights of the whole network, head and tail, in one file."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*\.(safetensors|pth?)$")]
    """relative to the data folder; safetensors, or a state dict that torch saved"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """whence, where the file is not there"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Taught:
    """Where the teacher of a student comes from: `pretrained` weights, or a training of its own by `stages`."""

    pretrained: Pretrained | None = None
    stages: tuple[Stage, ...] | None = None

    @model_validator(mode="after")
    def _once(self) -> Taught:
        if (self.pretrained is None) == (not self.stages):
            raise ValueError("expected either `pretrained` weights of the teacher or `stages` that train it")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """Stages of training, one after another; or no training but `pretrained` weights.

    One stage by cross-entropy, the usual case, is said here itself: `epochs`, `batch`, `lr`, `weight_decay`.
    """

    name: Annotated[str, Field(pattern=NAME)]
    """the artefact's name"""
    approach: Annotated[str, Field(pattern=NAME)] | None = None
    """what this way of training is called in the manifest and in tables; none: sc"""
    dataset: DatasetName
    net: NetConfig
    bottleneck: BottleneckConfig
    pretrained: Pretrained | None = None
    """weights to load in place of a training; the training images calibrate the latent's ranges"""
    teacher: Taught | None = None
    """of a net of kind `narrow`: whom objectives compare with, and whose later layers the student starts from"""
    stages: tuple[Stage, ...] | None = None
    """what is trained in which order"""
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 0
    """passes over the training images; 0: `stages`, or `pretrained` weights"""
    batch: Annotated[int, Field(ge=2, le=65_536)] = 64
    """images a step"""
    lr: Annotated[float, Field(gt=0, le=1)] = 5e-3
    """largest learning rate of the cycle (Smith and Topin, arXiv 1708.07120)"""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-2
    """AdamW's, decoupled"""
    augment: Literal["none", "shift", "shift_flip"] = "none"
    """training images moved by up to an eighth of their side, and mirrored"""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """of the weights, the order of the images, dropout and noise"""

    @model_validator(mode="after")
    def _trained_once(self) -> Recipe:
        if [self.pretrained is not None, bool(self.stages), self.epochs > 0].count(True) != 1:
            raise ValueError(f"expected one of `epochs` from 1, `stages` and `pretrained` weights, got epochs {self.epochs}")
        return self

    @model_validator(mode="after")
    def _taught(self) -> Recipe:
        if self.teacher is not None and not isinstance(self.net, Narrow):
            raise ValueError(f"expected a net of kind narrow for a student with a `teacher`, got {self.net.kind}")
        for at, stage in enumerate(self.training):
            if stage.objective.needs_teacher and self.teacher is None:
                raise ValueError(f"expected a `teacher` for the objective {stage.objective.kind} of stage {at + 1}")
            if {"decoder", "rest"} & set(stage.frozen) and not isinstance(self.net, Narrow):
                raise ValueError(f"expected a net of kind narrow where decoder or rest is frozen, got {self.net.kind}")
        return self

    @property
    def training(self) -> tuple[Stage, ...]:
        """The stages, however they were said; none for `pretrained` weights."""
        if self.epochs:
            return (Stage(epochs=self.epochs, batch=self.batch, lr=self.lr, weight_decay=self.weight_decay),)
        return self.stages or ()

    @property
    def digest(self) -> str:
        """sha256 of the recipe as canonical JSON: the manifest says by it how an artefact was made."""
        canonical = json.dumps(RECIPE.dump_python(self, mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file. Raises ScenarioError."""
    return document.load(RECIPE, path, "recipe")
