"""The Open Inference Protocol over HTTP, on the control plane: what gRPC answers, in JSON.

Reading and inference are as free as over gRPC: where the server wants tokens, so does this, and by the same scopes and rates.
Loading and unloading want the control plane's token. An inference
request may be JSON, or JSON with binary tensors behind it, compressed with gzip or deflate or not; so may its answer be.
Errors are `{"error": text}`. What a browser would need (CORS) is not here: other sites are refused.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import grpc
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field, ValidationError

from edge_server.access import SCOPES
from edge_server.models import Holder
from edge_server.refusal import Refused, invalid
from edge_server.service import InferenceService
from splitcore.control import UNDER_V2, problem
from splitcore.errors import WireError
from splitcore.frame import Reply
from splitcore.telemetry.clock import now_ns
from splitcore.wire import json_tensors, oip
from splitcore.wire.channel import MAX_MESSAGE_BYTES

LARGE_BODIES = {re.compile(rf"{UNDER_V2}models/[^/]+(/versions/[^/]+)?/infer"): MAX_MESSAGE_BYTES}
"""paths whose bodies may be as large as a gRPC message"""
WORTH_COMPRESSING = 1 << 10
GONE = 499
"""nginx's status of a request whose client closed its connection; for the log, if there is one"""

_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 412,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class Problem(BaseModel):
    error: str


class Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any")


class Server(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Metadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class Indexed(BaseModel):
    name: str
    version: str
    state: str
    reason: str


class IndexAsked(BaseModel, extra="forbid"):
    ready: bool = Field(False, description="only what is ready")


class Live(BaseModel):
    live: Literal[True] = True


class Ready(BaseModel):
    ready: bool


class Done(BaseModel):
    """Nothing more to say."""


class Change(BaseModel):
    parameters: dict[str, Any] = Field({}, description="none but unload_dependents, which changes nothing here")


_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "a request that is wrong",
        404: "no such model or version",
        412: "the caller holds another artefact",
        413: "a body above the bound, as it is or decompressed",
        415: "a Content-Encoding other than gzip and deflate",
        429: "the queue is full",
        500: "the tail failed on it",
        503: "unloaded, draining, or too much is being read at once",
        504: "its time ran out in the queue",
    }.items()
}
_NOT_READY: dict[int | str, dict[str, Any]] = {400: {"model": Ready}, 404: {"model": Ready}}


_INFERENCE = {
    "requestBody": {
        "required": True,
        "description": "the protocol's $inference_request, alone or with binary tensor data behind it",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def _body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a body that a route reads by itself."""
    return {"requestBody": {"content": {"application/json": {"schema": kind.model_json_schema()}}}}


def add_rest(app: FastAPI, service: InferenceService, with_token: Any) -> None:
    """The protocol's routes."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _refusal(request, error)

    @app.exception_handler(WireError)
    async def unreadable(request: Request, error: WireError) -> Response:
        return problem(request.url.path, 400, str(error))

    routes = APIRouter(prefix=UNDER_V2.rstrip("/"), tags=["Open Inference Protocol"], responses=_REFUSED)
    models, describe = service.models, service.describe

    def holder(request: Request) -> Holder:
        return Holder(models, request.headers.items())

    def scoped(method: str) -> Any:
        """`Depends` that wants a token with the scope of a gRPC method, where the server wants tokens."""

        def check(request: Request) -> None:
            service.access.bearer(request.headers.get("authorization")).check(SCOPES[method])

        return Depends(check)

    @routes.get("", dependencies=[scoped(oip.SERVER_METADATA)])
    async def server() -> Server:
        """Name, version, extensions."""
        return Server(**describe.server())

    @routes.get("/health/live")
    async def live() -> Live:
        """The process answers."""
        return Live()

    @routes.get("/health/ready", responses=_NOT_READY)
    async def ready(response: Response) -> Ready:
        """200 when requests are taken, 400 when not."""
        return _ready(service.accepting, response)

    @routes.get("/models/stats", dependencies=[scoped(oip.STATISTICS)])
    async def all_statistics() -> dict[str, Any]:
        """Of every model and version."""
        return describe.statistics("", "")

    @routes.post("/repository/index", dependencies=[scoped(oip.INDEX)], openapi_extra=_body_of(IndexAsked))
    async def index(request: Request) -> list[Indexed]:
        """Models and versions with their states."""
        asked = await _asked(IndexAsked, request)
        return [Indexed(**row) for row in describe.index(ready=asked.ready)]

    @routes.post("/repository/models/{name}/load", dependencies=[with_token], openapi_extra=_body_of(Change))
    async def load(request: Request, name: str) -> Done:
        """The model as the repository has it now; returns when it is served."""
        await service.change(oip.LOAD, name, "", (await _asked(Change, request)).parameters)
        return Done()

    @routes.post("/repository/models/{name}/unload", dependencies=[with_token], openapi_extra=_body_of(Change))
    async def unload(request: Request, name: str) -> Done:
        """No new requests for it; what was accepted is answered."""
        await service.change(oip.UNLOAD, name, "", (await _asked(Change, request)).parameters)
        return Done()

    async def metadata(request: Request, name: str, version: str = "") -> Metadata:
        """Inputs and outputs."""
        return Metadata(**dataclasses.asdict(describe.model(holder(request).find(name, version))))

    async def model_ready(request: Request, response: Response, name: str, version: str = "") -> Ready:
        """200 when the model is served and requests are taken, 404 when it is not served, 400 when none are."""
        return _ready(service.model_ready(name, version, holder(request)), response, 404 if service.accepting else 400)

    async def config(request: Request, name: str, version: str = "") -> dict[str, Any]:
        """Triton's model configuration."""
        return describe.config(holder(request).find(name, version))

    async def statistics(name: str, version: str = "") -> dict[str, Any]:
        """Triton's statistics."""
        return describe.statistics(name, version)

    async def infer(request: Request, name: str, version: str = "") -> Response:
        """JSON, or JSON with binary tensors behind it (Inference-Header-Content-Length)."""
        received_ns = now_ns()
        body = await decompressed(await request.body(), request.headers.get("content-encoding", ""))
        said = request.headers.get(json_tensors.HEADER_LENGTH)
        if said is not None and not (said.isascii() and said.isdecimal() and len(said) < 12):
            raise invalid(f"expected a number in {json_tensors.HEADER_LENGTH}, got {said[:40]!r}")
        message, binary = json_tensors.read_request(body, None if said is None else int(said), name, version)
        peer = "" if request.client is None else f"http {request.client.host}:{request.client.port}"
        who = service.access.bearer(request.headers.get("authorization"), peer)
        asking = asyncio.ensure_future(service.infer(message, holder(request), received_ns, who=who))
        if not await _stays(request, asking):
            return Response(status_code=GONE)  # nobody reads it
        job, outcome = asking.result()
        if isinstance(outcome, Refused):
            return _refusal(request, outcome)
        assert isinstance(outcome, Reply) and job is not None
        content, header_length = json_tensors.write_reply(outcome, binary)
        headers = {} if header_length is None else {json_tensors.HEADER_LENGTH: str(header_length)}
        kind = "application/json" if header_length is None else "application/octet-stream"
        encoding = wanted_encoding(request.headers)
        if encoding and len(content) > WORTH_COMPRESSING:
            content = await asyncio.to_thread(compressed, content, encoding)
            headers["Content-Encoding"] = encoding
        service.replied(job)
        return Response(content, media_type=kind, headers=headers)

    for of in ("/models/{name}", "/models/{name}/versions/{version}"):
        of_metadata, of_config, of_statistics = map(scoped, (oip.MODEL_METADATA, oip.CONFIG, oip.STATISTICS))
        routes.add_api_route(of, metadata, methods=["GET"], response_model=Metadata, dependencies=[of_metadata])
        routes.add_api_route(f"{of}/ready", model_ready, methods=["GET"], response_model=Ready, responses=_NOT_READY)
        routes.add_api_route(f"{of}/config", config, methods=["GET"], dependencies=[of_config])
        routes.add_api_route(f"{of}/stats", statistics, methods=["GET"], dependencies=[of_statistics])
        routes.add_api_route(f"{of}/infer", infer, methods=["POST"], openapi_extra=_INFERENCE)
    app.include_router(routes)


async def _stays(request: Request, asking: asyncio.Future[Any]) -> bool:
    """Whether the client is still there when that is done; it is cancelled when the client goes before."""
    leaving = asyncio.ensure_future(request.receive())  # behind a body comes the end of the connection and nothing else
    try:
        await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
        return asking.done()
    finally:
        leaving.cancel()
        asking.cancel()


def _refusal(request: Request, refusal: Refused) -> Response:
    later = None if refusal.retry_ms is None else {"Retry-After": str(math.ceil(refusal.retry_ms / 1000))}
    return problem(request.url.path, _STATUS.get(refusal.code, 500), refusal.text, later)


_Asked = TypeVar("_Asked", bound=BaseModel)


async def _asked(kind: type[_Asked], request: Request) -> _Asked:
    """A body that may be absent, and is JSON whatever its Content-Type: Triton's clients say none. Raises WireError."""
    try:
        return kind.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise WireError(f"expected JSON as /openapi.json describes it, got another ({place}: {first['msg']})") from error


def _ready(value: bool, response: Response, otherwise: int = 400) -> Ready:
    response.status_code = 200 if value else otherwise
    return Ready(ready=value)


async def decompressed(body: bytes, encoding: str) -> bytes:
    """A body of gzip or deflate, which is zlib's; at most as large as a message. Raises HTTPException, WireError."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise HTTPException(415, f"expected a Content-Encoding of gzip or deflate, got {encoding[:40]!r}")
    inflate = zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
    try:
        # zlib lets go of the interpreter, and stops at the bound whatever the body would become
        out = await asyncio.to_thread(inflate.decompress, body, MAX_MESSAGE_BYTES)
    except zlib.error as error:
        raise WireError(f"expected a body in {encoding}, got {len(body)} bytes that are none: {error}") from error
    if inflate.unconsumed_tail:
        raise HTTPException(413, f"expected a body that decompresses to at most {MAX_MESSAGE_BYTES} bytes, got more")
    if not inflate.eof or inflate.unused_data:
        raise WireError(f"expected a body in {encoding}, got one that is cut off, or has something behind its end")
    return out


def wanted_encoding(headers: Mapping[str, str]) -> str:
    """The first of gzip and deflate in Accept-Encoding, '' where it has neither."""
    asked = (part.partition(";")[0].strip().lower() for part in headers.get("accept-encoding", "").split(","))
    return next((encoding for encoding in asked if encoding in ("gzip", "deflate")), "")


def compressed(content: bytes, encoding: str) -> bytes:
    return gzip.compress(content, 1, mtime=0) if encoding == "gzip" else zlib.compress(content, 1)
