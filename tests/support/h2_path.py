"""Two peers of the library h2 with a splice between them, in one process and without a socket.

h2 checks what it receives against the windows that it granted and refuses what it may not send, so a wrong ledger fails here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from adversary.ledger import Ledger
from adversary.relay import Addon
from adversary.relay.passage import Books
from adversary.relay.splice import ANSWER, ASK, Splice
from splitcore.telemetry.spans import Telemetry

REQUEST = [
    (":method", "POST"), (":scheme", "http"), (":authority", "edge"), ("content-type", "application/grpc"), ("te", "trailers"),
]  # fmt: skip
Cut = Callable[[int], int]


def message(content: bytes, compressed: bool = False) -> bytes:
    """As gRPC puts it into DATA."""
    return compressed.to_bytes() + len(content).to_bytes(4) + content


class Peer:
    """One end. `got` is what came by stream, `ended` and `reset` streams of which the other side said so."""

    def __init__(self, client: bool) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.got: dict[int, bytearray] = {}
        self.headers: dict[int, list[dict[str, str]]] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.takes = True
        """whether it grants the sender what it has received"""
        self._unsent: dict[int, tuple[bytearray, Callable[[], None] | None]] = {}

    def receive(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            stream: int = getattr(event, "stream_id", 0) or 0
            if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived | h2.events.TrailersReceived):
                self.headers.setdefault(stream, []).append(dict(event.headers))
            elif isinstance(event, h2.events.DataReceived):
                self.got.setdefault(stream, bytearray()).extend(event.data)
                if self.takes and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(stream)
            elif isinstance(event, h2.events.StreamReset):
                self.reset[stream] = event.error_code
                self._unsent.pop(stream, None)

    def send(self, stream: int, content: bytes, then: Callable[[], None] | None = None) -> None:
        """As the windows allow; `then` is called behind it."""
        self._unsent[stream] = bytearray(content), then
        self.flush()

    def flush(self) -> None:
        for stream, (content, then) in list(self._unsent.items()):
            while content and (n := min(len(content), self.h2.local_flow_control_window(stream), 16_384)) > 0:
                self.h2.send_data(stream, bytes(content[:n]))
                del content[:n]
            if not content:
                del self._unsent[stream]
                if then is not None:
                    then()


class Line:
    """Client, splice, server."""

    def __init__(self, addon: Addon, folder: Path) -> None:
        self.addon = addon
        self.ledger = Ledger(folder / "queries.jsonl")
        self.books = Books(self.ledger, Telemetry("adversary", None), 64 << 20)
        self.splice = Splice(lambda: self.addon, self.books, lambda: None)
        self.client, self.server = Peer(True), Peer(False)

    def ask(self, stream: int, path: str, *more: tuple[str, str], end: bool = False) -> None:
        self.client.h2.send_headers(stream, [*REQUEST[:3], (":path", path), *REQUEST[3:], *more], end)

    def answer(self, stream: int, *fields: tuple[str, str]) -> None:
        self.server.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc"), *fields])

    def trailers(self, stream: int, status: int = 0) -> None:
        self.server.h2.send_headers(stream, [("grpc-status", str(status))], end_stream=True)

    def run(self, cut: Cut = lambda n: n) -> None:
        """Until nobody has anything to say. `cut` says how many of the next n bytes go in one piece."""
        for _ in range(10_000):
            moved = False
            for index, peer in ((ASK, self.client), (ANSWER, self.server)):
                peer.flush()
                data = peer.h2.data_to_send()
                while data:
                    n = max(1, min(cut(len(data)), len(data)))
                    self.splice.receive(index, data[:n])
                    data = data[n:]
                    moved = True
            for lane, peer in zip(self.splice.lanes, (self.server, self.client), strict=True):
                out: list[Any] = lane.out
                if out:
                    lane.out = []
                    peer.receive(b"".join(out))
                    moved = True
            self.splice.settle()
            if not moved:
                return
        raise AssertionError("expected silence, got talk without an end")
