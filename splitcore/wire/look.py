"""What a foreign server says of itself and of one model, asked once before the first frame."""

from __future__ import annotations

import time

import grpc

from splitcore.errors import HandshakeError
from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.bounds import fields
from splitcore.wire.described import Dialect, EndpointConfig
from splitcore.wire.endpoint import Endpoint

TIMEOUT_S = 10.0
RETRY_S = 0.25
CONFIG = "ModelConfig"
MAX_BATCH_SIZE = 4
"""number of `max_batch_size` in Triton's model configuration, the answer's field 1"""
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def look(channel: grpc.Channel, config: EndpointConfig, *, patience_s: float = TIMEOUT_S) -> Endpoint:
    """Waits up to `patience_s` for a server that is not there yet, or has not loaded the model.

    Raises HandshakeError where nobody answers, or what is served is not what `config` names.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            return look_once(channel, config)
        except grpc.RpcError as error:
            refusal = f"{error.code().name}: {error.details()}"
            if time.monotonic() < until and error.code() in (*_AGAIN, grpc.StatusCode.NOT_FOUND):
                time.sleep(RETRY_S)
                continue
            raise HandshakeError(
                f"expected metadata of model {config.model!r} {config.version}, the server said {refusal[:300]}: "
                "give the name of a model that it serves, and the address of its gRPC port"
            ) from error


def look_once(channel: grpc.Channel, config: EndpointConfig) -> Endpoint:
    """Raises grpc.RpcError, HandshakeError."""
    said = _ask(channel, oip.SERVER_METADATA, b"")
    server = pb.ServerMetadataResponse() if said is None else pb.ServerMetadataResponse.FromString(said)
    about = oip.pack_model_name(config.model, config.version)
    described = _ask(channel, oip.MODEL_METADATA, about)
    metadata = oip.ModelMetadata(config.model) if described is None else oip.unpack_model_metadata(described)
    return Endpoint(
        config, metadata, dialect=config.dialect or _dialect(channel, server.name),
        server=f"{server.name} {server.version}".strip(),
        max_batch_size=_max_batch_size(_ask(channel, CONFIG, about, least=True)),
    )  # fmt: skip


def _ask(channel: grpc.Channel, method: str, message: bytes, *, least: bool = False) -> bytes | None:
    """None where the server has no such method; at `least`, where it gives nothing for any reason."""
    try:
        reply: bytes = channel.unary_unary(oip.path(method))(message, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED or least:
            return None
        raise
    return reply


def _dialect(channel: grpc.Channel, server: str) -> Dialect:
    """MLServer by its name: its answers cannot be told before there is one. Others by whether a stream without a frame ends."""
    if server == "mlserver":
        return "mlserver"
    try:
        for _ in channel.stream_stream(oip.path(oip.STREAM))(iter(()), timeout=TIMEOUT_S):
            pass
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return "unary"
    return "triton"


def _max_batch_size(config: bytes | None) -> int:
    """0 where it does not say, and for a model that takes no batches."""
    for number, start, end in fields(config or b""):
        if number == 1:
            for inner, begin, stop in fields((config or b"")[start:end]):
                if inner == MAX_BATCH_SIZE:
                    return sum((byte & 0x7F) << 7 * n for n, byte in enumerate((config or b"")[start + begin : start + stop]))
    return 0


def counted(channel: grpc.Channel, model: str) -> tuple[int, int] | None:
    """(requests, rows) that a server says it answered since it started; None where it has no ModelStatistics."""
    said = _ask(channel, "ModelStatistics", oip.pack_model_name(model), least=True)
    if said is None:
        return None
    every = pb.ModelStatisticsResponse.FromString(said).model_stats
    return sum(int(one.inference_stats.success.count) for one in every), sum(int(one.inference_count) for one in every)
