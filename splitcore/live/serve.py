"""GET / is the live page, one file that needs nothing else; GET /live.json is what it draws.

Reading is free to whoever reaches the port, as all of the control plane's reading is. The page may run its own script and
ask its own node, and nothing else (Content-Security-Policy by hashes); what it shows came over the wire in part, and is
only ever put in as text.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

import orjson
from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

from splitcore.live.view import Live

HERE = Path(__file__).parent


@cache
def page() -> tuple[str, str]:
    """(the page, its Content-Security-Policy)."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("live.css", "live.js"))
    html = (HERE / "live.html").read_text(encoding="utf-8")

    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; style-src {allowed(style)}; script-src {allowed(script)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script), policy


def serve_live(app: FastAPI, live: Live) -> None:
    """Adds both to a node's control plane."""
    headers = {"Content-Security-Policy": page()[1], "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    @app.get("/live", response_class=HTMLResponse)
    async def watch() -> HTMLResponse:
        """The live page: docs/live.md."""
        return HTMLResponse(page()[0], headers=headers | {"Cache-Control": "no-cache"})

    @app.get("/live.json", responses={200: {"content": {"application/json": {}}}}, response_class=Response)
    async def now() -> Response:
        """What the live page draws."""
        body = orjson.dumps(live.look(), option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
