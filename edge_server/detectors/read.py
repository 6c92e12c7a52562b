"""A detector as the command line says it: its kind alone, or its settings as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from edge_server.detectors import AnyDetector
from splitcore.errors import ScenarioError

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyDetector)


def read_detector(text: str) -> AnyDetector:
    """Raises ScenarioError that says what is wrong with it."""
    try:
        if text.lstrip().startswith("{"):
            read: AnyDetector = ADAPTER.validate_json(text)
        else:
            read = ADAPTER.validate_python(text)
    except ValidationError as error:
        wrong = "; ".join(
            ".".join(str(part) for part in problem["loc"][1:]) + (": " if problem["loc"][1:] else "") + problem["msg"]
            for problem in error.errors(include_url=False)
        )
        raise ScenarioError(f"{text[:200]!r} is no detector: {wrong}") from error
    return read


def said(detector: Any) -> dict[str, Any]:
    """Its settings as plain values, as a scenario says them."""
    dumped: dict[str, Any] = TypeAdapter(type(detector)).dump_python(detector, mode="json")
    return dumped
