"""Why a request gets no answer: a gRPC status, a reason for the metrics, and a text for the one who asked."""

from __future__ import annotations

from typing import Literal

import grpc

from splitcore.errors import LatentbedError

Reason = Literal[
    "INVALID", "HANDSHAKE", "UNAUTHENTICATED", "FORBIDDEN", "REJECTED_RATE", "REJECTED_FULL", "REJECTED_DEADLINE",
    "REJECTED_DRAINING", "REJECTED_DETECTED", "CANCELED", "BACKEND"
]  # fmt: skip
"""the label `reason` of nv_inference_request_failure; CANCELED and BACKEND are Triton's own"""

_MOST_MS = 60_000


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


def detected() -> Refused:
    """Of a request with no row that a detector let through. Which one it was, and why, stands in the server's log alone."""
    return Refused(
        grpc.StatusCode.PERMISSION_DENIED,
        "REJECTED_DETECTED",
        "rejected: a detector took this for an attack's query; it was not computed, and asked again it is rejected again",
    )


def draining() -> Refused:
    """The server was told to stop."""
    return Refused(
        grpc.StatusCode.UNAVAILABLE,
        "REJECTED_DRAINING",
        "draining: the server is stopping and takes no new requests; half-close, and ask again when it is back",
    )


def full(why: str, drained_ns: float | None, status: Literal["grpc", "triton"]) -> Refused:
    """No room in the queue, which will be empty after `drained_ns` where that can be said."""
    return Refused(
        grpc.StatusCode.UNAVAILABLE if status == "triton" else grpc.StatusCode.RESOURCE_EXHAUSTED,
        "REJECTED_FULL",
        f"Exceeds maximum queue size: {why}: ask again later, or with fewer rows",
        retry_ms=None if drained_ns is None else min(max(1, round(drained_ns / 1e6)), _MOST_MS),
    )


def too_late(why: str, allowed_us: int, status: Literal["grpc", "triton"]) -> Refused:
    """Its answer would come after its deadline. Asked again it is a new request with a new deadline: no word on when."""
    return Refused(
        grpc.StatusCode.UNAVAILABLE if status == "triton" else grpc.StatusCode.DEADLINE_EXCEEDED,
        "REJECTED_DEADLINE",
        f"Request timeout expired: {why}, allowed were {allowed_us} us; it was not computed",
    )
