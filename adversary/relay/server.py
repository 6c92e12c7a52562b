"""The relay's sockets: a connection to the server for each one of a client, and the bytes between them through a splice."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Any, cast

from adversary.ledger import Ledger
from adversary.relay.addon import Addon
from adversary.relay.frames import INTERNAL_ERROR, MAX_STREAM, NO_ERROR, H2Error, goaway
from adversary.relay.interception import Interception
from adversary.relay.passage import Books
from adversary.relay.splice import ANSWER, ASK, Splice
from splitcore.node import joined
from splitcore.telemetry.calls import Calls
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import oip
from splitcore.wire.channel import split_address
from splitcore.wire.form import Form
from splitcore.wire.tls import ALPN, ClientTls

log = logging.getLogger(__name__)

MAX_KEPT_BYTES = 256 << 20
"""of messages that are kept for addons, over all connections; more pass at once, and the books say `full`"""
MAX_CONNECTIONS = 4096
"""at this many the one without a call that has waited longest goes for a newcomer; where all have calls, the newcomer goes"""
SILENCE_S = 30.0
"""how long a client may be connected without a word: it has no connection to the server yet"""
CONNECT_S = 10.0
HIGH_WATER = 1 << 20
"""bytes that wait in a socket before the other side is not read any more"""
TLS_GOODBYE_S = 0.2
"""how long a peer has to answer the end of TLS: gRPC's do not"""
TLS_HANDSHAKE = 0x16
"""the first byte of TLS"""


class Relay:
    """In front of `upstream`. `addon` may be changed while it runs."""

    def __init__(
        self, upstream: str, addon: Addon, ledger: Ledger, telemetry: Telemetry, *,
        tls: ClientTls | None = None, intercepting: Interception | None = None, form: Form = oip, correlates: bool = True,
        calls: Calls | None = None,
    ) -> None:  # fmt: skip
        """`tls`: how the server is reached; None: in clear text. `intercepting`: clients speak TLS with the relay; None: clear
        text, and where a client speaks TLS its bytes pass as they are. `form`: what the frames look like; `correlates`: whether
        answers of the server's streams say by their ids whom they answer. `calls`: for the metrics."""
        self.addon = addon
        self.upstream = upstream
        self.tls, self.intercepting = tls, intercepting
        self.books = Books(ledger, telemetry, MAX_KEPT_BYTES, form=form, correlates=correlates, calls=calls or Calls("server"))
        self.pairs: dict[Pair, None] = {}
        """in the order in which they came"""
        self.turned_away = 0
        """connections closed because there were too many"""
        self._server: asyncio.Server | None = None

    @property
    def unaccounted(self) -> int:
        """Messages of the inference methods that passed without a place in the books."""
        return self.books.unaccounted

    @property
    def overheard(self) -> str | None:
        """The newest `authorization` that a client said where the relay could read it."""
        return self.books.overheard

    async def start(self, address: str) -> int:
        """Listens on `address`; the port. Raises OSError when it is taken."""
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        try:
            secure: dict[str, Any] = {}
            if self.intercepting is not None:
                secure = {"ssl": self.intercepting.context, "ssl_shutdown_timeout": TLS_GOODBYE_S}
            self._server = await loop.create_server(lambda: Pair(self).client, host, port, backlog=1024, **secure)
        except OSError as error:
            raise OSError(f"cannot listen on {address}: is the port in use? Choose another --listen ({error})") from error
        return int(self._server.sockets[0].getsockname()[1])

    def make_room(self) -> bool:
        """Closes the oldest connection that has no call; False where there is none. Told once: a crowd writes no log."""
        if not self.turned_away:
            log.warning("expected at most %d connections, got more: those without a call are closed", MAX_CONNECTIONS)
        self.turned_away += 1
        # those that are about to speak are young: a crowd that is idle goes before them
        idle = next((pair for pair in self.pairs if not pair.busy), None)
        if idle is not None:
            del self.pairs[idle]
            idle.close("RESOURCE_EXHAUSTED: too many connections")
        return idle is not None

    async def close(self, grace_s: float = 0.0) -> None:
        """No call begins any more; those that run have `grace_s` to end."""
        if self._server is not None:
            self._server.close()
        for pair in [*self.pairs]:
            pair.bow_out()
        end = time.monotonic() + grace_s
        while time.monotonic() < end and any(pair.splice.streams for pair in self.pairs):  # noqa: ASYNC110 once, at the end
            await asyncio.sleep(0.02)
        for pair in [*self.pairs]:
            pair.close("the relay ended")
        await asyncio.sleep(0)


class Side(asyncio.Protocol):
    """One of the two sockets of a pair."""

    def __init__(self, pair: Pair, index: int) -> None:
        self.index = index
        self.transport: asyncio.Transport | None = None
        self._pair = pair

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        peer: socket.socket | None = transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._pair.made(self)

    def data_received(self, data: bytes) -> None:
        self._pair.take(self.index, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pair.lost(self.index)

    def pause_writing(self) -> None:
        self._pair.other(self).read(False)

    def resume_writing(self) -> None:
        self._pair.other(self).read(True)

    def read(self, on: bool) -> None:
        if self.transport is not None and not self.transport.is_closing():
            (self.transport.resume_reading if on else self.transport.pause_reading)()

    def write(self, chunks: list[Any]) -> None:
        if self.transport is not None and not self.transport.is_closing():
            if len(chunks) == 1:
                self.transport.write(chunks[0])
            else:
                self.transport.writelines(chunks)

    def end(self, at_once: bool = False) -> None:
        if self.transport is not None:
            (self.transport.abort if at_once else self.transport.close)()


class Pair:
    """A client's connection and ours to the server, which begins with the client's first bytes."""

    def __init__(self, relay: Relay) -> None:
        self.client, self.server = Side(self, ASK), Side(self, ANSWER)
        self.splice = Splice(lambda: relay.addon, relay.books, self._flush)
        self._relay = relay
        self._early: list[bytes] = []
        """what the client said before there was a connection to the server"""
        self._opaque = False
        """TLS that is not ended here: it passes as it is"""
        self._settling = False
        """the books of answers are about to be written"""
        self._connecting: asyncio.Task[None] | None = None
        self._silence: asyncio.TimerHandle | None = None

    def made(self, side: Side) -> None:
        if side is self.server:
            return
        if len(self._relay.pairs) >= MAX_CONNECTIONS and not self._relay.make_room():
            self.client.end(at_once=True)
            return
        self._relay.pairs[self] = None
        host, port, *_ = (self.client.transport and self.client.transport.get_extra_info("peername")) or ("", 0)
        self.splice.peer = joined(host, port)
        self._silence = asyncio.get_running_loop().call_later(SILENCE_S, self.client.end)

    @property
    def busy(self) -> bool:
        """Whether a call runs on it, or it has begun to speak and is not connected yet."""
        return bool(self.splice.streams) or self._opaque or (self._connecting is not None and not self._connecting.done())

    def other(self, side: Side) -> Side:
        return self.server if side is self.client else self.client

    def take(self, index: int, data: bytes) -> None:
        if index == ASK and self.server.transport is None:
            self._early.append(data)
            if self._connecting is None:
                if self._silence is not None:
                    self._silence.cancel()
                self._opaque = data[0] == TLS_HANDSHAKE and self._relay.intercepting is None
                self._connecting = asyncio.create_task(self._connect(), name="relay connect")
            elif sum(map(len, self._early)) > HIGH_WATER:
                self.client.read(False)
            return
        self._pass(index, data)

    async def _connect(self) -> None:
        relay = self._relay
        host, port = split_address(relay.upstream)
        secure: dict[str, Any] = {}
        if relay.tls is not None and not self._opaque:
            asked = None
            if relay.intercepting is not None and self.client.transport is not None:
                asked = relay.intercepting.name_of(self.client.transport.get_extra_info("ssl_object"))
            name = relay.tls.name or asked or host
            secure = {"ssl": relay.tls.context([ALPN]), "server_hostname": name, "ssl_shutdown_timeout": TLS_GOODBYE_S}
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().create_connection(lambda: self.server, host, port, **secure)
        except (OSError, TimeoutError) as error:
            log.warning("no connection to the server at %s: %s", relay.upstream, error or "time ran out")
            # as a server that is down does it: the client's gRPC says UNAVAILABLE, and tries again as it would
            self.client.end(at_once=True)
            return
        early, self._early = self._early, []
        if early and not self.client_gone:
            self._pass(ASK, b"".join(early))
        self.client.read(True)

    @property
    def client_gone(self) -> bool:
        return self.client.transport is None or self.client.transport.is_closing()

    def _pass(self, index: int, data: bytes) -> None:
        if self._opaque:
            (self.server if index == ASK else self.client).write([data])
            return
        try:
            self.splice.receive(index, data)
            self._flush()
        except H2Error as error:
            self._abort(index, error)
        except Exception as error:
            log.exception("the relay failed, which ends a connection")
            self._abort(index, H2Error(INTERNAL_ERROR, repr(error)))

    def _abort(self, index: int, error: H2Error) -> None:
        log.warning("%s, from the %s: its connection ends", error, "server" if index else "client")
        self.splice.abort(error)
        self._flush()
        self.client.end()
        self.server.end()

    def _flush(self) -> None:
        ask, answer = self.splice.lanes
        if ask.out:
            chunks, ask.out = ask.out, []
            self.server.write(chunks)
        if answer.out:
            chunks, answer.out = answer.out, []
            self.client.write(chunks)
        if self.splice.unsettled and not self._settling:
            # uvloop sends at the end of this turn of the loop: the books of answers are written in the next
            self._settling = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._settling = False
        try:
            self.splice.settle()
        except Exception as error:
            log.exception("the relay failed, which ends a connection")
            self._abort(ANSWER, H2Error(INTERNAL_ERROR, repr(error)))

    def lost(self, index: int) -> None:
        """One socket is closed: the other one ends when it has sent what it has."""
        client = index == ASK
        self.splice.close("CANCELLED: the client went away" if client else "UNAVAILABLE: the connection to the server was lost")
        self._settle()
        if client:
            self._relay.pairs.pop(self, None)
            if self._silence is not None:
                self._silence.cancel()
            if self._connecting is not None:
                self._connecting.cancel()
        (self.server if client else self.client).end()

    def bow_out(self) -> None:
        """Tells the client to begin no more calls on this connection."""
        if not self._opaque and self.server.transport is not None:
            self.splice.lanes[ANSWER].out.append(goaway(MAX_STREAM, NO_ERROR))
            self._flush()

    def close(self, reason: str) -> None:
        self.splice.close(reason)
        self._flush()
        self.client.end()
        self.server.end()
