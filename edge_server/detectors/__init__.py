"""The family of detectors. Adding one touches its file and the tuple DETECTORS."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

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

if TYPE_CHECKING:
    AnyDetector: TypeAlias = Blacklight | QueryRate | OutOfRange | OwnDetector
else:  # made from the tuple, so that nothing else lists them
    AnyDetector = FAMILY.configured(DETECTORS, OwnDetector, named_alone=True)
