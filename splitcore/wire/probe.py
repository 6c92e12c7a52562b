"""A health check that costs a container little: `python -m splitcore.wire.probe HOST:PORT [TRUST [CERTIFICATE KEY]]`.

Imports grpc, never torch. With TRUST, authorities in PEM, it asks over TLS; with a certificate and its key over mTLS.

Ends with 0 when the server answers SERVING within 2 s, else with 1 and the reason.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitcore.errors import SecurityError
from splitcore.wire.channel import sync_channel
from splitcore.wire.tls import ClientTls, client_tls


def serving(target: str, timeout_s: float = 2.0, tls: ClientTls | None = None) -> str | None:
    """None when `target` is SERVING, else why not."""
    with sync_channel(target, tls=tls) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            return f"{target}: {error.code().name}: {error.details()}"
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        return f"{target}: expected SERVING, got {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}"
    return None


def main() -> int:
    if len(sys.argv) not in (2, 3, 5):
        print("usage: python -m splitcore.wire.probe HOST:PORT [TRUST [CERTIFICATE KEY]]", file=sys.stderr)
        return 2
    try:
        trust, certificate, key = (*map(Path, sys.argv[2:]), None, None, None)[:3]
        tls = client_tls(trust, certificate, key)
    except SecurityError as error:
        print(error, file=sys.stderr)
        return 1
    reason = serving(sys.argv[1], tls=tls)
    if reason:
        print(reason, file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
