"""The control plane that every node has: FastAPI on the node's own event loop, closed to other sites and to strangers.

Reading is free to whoever reaches the port (127.0.0.1 unless told otherwise). Every change wants
`Authorization: Bearer <token>`, the token being in a file. Host and Origin are compared with the names under which the
node is known, so that a web page cannot reach it through the browser of whoever runs the testbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import re
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import h11
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from splitcore.wire.tls import ServerTls

MAX_BODY_BYTES = 1 << 20
MAX_BODIES_BYTES = 128 << 20
"""of all requests' bodies at once, where some may be large"""
UNDER_V2 = "/v2/"
"""paths of the Open Inference Protocol, which has a form of its own for errors"""
MAX_CONNECTIONS = 64
MAX_FAULTS = 20
"""mistakes of a body that are told"""
PATIENCE_S = 10.0
"""a request arrives whole within this time, or its connection is closed: idle sockets must not use up the limit"""
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_AUTHORITY = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"description": "a body that cannot be read"},
    401: {"description": "no token, or not the one of this node's token file"},
    403: {"description": "a foreign Origin"},
    413: {"description": f"a body above {MAX_BODY_BYTES} bytes"},
    421: {"description": "a foreign Host"},
}


def load_token(path: Path) -> str:
    """The token in `path`; a missing file is made, readable by its owner alone. Raises OSError, ValueError."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # written whole under another name first: who finds the file finds the token in it
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
            os.link(temporary, path)
        finally:
            temporary.unlink()
    token = path.read_text().strip()
    if len(token) < 16:
        raise ValueError(f"expected a token of 16 characters or more in {path}, got {len(token)}: delete it to make another")
    return token


def problem(path: str, status: int, detail: Any, headers: Mapping[str, str] | None = None) -> Response:
    """An error as the API of `path` says one. Everything but ASCII is escaped: JSON can carry what UTF-8 cannot."""
    of_protocol = f"{path}/".startswith(UNDER_V2)
    body = {"error": detail if isinstance(detail, str) else json.dumps(detail)} if of_protocol else {"detail": detail}
    return Response(json.dumps(body), status, media_type="application/json", headers=headers)


class Guard:
    """ASGI middleware: foreign Host or Origin is refused, and so is a body above the bound, however it is announced."""

    def __init__(self, app: ASGIApp, *, names: frozenset[str], large: Mapping[re.Pattern[str], int]) -> None:
        """`large`: bounds of the bodies on paths that may have more than others."""
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._large = large
        self._held = 0
        """bytes of bodies that are being read or worked on"""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"expected http, got {scope['type']}: the control plane has no other protocol")
        headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
        refusal = self._refusal(headers)
        body = bytearray()
        try:
            if refusal is not None:
                await problem(scope["path"], *refusal)(scope, receive, send)
            else:
                await self._serve(scope, receive, send, body)
        except h11.LocalProtocolError:
            # what followed on the connection was no request, and has been answered 400: nobody is there to answer any more
            pass
        finally:
            self._held -= len(body)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, body: bytearray) -> None:
        bound = next((size for path, size in self._large.items() if path.fullmatch(scope["path"])), MAX_BODY_BYTES)
        # The whole body before anything else: an error raised later, inside a route's `receive`, is anybody's to swallow.
        more = True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            chunk = event.get("body", b"")
            body += chunk
            self._held += len(chunk)
            more = event.get("more_body", False)
            if len(body) > bound:
                await problem(scope["path"], 413, f"expected a body of at most {bound} bytes")(scope, receive, send)
                return
            if self._held > MAX_BODIES_BYTES:
                detail = f"more than {MAX_BODIES_BYTES} bytes of requests are being read at once: ask again later"
                await problem(scope["path"], 503, detail)(scope, receive, send)
                return
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    def _refusal(self, headers: list[tuple[bytes, str]]) -> tuple[int, str] | None:
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or self._name(hosts[0]) not in self._names:
            return 421, f"expected Host to be one of {sorted(self._names)}, got {', '.join(hosts)[:100]!r}"
        for name, value in headers:
            # `null`, what a page without an origin sends, has no authority and is foreign as well
            if name == b"origin" and self._name(value.partition("://")[2]) not in self._names:
                return 403, f"expected no Origin or one of {sorted(self._names)}, got {value[:100]!r}"
        return None

    @staticmethod
    def _name(authority: str) -> str | None:
        match = _AUTHORITY.fullmatch(authority)
        return match[1].strip("[]").lower() if match else None


def control_app(
    title: str,
    *,
    token: str,
    names: frozenset[str] = frozenset(),
    large: Mapping[re.Pattern[str], int] = MappingProxyType({}),
) -> tuple[FastAPI, Any]:
    """(app, `Depends` for every route that changes something). `names`: hosts besides 127.0.0.1 and localhost.

    `large`: bounds of the bodies on paths that may have more than others.
    """
    app = FastAPI(title=title, docs_url=None, redoc_url=None, responses=_REFUSED)
    app.add_middleware(Guard, names=LOCAL_NAMES | names, large=large)
    expected = token.encode()

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> Response:
        # FastAPI's own answer repeats the input, and fails with 500 on what JSON can carry in but not out again: NaN
        # and lone surrogates, in names too. So no input, and everything but ASCII escaped.
        detail = [{key: fault[key] for key in ("type", "loc", "msg")} for fault in error.errors()[:MAX_FAULTS]]
        return problem(request.url.path, 422, detail)

    @app.exception_handler(StarletteHTTPException)
    async def fail(request: Request, error: StarletteHTTPException) -> Response:
        return problem(request.url.path, error.status_code, error.detail, error.headers)

    def with_token(bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> None:
        if bearer is None or not hmac.compare_digest(bearer.credentials.encode(), expected):
            raise HTTPException(
                401,
                "expected Authorization: Bearer <the token in this node's token file>",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return app, Depends(with_token)


NDJSON: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-ndjson": {}}}}
"""`responses` of a route that gives a journal"""


def journal_response(*paths: Path, run: str | None = None) -> StreamingResponse:
    """Journals as newline-delimited JSON, or their rows of one run; an absent one is an empty answer."""
    ours = b"" if run is None else f'"id":"{run}/'.encode()

    def chunks() -> Iterator[bytes]:
        for path in paths:
            if not path.exists():
                continue
            with path.open("rb") as file:
                while lines := file.readlines(1 << 18):
                    yield b"".join(line for line in lines if ours in line)

    return StreamingResponse(chunks(), media_type="application/x-ndjson")


class _Impatient(H11Protocol):
    """uvicorn's protocol, which alone would wait for ever for the rest of a request, and refuse newcomers meanwhile.

    At the limit the one goes that has kept us waiting longest, with its request or with reading its answer: a crowd that says
    nothing keeps nobody out. Where all are at work, a request more is answered 503.
    """

    def __init__(self, *arguments: Any, patience_s: float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._patience_s = patience_s
        self._deadline: asyncio.TimerHandle | None = None
        self._since = 0.0
        """when it began to keep us waiting"""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()
        if len(self.connections) >= MAX_CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._whole():
            self._relax()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        others = (other for other in self.connections if isinstance(other, _Impatient) and other is not self)
        idle = [other for other in others if other._keeps_us_waiting() and not other.transport.is_closing()]
        if idle:
            longest = min(idle, key=lambda other: other._since)
            # out of the count now: it is told that it is lost only after the newcomer's request
            self.connections.discard(longest)
            longest.transport.abort()

    def _keeps_us_waiting(self) -> bool:
        return self._deadline is not None or self.flow.write_paused

    def _whole(self) -> bool:
        return self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)

    def _expect(self) -> None:
        self._relax()
        if not self._whole() and not self.transport.is_closing():
            self._since = self.loop.time()
            self._deadline = self.loop.call_later(self._patience_s, self.transport.abort)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The node's main handles signals, for all that runs on its loop."""
        yield


@contextlib.asynccontextmanager
async def serving(
    app: FastAPI, host: str, port: int, *, patience_s: float = PATIENCE_S, tls: ServerTls | None = None
) -> AsyncIterator[int]:
    """Serves `app` on this event loop while the body runs; gives the port that was bound (port 0: any free one).

    In clear text without `tls`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # from here on a connection waits instead of being refused: a node says that it is ready as soon as we yield
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}; choose another --control") from error
    config = uvicorn.Config(
        app,
        http=partial(_Impatient, patience_s=patience_s),  # type: ignore[arg-type]
        ws="none",
        loop="none",
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=2,
        # those that were told to go are counted until they have gone
        limit_concurrency=2 * MAX_CONNECTIONS,
    )
    if tls is not None:
        config.ssl_certfile, config.ssl_keyfile = tls.certificate, str(tls.key)
        if tls.client_trust is not None:
            config.ssl_ca_certs, config.ssl_cert_reqs = str(tls.client_trust), ssl.CERT_REQUIRED
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name=f"control {app.title}")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
