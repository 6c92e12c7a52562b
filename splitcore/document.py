"""A YAML file that a person wrote, as the typed object that it shall be: recipes, scenarios, studies."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from splitcore.errors import ScenarioError

T = TypeVar("T")
SHOWN = 10
"""of what is wrong with a file"""


def load(kind: TypeAdapter[T], path: Path, noun: str) -> T:
    """Raises ScenarioError that says what is wrong, and in which file."""
    try:
        document: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ScenarioError(f"expected a {noun} at {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ScenarioError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ScenarioError(f"{path} is not a {noun}: expected lines of `key: value`, got {_shown(document)}")
    try:
        return kind.validate_python(document)
    except ValidationError as error:
        raise ScenarioError(f"{path} is not a {noun}:{in_words(error, kind)}") from error


def in_words(error: ValidationError, kind: TypeAdapter[Any]) -> str:
    """A line for each thing that is wrong, and where."""
    known = sorted(set(_keys(kind.json_schema())))
    wrong = error.errors(include_url=False)
    lines = [f"\n  {_place(one)}{_reason(one, known)}" for one in wrong[:SHOWN]]
    return "".join(lines) + (f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")


def _place(one: ErrorDetails) -> str:
    place = ""
    for part in one["loc"]:
        # pydantic's names for the branches of a union have brackets
        if isinstance(part, int):
            place += f"[{part}]"
        elif not set(part) & set("[("):
            place += f".{part}" if place else part
    return f"{place}: " if place else ""


def _reason(one: ErrorDetails, known: list[str]) -> str:
    message, about = one["msg"].removeprefix("Value error, "), one.get("ctx", {})
    match one["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            key = str(one["loc"][-1])
            close = [] if key in known else difflib.get_close_matches(key, known, n=1, cutoff=0.75)
            return "there is no such key here" + (f"; did you mean {close[0]}?" if close else "")
        case "missing" | "missing_argument":
            return "expected a value, there is none"
        case "union_tag_not_found":
            return f"expected a key {about['discriminator']}, got {_shown(one['input'])}"
        case "union_tag_invalid":
            return f"expected {about['discriminator']} of {about['expected_tags']}, got {_shown(about['tag'])}"
        case "model_type" | "dataclass_type" | "dict_type" | "model_attributes_type":
            return f"expected lines of `key: value`, got {_shown(one['input'])}"
    if not message.startswith("Input should "):
        return message
    message = message.removeprefix("Input should ").removeprefix("be ").partition(", unable to parse")[0]
    return f"expected {message}, got {_shown(one['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return "nothing" if value is None else text if len(text) <= 60 else f"{text[:56]} ..."


def _keys(schema: object) -> Iterator[str]:
    """Every key that some object in a JSON schema has."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield from schema["properties"]
        for part in schema.values():
            yield from _keys(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _keys(part)
