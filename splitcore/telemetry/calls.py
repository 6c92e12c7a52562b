"""gRPC calls as Prometheus knows them: go-grpc-prometheus' names, gRFC A66's buckets, one place for servers and clients.

Methods outside of the allow-list count as `other`: whoever calls made-up names makes no new series. Each number has one
writer, so nothing here takes a lock.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from typing import Any, Literal

import grpc
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.exposition import Histogram, counter
from splitcore.wire import oip

OTHER = "other"
OURS = (
    *(oip.path(name) for name in (*oip.UNARY_METHODS, oip.STREAM)),
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
"""methods that have series of their own"""
KINDS = {
    "unary_unary": "unary",
    "unary_stream": "server_stream",
    "stream_unary": "client_stream",
    "stream_stream": "bidi_stream",
}
"""go-grpc-prometheus' words"""
_CODES = {said: code for code in grpc.StatusCode for said in (code, code.value[0])}
"""a behaviour may say either"""
LABELS = ("grpc_type", "grpc_service", "grpc_method")


class Method:
    """What is known of all calls of one method."""

    def __init__(self, path: str, kind: str) -> None:
        service, _, method = path.strip("/").rpartition("/")
        self.path = path
        self.labels = (kind, service or OTHER, method)
        self.started = self.received = self.sent = self.received_bytes = self.sent_bytes = 0
        self.codes: Counter[str] = Counter()
        self.seconds = Histogram()


class Call:
    """One call that is open. A message is `got` or `put`; `end` is called once."""

    __slots__ = ("_calls", "_method", "began_ns", "peer", "put_messages", "read_messages")

    def __init__(self, calls: Calls, method: Method, peer: str) -> None:
        self._calls, self._method, self.peer = calls, method, peer
        self.began_ns = now_ns()
        self.read_messages = self.put_messages = 0

    @property
    def name(self) -> str:
        """Of its method."""
        return self._method.labels[2]

    def got(self, size: int) -> None:
        self.read_messages += 1
        self._method.received += 1
        self._method.received_bytes += size

    def put(self, size: int) -> None:
        self.put_messages += 1
        self._method.sent += 1
        self._method.sent_bytes += size

    def end(self, code: grpc.StatusCode) -> None:
        self._calls.open.discard(self)
        self._method.codes[code.name] += 1
        self._method.seconds.add((now_ns() - self.began_ns) / 1e9)


class Calls(Collector):
    """Of one side of a node: what it serves, or what it calls."""

    def __init__(self, side: Literal["server", "client"], methods: Iterable[str] = OURS) -> None:
        self._side, self._known = side, frozenset(methods)
        self.methods: dict[str, Method] = {}
        self.open: set[Call] = set()

    def begin(self, path: str, kind: str = "unary", peer: str = "") -> Call:
        """`kind`: unary, client_stream, server_stream or bidi_stream."""
        name = path if path in self._known else OTHER
        method = self.methods.get(name)
        if method is None:
            method = self.methods[name] = Method(name, kind if name != OTHER else OTHER)
        method.started += 1
        call = Call(self, method, peer)
        self.open.add(call)
        return call

    def unknown(self) -> None:
        """A call of a method that nobody serves."""
        self.begin(OTHER).end(grpc.StatusCode.UNIMPLEMENTED)

    def watched(self, path: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """The handler of one method, whose calls are counted from now on."""
        # not an interceptor: gRPC asks those in every call, and a small request would cost a tenth more
        name = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        behaviour, kind = getattr(handler, name), KINDS[name]
        # behaviours of single messages read and write nothing by their context
        seen = (lambda context, call: context) if kind == "unary" else _Watched
        asked = _counted if handler.request_streaming else _one

        async def answer(request: Any, context: Any) -> Any:
            call = self.begin(path, kind, context.peer())
            try:
                reply = await behaviour(asked(request, call), seen(context, call))
            except BaseException as error:
                call.end(_code(context, error))
                raise
            if reply is not None:
                call.put(_size(reply))
            call.end(_code(context))
            return reply

        async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
            call = self.begin(path, kind, context.peer())
            try:
                async for reply in behaviour(asked(request, call), seen(context, call)):
                    call.put(_size(reply))
                    yield reply
            except BaseException as error:
                call.end(_code(context, error))
                raise
            call.end(_code(context))

        made: grpc.RpcMethodHandler = getattr(grpc, f"{name}_rpc_method_handler")(
            generate if inspect.isasyncgenfunction(behaviour) else answer,
            handler.request_deserializer,
            handler.response_serializer,
        )
        return made

    def collect(self) -> Iterator[Metric]:
        side, methods = self._side, list(self.methods.values())
        started = counter(f"grpc_{side}_started_total", "Calls that began", LABELS)
        handled = counter(f"grpc_{side}_handled_total", "Calls that ended, by status", [*LABELS, "grpc_code"])
        received = counter(f"grpc_{side}_msg_received_total", "Messages received", LABELS)
        sent = counter(f"grpc_{side}_msg_sent_total", "Messages sent", LABELS)
        received_bytes = counter(f"grpc_{side}_msg_received_bytes_total", "Bytes of messages received", LABELS)
        sent_bytes = counter(f"grpc_{side}_msg_sent_bytes_total", "Bytes of messages sent", LABELS)
        seconds = HistogramMetricFamily(f"grpc_{side}_handling_seconds", "From a call's begin to its end", labels=LABELS)
        for method in methods:
            started.add_metric(method.labels, method.started)
            for code, count in method.codes.items():
                handled.add_metric([*method.labels, code], count)
            received.add_metric(method.labels, method.received)
            sent.add_metric(method.labels, method.sent)
            received_bytes.add_metric(method.labels, method.received_bytes)
            sent_bytes.add_metric(method.labels, method.sent_bytes)
            method.seconds.add_to(seconds, method.labels)
        yield from (started, handled, received, sent, received_bytes, sent_bytes, seconds)


class _Watched:
    """A servicer's context that counts the messages of its call."""

    def __init__(self, context: Any, call: Call) -> None:
        self._context, self._call = context, call
        self._read, self._write = context.read, context.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        message = await self._read()
        if message is not grpc.aio.EOF:
            self._call.got(_size(message))
        return message

    def write(self, message: Any) -> Awaitable[None]:
        self._call.put(_size(message))
        written: Awaitable[None] = self._write(message)
        return written


def _one(request: Any, call: Call) -> Any:
    call.got(_size(request))
    return request


async def _counted(requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
    """What the behaviour takes from the iterator."""
    async for message in requests:
        call.got(_size(message))
        yield message


def _size(message: Any) -> int:
    return len(message) if isinstance(message, bytes) else message.ByteSize()


def _code(context: Any, error: BaseException | None = None) -> grpc.StatusCode:
    """How a call ended: as its behaviour said, or by what it was ended."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        remaining = context.time_remaining()
        return grpc.StatusCode.DEADLINE_EXCEEDED if remaining is not None and remaining <= 0 else grpc.StatusCode.CANCELLED
    said = context.code()
    code = _CODES.get(said, grpc.StatusCode.OK)
    unsaid = error is not None and not isinstance(error, grpc.aio.AbortError) and code is grpc.StatusCode.OK
    return grpc.StatusCode.UNKNOWN if unsaid else code
