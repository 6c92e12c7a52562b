"""In a scenario: a server that is none of ours in the edge's place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from splitcore.wire.described import EndpointConfig

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-mlserver"


class AnyServer(BaseModel):
    """A server of the Open Inference Protocol that runs already and serves the artefact's tail."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["endpoint"] = "endpoint"
    address: Annotated[str, Field(min_length=3)]
    """host:port of its gRPC"""
    endpoint: EndpointConfig
    """its model, as phone and adversary are told of it; what is left out they read from its metadata"""
    metrics: str | None = None
    """URL of its Prometheus metrics, where its own counts are read; None: by ModelStatistics, where it has that"""
    allow: tuple[str, ...] = ()
    """hosts outside private ranges that are yours to attack"""


class MLServer(BaseModel):
    """MLServer, started here in an environment of its own, with the artefact's tail in ONNX Runtime."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mlserver"] = "mlserver"
    environment: Path = ENVIRONMENT
    """made by `make mlserver`"""
    max_batch_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """MLServer's adaptive batching; 0: none"""
    max_batch_time: Annotated[float, Field(ge=0)] = 0.0
    """seconds that a batch waits for company"""


ForeignServer: TypeAlias = Annotated[AnyServer | MLServer, Field(discriminator="kind")]
