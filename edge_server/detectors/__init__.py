"""The family of detectors. Adding one touches its file and the tuple DETECTORS."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Discriminator, Tag
from pydantic_core import PydanticCustomError

from edge_server.detectors.base import Action, Asked, Detector, DetectorConfig
from edge_server.detectors.blacklight import Blacklight
from edge_server.detectors.out_of_range import OutOfRange
from edge_server.detectors.own import FAMILY, OwnDetector
from edge_server.detectors.query_rate import QueryRate

__all__ = [
    "DETECTORS", "Action", "AnyDetector", "Asked", "Blacklight", "Detector", "DetectorConfig", "OutOfRange", "OwnDetector",
    "QueryRate",
]  # fmt: skip

DETECTORS: tuple[type[Blacklight] | type[QueryRate] | type[OutOfRange], ...] = (Blacklight, QueryRate, OutOfRange)

_OWN = "own"
_KINDS = tuple(str(detector.kind) for detector in DETECTORS)


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


def _named(value: Any) -> Any:
    """A mere name is one with its defaults. Says what may stand there before the union says it in its own way."""
    value = {"kind": value} if isinstance(value, str) else value
    kind = _kind(value)
    if kind in _KINDS or isinstance(value, OwnDetector) or (isinstance(kind, str) and FAMILY.knows(kind)):
        return value
    raise PydanticCustomError(
        "detector_kind",
        "expected kind one of {kinds}, or one's own: `module:Class` or an installed entry point; got {got}",
        {"kinds": ", ".join(_KINDS), "got": repr(kind)[:80]},
    )


def _tag(value: Any) -> str:
    kind = _kind(value)
    return kind if kind in _KINDS else _OWN


if TYPE_CHECKING:
    AnyDetector: TypeAlias = Blacklight | QueryRate | OutOfRange | OwnDetector
else:  # made from the tuple, so that nothing else lists the detectors
    _MEMBERS = (*(Annotated[detector, Tag(detector.kind)] for detector in DETECTORS), Annotated[OwnDetector, Tag(_OWN)])
    AnyDetector = Annotated[reduce(or_, _MEMBERS), Discriminator(_tag), BeforeValidator(_named)]
