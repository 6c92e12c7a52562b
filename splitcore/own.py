"""Something of somebody's own where a configuration wants one of ours: `module:Class`, or an installed package's entry point.

In a configuration it is data. It becomes code in one node's process alone, and only code that its operator allowed: a module or
a file that was named with `--trust`, or a package that was installed with the entry point.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import EntryPoint, entry_points
from operator import or_
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag
from pydantic_core import PydanticCustomError

from splitcore.errors import LatentbedError
from splitcore.trust import FACTORY, own_code

_PLAIN = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
PATTERN = f"^{_PLAIN}:[A-Za-z_][A-Za-z0-9_]*$"
"""`module:Class`, as a JSON schema can say it; an entry point's name it cannot know"""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What somebody's own may be."""

    group: str
    """of entry points"""
    noun: str
    node: str
    """whose process runs it"""
    wrong: type[LatentbedError]

    def knows(self, kind: str) -> bool:
        """Whether `kind` may name one; nothing is imported to find out."""
        return re.fullmatch(FACTORY, kind) is not None or self._entry_point(kind) is not None

    def configured(self, ours: Sequence[type[Any]], own: type[Any], *, named_alone: bool = False) -> Any:
        """The type of a configuration: one of `ours`, by its `kind`, or somebody's `own`. `named_alone`: a name will do."""
        kinds, other = tuple(str(one.kind) for one in ours), "own"

        def kind_of(value: Any) -> Any:
            return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)

        def named(value: Any) -> Any:
            """Says what may stand there before the union says it in its own way."""
            value = {"kind": value} if named_alone and isinstance(value, str) else value
            kind = kind_of(value)
            if kind in kinds or isinstance(value, own) or (isinstance(kind, str) and self.knows(kind)):
                return value
            raise PydanticCustomError(
                f"{self.noun}_kind",
                "expected kind one of {kinds}, or one's own: `module:Class` or an installed entry point; got {got}",
                {"kinds": ", ".join(kinds), "got": repr(kind)[:80]},
            )

        def tag(value: Any) -> str:
            kind = kind_of(value)
            return kind if kind in kinds else other

        members = (*(Annotated[one, Tag(one.kind)] for one in ours), Annotated[own, Tag(other)])
        return Annotated[reduce(or_, members), Discriminator(tag), BeforeValidator(named)]

    def build(self, kind: str, arguments: Mapping[str, Any], trusted: Collection[str]) -> Any:
        """`module:Class(**arguments)`, its code run. `trusted`: modules, or files `path/module.py`. Raises `wrong`."""
        if ":" in kind:
            made = own_code(kind, trusted, noun=self.noun, node=self.node, wrong=self.wrong)
        else:
            made = self._load(self._entry_point(kind))
        try:
            return made(**arguments)
        except Exception as error:  # anything may come out of somebody's own code; the message keeps what it was
            raise self.wrong(
                f"{self.noun} {kind} cannot be built from {dict(arguments)}: {type(error).__name__}: {error}"
            ) from error

    def _entry_point(self, name: str) -> EntryPoint | None:
        return next(iter(entry_points(group=self.group, name=name)), None)

    def _load(self, point: EntryPoint | None) -> Any:
        if point is None:
            raise self.wrong(
                f"expected an installed entry point of group {self.group}, found none: install it where the {self.node} runs"
            )
        try:
            return point.load()
        except Exception as error:  # likewise
            raise self.wrong(f"entry point {point.name} = {point.value}: {type(error).__name__}: {error}") from error
