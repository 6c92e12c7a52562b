"""The family of attacks. Adding one touches its file and the tuple ATTACKS."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Discriminator, Tag
from pydantic_core import PydanticCustomError

from adversary.attacks.bandits import Bandits
from adversary.attacks.base import Answers, Ask, Attack, Case, Pool, Search
from adversary.attacks.boundary_attack import BoundaryAttack
from adversary.attacks.evo import EVO
from adversary.attacks.geoda import GeoDA
from adversary.attacks.hopskipjump import HopSkipJump
from adversary.attacks.nattack import NAttack
from adversary.attacks.nes import NES
from adversary.attacks.noise import Noise
from adversary.attacks.own import OwnAttack, is_own
from adversary.attacks.parsimonious import Parsimonious
from adversary.attacks.rays import RayS
from adversary.attacks.signflip import SignFlip
from adversary.attacks.signhunter import SignHunter
from adversary.attacks.signopt import SignOPT
from adversary.attacks.simba import SimBA
from adversary.attacks.square import Square
from adversary.attacks.surfree import SurFree
from adversary.attacks.transfer import Transfer
from adversary.attacks.triangle import Triangle
from adversary.attacks.universal import Universal
from adversary.attacks.zoo import ZOO

__all__ = ["ATTACKS", "Answers", "Ask", "Attack", "AttackConfig", "Case", "OwnAttack", "Pool", "Search"]

# the baseline, those that read scores, those that read labels, those that ask nothing
ATTACKS: tuple[type[Attack], ...] = (
    Noise,
    NES, NAttack, Square, SimBA, Bandits, ZOO, SignHunter, Parsimonious,
    HopSkipJump, SignOPT, GeoDA, BoundaryAttack, EVO, Triangle, SurFree, RayS, SignFlip,
    Universal, Transfer,
)  # fmt: skip

_OWN = "own"
_KINDS = tuple(str(attack.kind) for attack in ATTACKS)


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


def _named(value: Any) -> Any:
    """Says what may stand there before the union says it in its own way."""
    kind = _kind(value)
    if kind in _KINDS or isinstance(value, OwnAttack) or (isinstance(kind, str) and is_own(kind)):
        return value
    raise PydanticCustomError(
        "attack_kind",
        "expected kind one of {kinds}, or one's own: `module:Class` or an installed entry point; got {got}",
        {"kinds": ", ".join(_KINDS), "got": repr(kind)[:80]},
    )


def _tag(value: Any) -> str:
    kind = _kind(value)
    return kind if kind in _KINDS else _OWN


if TYPE_CHECKING:
    AttackConfig: TypeAlias = Attack | OwnAttack
else:  # made from the tuple, so that nothing else lists the attacks
    _MEMBERS = (*(Annotated[attack, Tag(attack.kind)] for attack in ATTACKS), Annotated[OwnAttack, Tag(_OWN)])
    AttackConfig = Annotated[reduce(or_, _MEMBERS), Discriminator(_tag), BeforeValidator(_named)]
