"""What a node tells of a frame: timestamps by name, pushed to the collector, or dropped and counted when it is too slow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import orjson
import zmq

from splitcore.telemetry.clock import Offset, best_of, host_identity, now_ns, offset_of
from splitcore.telemetry.context import sampled
from splitcore.telemetry.frame_spans import spans_of
from splitcore.telemetry.tracing import TraceConfig, Tracer

HIGH_WATER = 20_000
"""spans kept for a slow collector; above this they are dropped and counted"""
EXCHANGES = 12
COMPARE_EVERY_S = 10.0


class Telemetry:
    """A node's end. Nothing here ever blocks. Use it from one thread; `endpoint` None makes every call a no-op."""

    def __init__(self, node: str, endpoint: str | None, trace: TraceConfig | None = None) -> None:
        self.node = node
        self.sent = self.dropped = 0
        self.tracer = None if trace is None else Tracer(node, trace)
        """where traced frames are told too; None: nobody traces"""
        self.heard: Callable[[Mapping[str, int]], None] | None = None
        """for the node's own metrics: hears every span's times"""
        self._socket: zmq.Socket[bytes] | None = None
        self._closing = threading.Event()
        if endpoint is None:
            return
        self._endpoint = endpoint
        self._clock_endpoint = clock_endpoint(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._greeter = threading.Thread(target=self._greet, name="telemetry-clock", daemon=True)
        self._greeter.start()

    def span(self, frame: str, attempt: int, trace: str | None = "", collected: bool = True, /, **times_ns: int) -> None:
        """Timestamps of this node's monotonic clock, in ns, for one sending of a frame.

        `trace`: the W3C context that came with it; empty: it is not traced; None: nobody has decided that yet.
        `collected`: told to the collector, and not to the tracer alone.
        """
        if self.heard is not None:
            self.heard(times_ns)
        if self.tracer is not None:
            context = self.tracer.begin() if trace is None else sampled(trace)
            if context is not None:
                self.tracer.record(*spans_of(frame, attempt, context, times_ns))
        if self._socket is None or not collected:
            return
        record: dict[str, object] = {
            "kind": "span", "node": self.node, "frame": frame, "attempt": attempt, "t": times_ns
        }  # fmt: skip
        if self.dropped:
            # a node may live longer than the measurement: its losses are told with what follows them
            record["dropped"] = self.dropped
        try:
            self._socket.send(orjson.dumps(record), zmq.NOBLOCK)
            self.sent += 1
        except zmq.Again:
            self.dropped += 1

    def close(self, linger_ms: int = 500) -> None:
        """Says goodbye with the count of dropped spans, and waits at most `linger_ms` for what is on its way."""
        if self.tracer is not None:
            self.tracer.close()
        if self._socket is None:
            return
        self._closing.set()
        self._tell({"kind": "bye", "node": self.node, "sent": self.sent, "dropped": self.dropped}, linger_ms)
        self._socket.close(linger=linger_ms)
        self._socket = None
        # both wait for libzmq's own thread, which may be in the middle of a name's resolution: a node does not
        ending = threading.Thread(target=self._end, name="telemetry-end", daemon=True)
        ending.start()
        ending.join(linger_ms / 1e3 + 1.0)

    def _end(self) -> None:
        self._greeter.join()
        self._context.term()

    def _tell(self, record: dict[str, object], linger_ms: int) -> None:
        """One record by a connection of its own: past the queue of spans, which may be full."""
        with self._context.socket(zmq.PUSH) as socket:
            socket.setsockopt(zmq.LINGER, linger_ms)
            socket.connect(self._endpoint)
            socket.send(orjson.dumps(record), zmq.NOBLOCK)

    def _greet(self) -> None:
        """Compare clocks with the collector, and tell it what came of that; again, since clocks drift and collectors change."""
        while not self._closing.is_set():
            offset = self._compare_clocks()
            if offset is not None:
                record = {"offset_ns": offset.offset_ns, "uncertainty_ns": offset.uncertainty_ns}
                self._tell({"kind": "node", "node": self.node, **record}, 500)
            self._closing.wait(0.5 if offset is None else COMPARE_EVERY_S)

    def _compare_clocks(self) -> Offset | None:
        """None when the collector did not answer, or nothing that is an answer. One host: its one clock, exactly."""
        ours = host_identity()
        exchanges: list[Offset] = []
        with self._context.socket(zmq.REQ) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, 1024)
            socket.connect(self._clock_endpoint)
            for _ in range(EXCHANGES):
                t0 = now_ns()
                socket.send(b"clock")
                for _ in range(10):
                    if socket.poll(100) or self._closing.is_set():
                        break
                if self._closing.is_set() or not socket.poll(0):
                    return None
                answer = socket.recv()
                t3 = now_ns()
                match _json(answer):
                    case {"host": str(theirs), "t1": int(t1), "t2": int(t2)}:
                        if ours and theirs == ours:
                            return Offset(0, 0)
                        exchanges.append(offset_of(t0, t1, t2, t3))
                    case _:
                        return None
        return best_of(exchanges)


def clock_endpoint(endpoint: str) -> str:
    """The collector compares clocks one port above the one it takes spans on. Raises ValueError."""
    parts = urlsplit(endpoint)
    if parts.scheme != "tcp" or not parts.hostname or not parts.port or parts.path:
        raise ValueError(f"expected a telemetry endpoint tcp://host:port, got {endpoint!r}")
    return f"tcp://{parts.hostname}:{parts.port + 1}"


def _json(message: bytes) -> object:
    try:
        return orjson.loads(message)
    except orjson.JSONDecodeError:
        return None
