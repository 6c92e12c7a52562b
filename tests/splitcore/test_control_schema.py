"""Schemathesis reads a control API's own schema and tries to break what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import schemathesis
from fastapi import FastAPI, HTTPException
from fastapi import Path as InPath
from hypothesis import HealthCheck, settings
from pydantic import BaseModel, ConfigDict, Field
from schemathesis.specs.openapi.checks import allow_header_conformance, positive_data_acceptance

from splitcore.control import control_app, journal_response

TOKEN = "a token of this test"


class Behaviour(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["pass", "hold"]
    budget: Annotated[int, Field(ge=0, le=10_000)] = 0


def make_app() -> FastAPI:
    app, with_token = control_app("a node", token=TOKEN)
    state = {"behaviour": Behaviour(kind="pass")}

    @app.get("/behaviour")
    async def behaviour() -> Behaviour:
        return state["behaviour"]

    @app.put("/behaviour", dependencies=[with_token])
    async def change(behaviour: Behaviour) -> Behaviour:
        state["behaviour"] = behaviour
        return behaviour

    @app.get("/passes/{run}", responses={404: {"description": "no such run"}})
    async def one(run: Annotated[str, InPath(pattern=r"^[a-z0-9]{1,20}$")]) -> dict[str, str]:
        if run != "known":
            raise HTTPException(404, "no such run")
        return {"run": run}

    @app.get("/log", response_model=None, responses={200: {"content": {"application/x-ndjson": {}}}})
    async def log() -> Any:
        return journal_response(Path("/nonexistent"))

    return app


schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(), headers={"Host": "localhost"})


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_what_the_schema_promises(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(
        headers={"Host": "localhost", "Authorization": f"Bearer {TOKEN}"},
        # Starlette's 405 names the first method of a path alone; and JSON Schema's integers include 3.0, which strict
        # models refuse (lax ones take `false` for 0)
        excluded_checks=[allow_header_conformance, positive_data_acceptance],
    )


@schema.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_without_the_token_changes_anything(case: schemathesis.Case[Any]) -> None:
    case.headers.pop("Authorization", None)
    answer = case.call(headers={"Host": "localhost"})
    assert answer.status_code < 500
    if case.method == "PUT":
        assert answer.status_code >= 400
