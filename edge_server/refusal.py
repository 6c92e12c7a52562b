"""Why a request gets no answer: a gRPC status, a reason for the metrics, and a text for the one who asked."""

from __future__ import annotations

from typing import Literal

import grpc

from splitcore.errors import LatentbedError

Reason = Literal[
    "INVALID", "HANDSHAKE", "UNAUTHENTICATED", "FORBIDDEN", "REJECTED_RATE", "REJECTED_FULL", "REJECTED_DEADLINE",
    "REJECTED_DRAINING", "CANCELED", "BACKEND"
]  # fmt: skip
"""the label `reason` of nv_inference_request_failure; CANCELED and BACKEND are Triton's own"""


class Refused(LatentbedError):  # noqa: N818 - an answer, not a fault
    """A request that is not computed, or whose computation failed. A unary call ends with `code`; a stream says it in-band."""

    def __init__(self, code: grpc.StatusCode, reason: Reason, text: str, *, retry_ms: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.text = text
        self.retry_ms = retry_ms
        """when it may be asked again; None: not known"""

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        """Of a unary call that ends with it: gRPC's own retries wait as long."""
        return () if self.retry_ms is None else (("grpc-retry-pushback-ms", str(self.retry_ms)),)

    @property
    def in_band(self) -> str:
        """`CODE: text`, for ModelStreamInferResponse.error_message."""
        return f"{self.code.name}: {self.text}"


def invalid(text: str) -> Refused:
    """The request itself is wrong; sent again it will be refused again."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID", text)


def draining() -> Refused:
    """The server was told to stop."""
    return Refused(
        grpc.StatusCode.UNAVAILABLE,
        "REJECTED_DRAINING",
        "draining: the server is stopping and takes no new requests; half-close, and ask again when it is back",
    )
