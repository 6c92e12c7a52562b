"""An attack of somebody's own, as a scenario names it: `module:Class`, or an entry point of group `latentbed.attacks`.

Here it is data. It becomes code in the adversary's process alone, and only code that its operator allowed: a module or a file
that was named with `--trust`, or a package that was installed with the entry point.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adversary.attacks.base import Attack
from splitcore.errors import ScenarioError
from splitcore.trust import FACTORY, own_code

GROUP = "latentbed.attacks"
_PLAIN = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
_NEEDED = ("kind", "feedback", "norms", "perturb")
_MEMBERS = {"feedback": ("scores", "label", "none"), "norms": ("linf", "l2")}


class OwnAttack(BaseModel):
    """All keys besides `kind` are the class's own arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Annotated[str, Field(max_length=200, json_schema_extra={"pattern": f"^{_PLAIN}:[A-Za-z_][A-Za-z0-9_]*$"})]
    """`module:Class`, or an entry point's name (which the JSON schema cannot know)"""

    @model_validator(mode="after")
    def _is_named(self) -> OwnAttack:
        if not is_own(self.kind):
            raise ValueError(f"expected `module:Class` or an installed entry point of group {GROUP}, got {self.kind!r}")
        return self

    def build(self, trusted: Collection[str]) -> Attack:
        """The attack, its code run. `trusted`: modules, or files `path/module.py`. Raises ScenarioError."""
        if ":" in self.kind:
            made = own_code(self.kind, trusted, noun="attack", node="adversary", wrong=ScenarioError)
        else:
            made = _load(_entry_point(self.kind))
        arguments = dict(self.model_extra or {})
        try:
            attack: Any = made(**arguments)
        except Exception as error:  # anything may come out of somebody's own code; the message keeps what it was
            raise ScenarioError(
                f"attack {self.kind} cannot be built from {arguments}: {type(error).__name__}: {error}"
            ) from error
        return _checked(attack, self.kind)


def is_own(kind: str) -> bool:
    """Whether `kind` may name somebody's own attack; nothing is imported to find out."""
    return re.fullmatch(FACTORY, kind) is not None or _entry_point(kind) is not None


def _entry_point(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=name)), None)


def _load(point: EntryPoint | None) -> Any:
    if point is None:
        raise ScenarioError(
            f"expected an installed entry point of group {GROUP}, found none: install it where the adversary runs"
        )
    try:
        return point.load()
    except Exception as error:  # likewise
        raise ScenarioError(f"entry point {point.name} = {point.value}: {type(error).__name__}: {error}") from error


def _checked(attack: Any, kind: str) -> Attack:
    """What the session relies on, looked at once, so that a slip has its name before the first frame is held."""
    missing = [name for name in _NEEDED if not hasattr(attack, name)]
    if missing:
        raise ScenarioError(f"attack {kind} has no {', '.join(missing)}: expected {', '.join(_NEEDED)}")
    for name, members in _MEMBERS.items():
        value = getattr(attack, name)
        values = value if name == "norms" else (value,)
        if not values or isinstance(values, str) or any(v not in members for v in values):
            raise ScenarioError(f"attack {kind}: expected {name} of {', '.join(members)}, got {value!r}")
    checked: Attack = attack
    return checked
