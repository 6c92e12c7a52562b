"""The other end: takes every node's spans into a journal, and answers what time it is."""

from __future__ import annotations

import threading
from pathlib import Path

import orjson
import zmq

from splitcore.journal import Journal
from splitcore.telemetry.clock import Offset, host_identity, now_ns

MAX_RECORD_BYTES = 64 << 10


class Collector:
    """Runs in a thread of its own until closed. `path` gets every record of every node, in order of arrival."""

    def __init__(self, path: Path, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.received = self.malformed = 0
        self.offsets: dict[str, Offset] = {}
        """by node: what to add to its clock to get ours"""
        self.dropped: dict[str, int] = {}
        """by node: spans that it dropped, known once it has said goodbye"""
        self._journal = Journal(path)
        self._context = zmq.Context()
        self._spans: zmq.Socket[bytes] = self._context.socket(zmq.PULL)
        self._clock: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        for socket in (self._spans, self._clock):
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_RECORD_BYTES)
            socket.setsockopt(zmq.LINGER, 0)
        self.port = self._bind(host, port)
        self.endpoint = f"tcp://{host}:{self.port}"
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="telemetry-collector", daemon=True)
        self._thread.start()

    def _bind(self, host: str, port: int | None) -> int:
        """Two neighbouring ports: spans on the first, the clock on the second. Raises zmq.ZMQError when taken."""
        if port is not None:
            self._spans.bind(f"tcp://{host}:{port}")
            self._clock.bind(f"tcp://{host}:{port + 1}")
            return port
        for _ in range(50):
            port = self._spans.bind_to_random_port(f"tcp://{host}")
            try:
                self._clock.bind(f"tcp://{host}:{port + 1}")
                return port
            except zmq.ZMQError:
                self._spans.unbind(f"tcp://{host}:{port}")
        raise OSError(f"found no two neighbouring free ports on {host}")

    def _serve(self) -> None:
        host = host_identity()
        poller = zmq.Poller()
        poller.register(self._spans, zmq.POLLIN)
        poller.register(self._clock, zmq.POLLIN)
        while not self._closing.is_set():
            ready = dict(poller.poll(100))
            if self._clock in ready:
                self._clock.recv()
                t1 = now_ns()
                self._clock.send(orjson.dumps({"host": host, "t1": t1, "t2": now_ns()}))
            if self._spans in ready:
                self._drain()
        self._drain()

    def _drain(self) -> None:
        rows = []
        while len(rows) < 1000 and self._spans.poll(0):
            try:
                row = orjson.loads(self._spans.recv())
                node = str(row["node"])
                if row["kind"] == "node":
                    self.offsets[node] = Offset(int(row["offset_ns"]), int(row["uncertainty_ns"]))
                elif row["kind"] == "bye":
                    self.dropped[node] = int(row["dropped"])
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
                self.malformed += 1
                continue
            rows.append(row)
        if rows:
            self._journal.append(*rows)
            self.received += len(rows)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._spans.close()
        self._clock.close()
        self._context.term()
        self._journal.close()
