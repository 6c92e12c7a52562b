"""What an operator says of a foreign endpoint, by options or in a file of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError

Dialect: TypeAlias = Literal["triton", "mlserver", "unary"]
"""of streams: Triton's, MLServer's (bare responses, all with the first one's id, in order), or no streams"""
Reads: TypeAlias = Literal["auto", "scores", "labels"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EndpointConfig:
    """What an operator may say of a foreign endpoint; the rest its metadata and its traffic say."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    version: str = ""
    """empty: the server's choice"""
    input: str = ""
    """the one that is attacked; empty: the only one"""
    output: str = ""
    """the one that answers; empty: the first that looks like scores, and the first that looks like labels"""
    reads: Reads = "auto"
    """as what the output is read; auto: floats [k, classes] are scores, whole numbers or texts [k] or [k, 1] labels"""
    dialect: Dialect | None = None
    """None: as it is found out"""
    batched: bool | None = None
    """whether the first dimension counts rows; None: where the metadata says -1 or 1 for it"""
    max_rows: Annotated[int, Field(ge=1, le=4096)] | None = None
    """of one request; None: as the server's configuration says, where it says so"""
    classes: Annotated[int, Field(ge=2)] | None = None
    """None: as the metadata says"""
    low: Annotated[float, Field(allow_inf_nan=False)] | None = None
    high: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """the range of the input's values; None: as a recording has it"""
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """their standard deviation; None: as a recording has it"""

    @model_validator(mode="after")
    def _fits(self) -> EndpointConfig:
        if (self.low is None) != (self.high is None) or (
            self.low is not None and self.high is not None and self.low >= self.high
        ):
            raise ValueError(f"expected both of low and high, low < high, got {self.low} and {self.high}")
        return self


def described(file: Path | None, options: Mapping[str, Any] | None = None) -> EndpointConfig | None:
    """The file's description with the options over it; None where neither says anything. Raises ScenarioError."""
    said: dict[str, Any] = {}
    try:
        if file is not None:
            said = json.loads(file.read_bytes())
        said = {**said, **(options or {})}
        return TypeAdapter(EndpointConfig).validate_python(said) if said else None
    except OSError as error:
        raise ScenarioError(f"expected a description of an endpoint at {file}: {error.strerror}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False))
        raise ScenarioError(f"{file or 'the options'}: expected a description of an endpoint, got {said}: {wrong}") from error
    except (ValueError, TypeError) as error:
        raise ScenarioError(f"{file}: expected a description of an endpoint in JSON, got something else: {error}") from error
