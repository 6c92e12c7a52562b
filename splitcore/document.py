"""A YAML file that a person wrote, as the typed object that it shall be: recipes, scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from splitcore.errors import ScenarioError

T = TypeVar("T")


def load(kind: TypeAdapter[T], path: Path, noun: str) -> T:
    """Raises ScenarioError that says what is wrong, and in which file."""
    try:
        document: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ScenarioError(f"expected a {noun} at {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path} is not YAML: {error}") from error
    try:
        return kind.validate_python(document)
    except ValidationError as error:
        raise ScenarioError(f"{path} is not a {noun}: {error}") from error
