"""The adversary's control plane: what it does, what it has done, its books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import StreamingResponse

from adversary.addons.attacker import Attacker
from adversary.behaviour import AttackBehaviour, Behaviour
from adversary.metrics import registry_of
from splitcore.control import NDJSON, control_app, journal_response
from splitcore.errors import LatentbedError
from splitcore.live.serve import serve_live
from splitcore.live.view import Live
from splitcore.telemetry.exposition import serve_metrics

if TYPE_CHECKING:
    from adversary.node import Adversary

RUN = r"^[A-Za-z0-9_.:+-]{1,96}$"


def build_control(adversary: Adversary, live: Live, *, token: str, names: frozenset[str]) -> FastAPI:
    app, with_token = control_app("latentbed adversary", token=token, names=names)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/status")
    async def status() -> dict[str, Any]:
        addon = adversary.relay.addon
        return {
            "upstream": adversary.relay.upstream,
            "behaviour": getattr(adversary.behaviour, "kind", None),
            "ledger": dict(adversary.counts),
            "unaccounted": adversary.relay.unaccounted,
            "held_now": adversary.held,
            "sessions": dict(addon.counts) if isinstance(addon, Attacker) else {},
        }

    @app.get("/behaviour")
    async def behaviour() -> Behaviour:
        return adversary.behaviour  # type: ignore[return-value]

    @app.put("/behaviour", dependencies=[with_token], responses={401: {}, 409: {}})
    async def behave(behaviour: Behaviour) -> dict[str, Any]:
        try:
            await adversary.behave(behaviour)
        except LatentbedError as error:
            raise HTTPException(409, str(error)) from error
        addon = adversary.relay.addon
        if not isinstance(addon, Attacker):
            return {"behaviour": behaviour.kind, "feedback": "none"}
        learned = dict(getattr(addon.attack, "learned", {}))
        said = {"behaviour": behaviour.kind, "feedback": addon.attack.feedback, "learned": learned}
        scale = adversary.workshop.scale(behaviour) if isinstance(behaviour, AttackBehaviour) else None
        return said if scale is None else {**said, "scale": scale}

    @app.get("/ledger", response_class=StreamingResponse, responses=NDJSON)
    async def ledger(run: Annotated[str | None, Query(pattern=RUN)] = None) -> StreamingResponse:
        return journal_response(*adversary.workshop.ledger_paths(run), run=run)

    @app.get("/sessions", response_class=StreamingResponse, responses=NDJSON)
    async def sessions(run: Annotated[str, Query(pattern=RUN)]) -> StreamingResponse:
        return journal_response(adversary.workshop.sessions_path(run))

    @app.get("/probes", response_class=StreamingResponse, responses=NDJSON)
    async def probes(run: Annotated[str, Query(pattern=RUN)]) -> StreamingResponse:
        return journal_response(adversary.workshop.probes_path(run))

    serve_metrics(app, registry_of(adversary.deeds, adversary.tracer))
    serve_live(app, live)
    return app
