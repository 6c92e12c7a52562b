"""A health check that costs a container little: `python -m splitcore.wire.probe HOST:PORT`. Imports grpc, never torch.

Ends with 0 when the server answers SERVING within 2 s, else with 1 and the reason.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def serving(target: str, timeout_s: float = 2.0) -> str | None:
    """None when `target` is SERVING, else why not."""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            return f"{target}: {error.code().name}: {error.details()}"
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        return f"{target}: expected SERVING, got {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}"
    return None


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m splitcore.wire.probe HOST:PORT", file=sys.stderr)
        return 2
    reason = serving(sys.argv[1])
    if reason:
        print(reason, file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
