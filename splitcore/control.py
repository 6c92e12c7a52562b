"""The control plane that every node has: FastAPI on the node's own event loop, closed to other sites and to strangers.

Reading is free to whoever reaches the port (127.0.0.1 unless told otherwise). Every change wants `Authorization: Bearer
<token>`, the token being in a file. Host and Origin are compared with the names under which the node is known, so that a
web page cannot reach it through the browser of whoever runs the testbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse

MAX_BODY_BYTES = 1 << 20
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


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


class Guard:
    """ASGI middleware: foreign Host or Origin is refused, a body above the bound is cut off."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
        refusal = self._refusal(headers)
        if refusal is not None:
            await JSONResponse({"detail": refusal[1]}, refusal[0])(scope, receive, send)
            return
        taken = 0

        async def bounded() -> dict[str, Any]:
            nonlocal taken
            event = await receive()
            taken += len(event.get("body", b""))
            if taken > MAX_BODY_BYTES:
                raise HTTPException(413, f"expected a body of at most {MAX_BODY_BYTES} bytes")
            return event

        await self._app(scope, bounded, send)

    def _refusal(self, headers: list[tuple[bytes, str]]) -> tuple[int, str] | None:
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or self._name(f"//{hosts[0]}") not in self._names:
            return 421, f"expected Host to be one of {sorted(self._names)}, got {', '.join(hosts)[:100]!r}"
        for name, value in headers:
            if name == b"origin" and self._name(value) not in self._names:
                return 403, f"expected no Origin or one of {sorted(self._names)}, got {value[:100]!r}"
            if name == b"content-length" and not (value.isascii() and value.isdecimal() and int(value[:12]) <= MAX_BODY_BYTES):
                return 413, f"expected a body of at most {MAX_BODY_BYTES} bytes"
        return None

    @staticmethod
    def _name(url: str) -> str | None:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            return None
        return parts.hostname


def control_app(title: str, *, token: str, names: frozenset[str] = frozenset()) -> tuple[FastAPI, Any]:
    """(app, `Depends` for every route that changes something). `names`: hosts besides 127.0.0.1 and localhost."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, names=LOCAL_NAMES | names)

    def with_token(authorization: Annotated[str | None, Header()] = None) -> None:
        expected = f"Bearer {token}".encode()
        if not hmac.compare_digest((authorization or "").encode("utf-8", "surrogateescape"), expected):
            raise HTTPException(401, "expected Authorization: Bearer <the token in this node's token file>",
                                headers={"WWW-Authenticate": "Bearer"})  # fmt: skip

    return app, Depends(with_token)


def journal_response(path: Path) -> StreamingResponse:
    """A journal as newline-delimited JSON; an absent one is an empty answer."""

    def chunks() -> Iterator[bytes]:
        if path.exists():
            with path.open("rb") as file:
                while chunk := file.read(1 << 18):
                    yield chunk

    return StreamingResponse(chunks(), media_type="application/x-ndjson")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The node's main handles signals, for all that runs on its loop."""
        yield


@contextlib.asynccontextmanager
async def serving(app: FastAPI, host: str, port: int) -> AsyncIterator[int]:
    """Serves `app` on this event loop while the body runs; gives the port that was bound (port 0: any free one)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}; choose another --control") from error
    server = _Server(
        uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=2, limit_concurrency=64, loop="none")
    )
    task = asyncio.create_task(server.serve(sockets=[listener]), name=f"control {app.title}")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
