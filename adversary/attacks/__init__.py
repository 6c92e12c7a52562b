"""The family of attacks. Adding one touches its file and the tuple ATTACKS."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from adversary.attacks.bandits import Bandits
from adversary.attacks.base import Answers, Ask, Attack, Case, Pool, Search
from adversary.attacks.boundary_attack import BoundaryAttack
from adversary.attacks.evo import EVO
from adversary.attacks.geoda import GeoDA
from adversary.attacks.hopskipjump import HopSkipJump
from adversary.attacks.nattack import NAttack
from adversary.attacks.nes import NES
from adversary.attacks.noise import Noise
from adversary.attacks.own import FAMILY, OwnAttack
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

if TYPE_CHECKING:
    AttackConfig: TypeAlias = Attack | OwnAttack
else:  # made from the tuple, so that nothing else lists them
    AttackConfig = FAMILY.configured(ATTACKS, OwnAttack)
