"""A gRPC server that a path which is no text does not end.

grpcio (1.76 to 1.85, at least) decodes the path of a call in the task that takes all calls: one request with a byte above 0x7F
in `:path` raises UnicodeDecodeError there, and a server on asyncio closes its port for good. Methods that are registered are
compared by gRPC's core as bytes, so here all are, and of any other call nobody needs the name: it is UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
from grpc import _utilities
from grpc._cython import cygrpc
from grpc.aio import _server

from splitcore.wire.channel import Options


class Watch(Protocol):
    """Who counts a server's calls."""

    def watched(self, path: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """What is served in the handler's place."""

    def unknown(self) -> None:
        """A method was called that is not served."""


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    """Takes calls of methods that are not registered by refusing them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *arguments: Any) -> None:
        super().__init__(loop, *arguments)
        self.on_unknown: Callable[[], None] = lambda: None
        self._refused_on = loop
        self._refusing: set[asyncio.Task[None]] = set()

    async def _request_call(self) -> None:
        """Returns never: whoever waits for it would decode the path. Ends with the server, by an exception."""
        while True:
            call = await super()._request_call()
            self.on_unknown()
            context = cygrpc._ServicerContext(call, None, None, self._refused_on)
            refusing = self._refused_on.create_task(_refuse(context), name="unknown method")
            self._refusing.add(refusing)
            refusing.add_done_callback(self._refusing.discard)


async def _refuse(context: grpc.aio.ServicerContext) -> None:
    # the client may have gone, or the server ended, before it hears of it
    with contextlib.suppress(grpc.aio.BaseError, cygrpc.ExecuteBatchError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


class Server(_server.Server):  # type: ignore[misc]
    """grpc.aio's, all of whose methods are registered by name; a handler that chooses at run time is refused."""

    def __init__(
        self, options: Options, maximum_concurrent_rpcs: int | None, interceptors: Sequence[grpc.aio.ServerInterceptor],
        watch: Watch | None,
    ) -> None:  # fmt: skip
        self._loop = cygrpc.get_working_loop()
        every = _server._augment_channel_arguments(options, None)
        self._server = _Core(self._loop, None, (), tuple(interceptors), every, maximum_concurrent_rpcs)
        self._watch = watch
        if watch is not None:
            self._server.on_unknown = watch.unknown
        self._known: set[str] = set()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        for handler in generic_rpc_handlers:
            if not isinstance(handler, _utilities.DictionaryGenericHandler):
                raise TypeError(f"expected handlers of methods by name (grpc.method_handlers_generic_handler), got {handler!r}")
            self._register(handler._method_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        self._register({f"/{service_name}/{name}": handler for name, handler in method_handlers.items()})

    def _register(self, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """Generated code adds each method both ways, and gRPC's core takes it once."""
        new = {name: handler for name, handler in handlers.items() if name not in self._known}
        if self._watch is not None:
            new = {name: self._watch.watched(name, handler) for name, handler in new.items()}
        self._server.add_registered_method_handlers(new)
        self._known |= handlers.keys()


def aio_server(
    options: Options, *, max_calls: int | None = None, interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    watch: Watch | None = None,
) -> grpc.aio.Server:  # fmt: skip
    """A server of the running event loop. `max_calls`: at once; more are refused with RESOURCE_EXHAUSTED. `watch`: counts."""
    return Server(options, max_calls, interceptors, watch)
