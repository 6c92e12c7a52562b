"""A detector of somebody's own: `module:Class`, or an entry point of group `latentbed.detectors` (splitcore/own.py)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_server.detectors.base import Action, DetectorConfig
from splitcore.errors import ScenarioError
from splitcore.own import PATTERN, Family

GROUP = "latentbed.detectors"
FAMILY = Family(group=GROUP, noun="detector", node="edge server", wrong=ScenarioError)


class OwnDetector(BaseModel):
    """All keys besides `kind` are the class's own arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Annotated[str, Field(max_length=200, json_schema_extra={"pattern": PATTERN})]
    """`module:Class`, or an entry point's name (which the JSON schema cannot know)"""

    @model_validator(mode="after")
    def _is_named(self) -> OwnDetector:
        if not FAMILY.knows(self.kind):
            raise ValueError(f"expected `module:Class` or an installed entry point of group {GROUP}, got {self.kind!r}")
        return self

    def build(self, trusted: Collection[str]) -> DetectorConfig:
        """Its settings as an object of its class, whose code is run. Raises ScenarioError."""
        made = FAMILY.build(self.kind, self.model_extra or {}, trusted)
        missing = [name for name in ("kind", "action", "for_model") if not hasattr(made, name)]
        if missing:
            raise ScenarioError(f"detector {self.kind} has no {', '.join(missing)}: expected kind, action, for_model")
        if made.action not in get_args(Action):
            raise ScenarioError(f"detector {self.kind}: expected action of {', '.join(get_args(Action))}, got {made.action!r}")
        built: DetectorConfig = made
        return built
