"""Who asks, and what that one may: tokens with scopes and rates, certificates of mTLS, connections.

A file of tokens holds only their hashes. A client says its token as `authorization: Bearer <token>` in a call's metadata; in
clear text whoever is on the way reads it there and is that client from then on, so a token wants TLS around it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import grpc
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edge_server.refusal import Refused
from splitcore.errors import SecurityError
from splitcore.wire import oip
from splitcore.wire.server import Watch

Scope: TypeAlias = Literal["infer", "metadata", "statistics", "repository", "admin"]
AUTHORIZATION = "authorization"
FREE = frozenset({oip.path(oip.LIVE), oip.path(oip.READY), oip.path(oip.MODEL_READY)})
FREE_SERVICES = ("/grpc.health.v1.Health/",)
"""what says whether the server is well is for everybody: load balancers and health checks hold no token"""
LOOK_THEMSELVES = frozenset(map(oip.path, (oip.INFER, oip.STREAM, oip.LOAD, oip.UNLOAD)))
"""methods whose handlers ask who calls: inference knows model and rows, and changes take the control plane's token as well"""
SCOPES: dict[str, Scope] = {
    oip.SERVER_METADATA: "metadata", oip.MODEL_METADATA: "metadata", oip.CONFIG: "metadata", "ServerReflectionInfo": "metadata",
    oip.STATISTICS: "statistics", oip.INDEX: "repository",
}  # fmt: skip
"""by method, of those whose handlers do not look themselves; any other wants `admin`"""


class Token(BaseModel):
    """One client's entry in the file of tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:@+-]{1,96}$")]
    """who it is"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """of the token's text, in hexadecimal: `printf %s TOKEN | sha256sum`"""
    scopes: tuple[Scope, ...] = ("infer", "metadata")
    models: tuple[str, ...] | None = None
    """that it may ask; None: all"""
    rows_per_second: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """of its requests together; None: no limit"""
    burst: Annotated[float, Field(ge=1, le=1e9)] | None = None
    """rows at once after a rest; None: those of one second, or one row"""


TOKENS: TypeAdapter[list[Token]] = TypeAdapter(list[Token], config=ConfigDict(hide_input_in_errors=True))


def load_tokens(path: Path) -> list[Token]:
    """Of a JSON file, or a YAML one where PyYAML is installed. Raises SecurityError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SecurityError(f"expected a file of tokens at {path}: {error}") from error
    try:
        tokens = TOKENS.validate_python(json.loads(text) if path.suffix == ".json" else _yaml(text, path))
    except (ValueError, ValidationError) as error:
        raise SecurityError(f"{path} is not a list of tokens: {error}") from error
    for key in ("name", "sha256"):
        values = [getattr(token, key) for token in tokens]
        if len(set(values)) < len(values):
            raise SecurityError(f"expected tokens of different {key} in {path}, one stands there twice")
    return tokens


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise SecurityError(f"expected PyYAML to read {path}, it is not installed: write JSON, in a file *.json") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {error}") from error


class Bucket:
    """Rows that a client may ask now: fills at a rate, up to a bound. A request larger than it may go when it is full."""

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at_s = burst, now_s

    def take(self, rows: int, now_s: float) -> float:
        """0 when `rows` were taken, else the seconds until they could be."""
        self._level = min(self._burst, self._level + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        missing = min(rows, self._burst) - self._level
        if missing > 1e-9:
            return missing / self._rate
        self._level -= rows  # below 0 after a large request: the next ones wait the longer
        return 0.0


class Who:
    """One caller."""

    def __init__(
        self, identity: str, token: Token | None = None, bucket: Bucket | None = None, refusal: Refused | None = None
    ) -> None:
        """`refusal`: of somebody who is not known, and may nothing."""
        self.identity = identity
        """what it is called: its token's name, its certificate's, or its connection; fairness goes by it"""
        self._token, self._bucket, self._refusal = token, bucket, refusal

    def check(self, scope: Scope, model: str = "") -> None:
        """Raises Refused."""
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        token = self._token
        if token is None:
            return
        if scope not in token.scopes:
            raise _forbidden(f"expected a token with scope {scope}, that of {token.name} has {', '.join(token.scopes)}")
        if model and token.models is not None and model not in token.models:
            raise _forbidden(f"expected a token for model {model[:100]!r}, that of {token.name} is for others")

    def spend(self, rows: int, now_s: float | None = None) -> None:
        """Raises Refused when its rate does not allow these rows yet."""
        if self._bucket is None or self._token is None:
            return
        wait_s = self._bucket.take(rows, time.monotonic() if now_s is None else now_s)
        if wait_s:
            wait_ms = int(wait_s * 1e3) + 1
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "REJECTED_RATE",
                f"{self._token.name} may ask {self._token.rows_per_second:g} rows a second: "
                f"ask these {rows} again in {wait_ms} ms",
                retry_ms=wait_ms,
            )


class Access:
    """Finds out who calls."""

    def __init__(
        self, tokens: Sequence[Token] | None = None, *, certificates: bool = True, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`tokens` None: nobody needs one. `certificates`: clients may show one, so each call is asked for it."""
        self._certificates = certificates
        self.needed = tokens is not None
        self._known: dict[str, tuple[Token, Bucket | None]] = {}
        for token in tokens or ():
            rate = token.rows_per_second
            bucket = None if rate is None else Bucket(rate, token.burst or max(1.0, rate), now_s())
            self._known[token.sha256] = (token, bucket)

    def of(self, context: grpc.aio.ServicerContext) -> Who:
        """Whoever makes this call."""
        if self.needed:
            return self.bearer(dict(context.invocation_metadata() or ()).get(AUTHORIZATION))
        names = (context.auth_context().get("x509_common_name") or ()) if self._certificates else ()
        return Who(f"certificate {names[0].decode(errors='replace')}" if names else str(context.peer()))

    def bearer(self, authorization: str | bytes | None, peer: str = "") -> Who:
        """Whose token this is, given as `Bearer <token>`; where no tokens are needed, whoever `peer` is."""
        if not self.needed:
            return Who(peer)
        kind, _, text = str(authorization or "").partition(" ")
        digest = hashlib.sha256(text.strip().encode()).hexdigest()
        found = None
        # every one is compared, and as slowly whether it fits or not
        for known in self._known:
            if hmac.compare_digest(known, digest):
                found = self._known[known]
        if found is None or kind.lower() != "bearer":
            refusal = Refused(
                grpc.StatusCode.UNAUTHENTICATED,
                "UNAUTHENTICATED",
                "expected call metadata `authorization: Bearer <token>` with a token that this server knows",
            )
            return Who("", refusal=refusal)
        return Who(found[0].name, *found)


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls before their handlers see them, but those of LOOK_THEMSELVES."""

    def __init__(self, access: Access, watch: Watch) -> None:
        """`watch`: of the calls that are refused too."""
        self._access, self._watch = access, watch

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        method = details.method
        if method in FREE or method.startswith(FREE_SERVICES) or method in LOOK_THEMSELVES:
            return await continuation(details)
        try:
            who = self._access.bearer(dict(details.invocation_metadata).get(AUTHORIZATION))
            who.check(SCOPES.get(method.rpartition("/")[2], "admin"))
        except Refused as error:
            refusal = error.with_traceback(None)
        else:
            return await continuation(details)

        async def refuse(_: Any, context: grpc.aio.ServicerContext) -> None:
            await context.abort(refusal.code, refusal.text)

        handler = await continuation(details)
        if handler is not None and handler.request_streaming:
            return self._watch.watched(method, grpc.stream_stream_rpc_method_handler(refuse))
        return self._watch.watched(method, grpc.unary_unary_rpc_method_handler(refuse))


def _forbidden(text: str) -> Refused:
    return Refused(grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN", text)
