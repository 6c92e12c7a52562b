"""The family of objectives: what a stage of a training minimises. Adding one touches its file and the tuple OBJECTIVES."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from splitcore.nn.objective.base import Objective, Terms
from splitcore.nn.objective.cross_entropy import CrossEntropy
from splitcore.nn.objective.distil import Distil
from splitcore.nn.objective.match import Match

__all__ = ["OBJECTIVES", "CrossEntropy", "Distil", "Match", "Objective", "ObjectiveConfig", "Terms"]

OBJECTIVES = (CrossEntropy, Distil, Match)
ObjectiveConfig: TypeAlias = Annotated[CrossEntropy | Distil | Match, Field(discriminator="kind")]
