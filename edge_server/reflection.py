"""Server reflection: a client that knows nothing of the protocol asks for its descriptors, and calls us by them.

Both versions of the service have the same messages; grpcurl asks for v1 first, older clients know v1alpha alone.
"""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

from splitcore.wire import oip
from splitcore.wire.public import public_pool

V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
V1 = "grpc.reflection.v1.ServerReflection"


def add_reflection(server: grpc.aio.Server) -> None:
    """Shows the protocol under its public names, health, and reflection itself."""
    pool = public_pool([health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR])
    servicer = aio.ReflectionServicer((oip.SERVICE, "grpc.health.v1.Health", V1ALPHA), pool=pool)
    methods = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
    server.add_generic_rpc_handlers(tuple(grpc.method_handlers_generic_handler(service, methods) for service in (V1, V1ALPHA)))
