"""The family of attacks. Adding one touches its file and the tuple ATTACKS."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from adversary.attacks.base import Answers, Ask, Attack, Search
from adversary.attacks.hopskipjump import HopSkipJump
from adversary.attacks.nes import NES
from adversary.attacks.noise import Noise
from adversary.attacks.rays import RayS
from adversary.attacks.square import Square

__all__ = ["ATTACKS", "Answers", "Ask", "Attack", "AttackConfig", "Search"]

ATTACKS = (Noise, Square, NES, HopSkipJump, RayS)
AttackConfig: TypeAlias = Annotated[Noise | Square | NES | HopSkipJump | RayS, Field(discriminator="kind")]
