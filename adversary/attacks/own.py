"""An attack of somebody's own, as a scenario names it: `module:Class`, or an entry point of group `latentbed.attacks`.

Here it is data; splitcore/own.py says when it becomes code.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adversary.attacks.base import Attack
from splitcore.errors import ScenarioError
from splitcore.own import PATTERN, Family

GROUP = "latentbed.attacks"
FAMILY = Family(group=GROUP, noun="attack", node="adversary", wrong=ScenarioError)
_NEEDED = ("kind", "feedback", "norms", "perturb")
_MEMBERS = {"feedback": ("scores", "label", "none"), "norms": ("linf", "l2")}


class OwnAttack(BaseModel):
    """All keys besides `kind` are the class's own arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Annotated[str, Field(max_length=200, json_schema_extra={"pattern": PATTERN})]
    """`module:Class`, or an entry point's name (which the JSON schema cannot know)"""

    @model_validator(mode="after")
    def _is_named(self) -> OwnAttack:
        if not FAMILY.knows(self.kind):
            raise ValueError(f"expected `module:Class` or an installed entry point of group {GROUP}, got {self.kind!r}")
        return self

    def build(self, trusted: Collection[str]) -> Attack:
        """The attack, its code run. `trusted`: modules, or files `path/module.py`. Raises ScenarioError."""
        return _checked(FAMILY.build(self.kind, self.model_extra or {}, trusted), self.kind)


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
