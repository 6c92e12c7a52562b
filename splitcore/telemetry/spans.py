"""What a node tells of a frame: timestamps by name, pushed to the collector, dropped and counted when it cannot keep up."""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

import orjson
import zmq

from splitcore.telemetry.clock import Offset, best_of, host_identity, now_ns, offset_of

HIGH_WATER = 20_000
"""spans kept for a slow collector; above this they are dropped and counted"""
EXCHANGES = 12


class Telemetry:
    """A node's end. Nothing here ever blocks. Use it from one thread; `endpoint` None makes every call a no-op."""

    def __init__(self, node: str, endpoint: str | None) -> None:
        self.node = node
        self.sent = self.dropped = 0
        self._socket: zmq.Socket[bytes] | None = None
        self._closing = threading.Event()
        if endpoint is None:
            return
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._greeter = threading.Thread(target=self._greet, args=(endpoint,), name="telemetry-clock", daemon=True)
        self._greeter.start()

    def span(self, frame: str, attempt: int, /, **times_ns: int) -> None:
        """Timestamps of this node's monotonic clock, in ns, for one sending of a frame."""
        if self._socket is not None:
            self._send({"kind": "span", "node": self.node, "frame": frame, "attempt": attempt, "t": times_ns})

    def _send(self, record: dict[str, object]) -> None:
        assert self._socket is not None
        try:
            self._socket.send(orjson.dumps(record), zmq.NOBLOCK)
            self.sent += 1
        except zmq.Again:
            self.dropped += 1

    def close(self, linger_ms: int = 500) -> None:
        """Says goodbye with the count of dropped spans, and waits at most `linger_ms` for what is on its way."""
        if self._socket is None:
            return
        self._closing.set()
        self._send({"kind": "bye", "node": self.node, "sent": self.sent, "dropped": self.dropped})
        self._socket.close(linger=linger_ms)
        self._socket = None
        self._greeter.join()
        self._context.term()

    def _greet(self, endpoint: str) -> None:
        """Until the collector answers once: compare clocks with it, and tell it what came of that."""
        while not self._closing.is_set():
            offset = self._compare_clocks(endpoint)
            if offset is not None:
                with self._context.socket(zmq.PUSH) as socket:
                    socket.setsockopt(zmq.LINGER, 500)
                    socket.connect(endpoint)
                    socket.send(
                        orjson.dumps(
                            {
                                "kind": "node",
                                "node": self.node,
                                "offset_ns": offset.offset_ns,
                                "uncertainty_ns": offset.uncertainty_ns,
                            }
                        )
                    )
                return
            self._closing.wait(0.5)

    def _compare_clocks(self, endpoint: str) -> Offset | None:
        """None when the collector did not answer. One host: its one clock, exactly."""
        ours = host_identity()
        exchanges: list[Offset] = []
        with self._context.socket(zmq.REQ) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(clock_endpoint(endpoint))
            for _ in range(EXCHANGES):
                t0 = now_ns()
                socket.send(b"clock")
                for _ in range(10):
                    if socket.poll(100) or self._closing.is_set():
                        break
                if self._closing.is_set() or not socket.poll(0):
                    return None
                answer = orjson.loads(socket.recv())
                t3 = now_ns()
                if ours and answer["host"] == ours:
                    return Offset(0, 0)
                exchanges.append(offset_of(t0, answer["t1"], answer["t2"], t3))
        return best_of(exchanges)


def clock_endpoint(endpoint: str) -> str:
    """The collector compares clocks one port above the one it takes spans on."""
    parts = urlsplit(endpoint)
    assert parts.port is not None
    return f"tcp://{parts.hostname}:{parts.port + 1}"
