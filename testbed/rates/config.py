"""What `latentbed rates` measures, as data: curves of accuracy over bytes. Unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from splitcore import document
from splitcore.codec import CodecConfig
from splitcore.data.source import ArtefactSource, SourceConfig
from testbed.scenario import NAME


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Curve(_Strict):
    """One line of the plot: every artefact with every codec."""

    title: Annotated[str, Field(min_length=1, max_length=60)]
    recipes: tuple[Path, ...] = ()
    """trainings, relative to the file; their artefacts are made where they are missing"""
    artefacts: tuple[Path, ...] = ()
    """artefacts that are there, relative to the file"""
    codecs: tuple[CodecConfig, ...] = ()
    """none: each artefact's own"""

    @model_validator(mode="after")
    def _of_something(self) -> Curve:
        if not (self.recipes or self.artefacts):
            raise ValueError(f"expected `recipes` or `artefacts` in the curve {self.title!r}, got neither")
        return self


class Rates(_Strict):
    """Curves over one source of images."""

    name: Annotated[str, NAME]
    title: str = ""
    source: SourceConfig = Field(default_factory=ArtefactSource)
    curves: Annotated[tuple[Curve, ...], Field(min_length=1)]


RATES: TypeAdapter[Rates] = TypeAdapter(Rates)


def load_rates(path: Path) -> Rates:
    """From a YAML file. Raises ScenarioError."""
    return document.load(RATES, path, "rates file")
