"""The edge's control plane: is it alive, is it ready, what does it serve, how much, and what has it computed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from edge_server.detectors.panel import Order
from edge_server.detectors.read import said
from edge_server.metrics import Metrics
from edge_server.models import Model as Served
from edge_server.queue import BatchSettings
from edge_server.rest import LARGE_BODIES, add_rest
from edge_server.service import InferenceService
from edge_server.trial import Trial
from splitcore.codec import CODECS, fit
from splitcore.control import NDJSON, control_app, journal_response
from splitcore.telemetry.exposition import serve_metrics

RUN = r"^[A-Za-z0-9_.:+-]{1,96}$"
"""a run's name, as the first word of a frame id"""


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    ready: bool
    reason: str = Field(description="empty when ready")


class Model(BaseModel):
    name: str
    version: str
    digest: str = Field(description="sha256 of the artefact's manifest, which names the hash of every file")
    handshake: str = Field(description="what a client sends as call metadata `latentbed-artefact`")
    approach: str
    cut: str
    latent_shape: list[int]
    classes: list[str]
    codec: str = Field(description="what the head's latents are sent with unless told otherwise")
    codecs: list[str] = Field(description="kinds of codec that this server decodes")
    outputs: list[Literal["scores", "label"]]
    device: str
    tail: str = Field(description="the form of the tail: eager, onnxruntime and so on")
    tails: list[Trial] = Field(description="the forms that were measured when it was loaded; none where one was asked for")
    threads: int
    ready: bool
    batching: BatchSettings


class Detector(BaseModel):
    settings: dict[str, Any] = Field(description="kind, action and whatever else it has")
    detected_rows: dict[str, int] = Field(description="since the start, by model and version")


class Detectors(BaseModel):
    detectors: list[Detector]
    order: Order | None = Field(description="what all of them do for now; null: each its own action")


class Begin(BaseModel):
    """What the detectors do from now on, everything forgotten that they have seen."""

    model_config = ConfigDict(extra="forbid")

    order: Order | None = Field(None, description="reject, flag or off, for all of them; null: each its own action")


class Models(BaseModel):
    models: list[Model]


def edge_app(
    *,
    service: InferenceService,
    metrics: Metrics,
    threads: int,
    settings: BatchSettings,
    labels_only: bool,
    log: Path,
    token: str,
    names: frozenset[str] = frozenset(),
) -> FastAPI:
    """What is served, what watches it, and the protocol over HTTP. Whatever changes something wants the token."""
    app, with_token = control_app("latentbed edge server", token=token, names=names, large=LARGE_BODIES)
    add_rest(app, service, with_token)

    def described(model: Served) -> Model:
        manifest = model.artefact.manifest
        return Model(
            name=manifest.name,
            version=model.version,
            digest=manifest.digest,
            handshake=manifest.handshake,
            approach=manifest.approach,
            cut=manifest.cut,
            latent_shape=list(manifest.latent.shape),
            classes=list(manifest.classes),
            codec=fit(manifest.codec, model.artefact.latent).name,
            codecs=[codec().kind for codec in CODECS],
            outputs=["label"] if labels_only else ["scores", "label"],
            device=model.tail.device,
            tail=model.tail.kind,
            tails=list(model.trials),
            threads=threads,
            ready=service.accepting,
            batching=settings,
        )

    @app.get("/healthz")
    async def healthz() -> Health:
        """The process answers."""
        return Health()

    @app.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz() -> Any:
        """The models are warm and new requests are taken; 503 when not."""
        body = Readiness(ready=service.accepting, reason=service.why_not)
        return JSONResponse(body.model_dump(), 200 if body.ready else 503)

    serve_metrics(app, metrics.registry)

    @app.get("/models")
    async def models() -> Models:
        """What is served, from which artefacts, on what, and how it is batched."""
        return Models(models=[described(model) for model in service.models])

    def watching() -> Detectors:
        watched = [(model, model.computer.panel) for model in service.models if model.computer.panel is not None]
        if not watched:
            return Detectors(detectors=[], order=None)
        detected = {f"{model.name}/{model.version}": model.counts.detected for model, _ in watched}
        first = watched[0][1]
        return Detectors(
            detectors=[
                Detector(settings=said(config), detected_rows={name: rows[config.kind] for name, rows in detected.items()})
                for config in first.configs
            ],
            order=first.order,
        )

    @app.get("/detectors")
    async def detectors() -> Detectors:
        """What watches the queries, what it does for now, and how much it has detected."""
        return watching()

    @app.put("/detectors", dependencies=[with_token], responses={400: {"description": "a body that is no JSON"}})
    def begin(body: Begin) -> Detectors:
        """All detectors of all models forget what they have seen: a new day, a new measurement."""
        for model in service.models:
            if model.computer.panel is not None:
                model.computer.panel.begin(body.order)
        return watching()

    @app.get("/log", response_class=StreamingResponse, responses=NDJSON)
    def server_log(run: Annotated[str, Query(pattern=RUN)]) -> StreamingResponse:
        """The server's log of one run, as newline-delimited JSON: what was computed, in that order."""
        return journal_response(log, run=run)

    return app
