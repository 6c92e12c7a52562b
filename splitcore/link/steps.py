"""A link that changes: one profile after another, by the time since it came up. A walk out of the flat and back."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from splitcore.link.line import Link, LinkProfile, profile_of


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Step:
    """From when on the link is what."""

    at_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
    """seconds since the pass brought its link up"""
    link: Link


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Steps:
    """What the link is, by time. Bytes that are on their way at a step arrive as they would have."""

    kind: Literal["steps"] = "steps"
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=1000)]
    """in the order of their times, the first at 0"""

    @model_validator(mode="after")
    def _in_order(self) -> Steps:
        times = [step.at_s for step in self.steps]
        if times[0] != 0 or any(b <= a for a, b in pairwise(times)):
            raise ValueError(f"expected steps from at_s 0 on, each later than the one before, got {times}")
        return self


LinkInTime: TypeAlias = Link | Steps
"""as a scenario writes it: what stays as it is, or what changes"""


def schedule_of(link: LinkInTime) -> tuple[tuple[float, LinkProfile], ...]:
    """(seconds, profile from then on), the first at 0."""
    if isinstance(link, Steps):
        return tuple((step.at_s, profile_of(step.link)) for step in link.steps)
    return ((0.0, profile_of(link)),)
