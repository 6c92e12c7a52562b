"""The other end: takes every node's spans into a journal, and answers what time it is."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import orjson
import zmq

from splitcore.journal import Journal, Row
from splitcore.telemetry.clock import Offset, host_identity, hull, now_ns

MAX_RECORD_BYTES = 64 << 10


class Collector:
    """Runs in a thread of its own until closed. `path` gets every record of every node, in order of arrival."""

    def __init__(self, path: Path, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.received = self.malformed = 0
        self.offsets: dict[str, Offset] = {}
        """by node: what to add to its clock to get ours"""
        self.dropped: dict[str, int] = {}
        """by node: spans that it dropped, as far as it has told: with later spans, and when it says goodbye; once we
        are closed, with those that it sent and that never came"""
        self._owed: Counter[str] = Counter()
        """by node: spans that it said goodbye to, less those that came"""
        self._failure: OSError | None = None
        self._context = zmq.Context()
        self._spans: zmq.Socket[bytes] = self._context.socket(zmq.PULL)
        self._clock: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        for socket in (self._spans, self._clock):
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_RECORD_BYTES)
            socket.setsockopt(zmq.LINGER, 0)
        try:
            self.port = self._bind(host, port)
            self._journal = Journal(path)
        except (OSError, zmq.ZMQError):
            self._context.destroy()
            raise
        self.endpoint = f"tcp://{host}:{self.port}"
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="telemetry-collector", daemon=True)
        self._thread.start()

    def _bind(self, host: str, port: int | None) -> int:
        """Two neighbouring ports, spans on the first, the clock on the second. Raises OSError or zmq.ZMQError."""
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
        try:
            self._collect()
        except OSError as error:
            # the disk is full: nodes drop and count what they cannot send, and whoever closes hears the reason
            self._failure = error

    def _collect(self) -> None:
        host = host_identity()
        poller = zmq.Poller()
        poller.register(self._spans, zmq.POLLIN)
        poller.register(self._clock, zmq.POLLIN)
        while not self._closing.is_set():
            ready = dict(poller.poll(100))
            if self._clock in ready:
                self._clock.recv_multipart()
                t1 = now_ns()
                self._clock.send(orjson.dumps({"host": host, "t1": t1, "t2": now_ns()}))
            if self._spans in ready:
                self._drain()
        for _ in range(1000):
            # a goodbye overtakes the spans before it, which are waited for; of others, what is there
            owing = any(count > 0 for count in self._owed.values())
            if not self._spans.poll(2000 if owing else 100):
                break
            self._drain()
        for node, count in self._owed.items():
            if count > 0:
                self.dropped[node] += count

    def _drain(self) -> None:
        """Takes up to 1000 records, so that the clock is answered while spans flood in."""
        rows: list[Row] = []
        taken = 0
        while taken < 1000 and self._spans.poll(0):
            taken += 1
            row = self._take(self._spans.recv())
            if row is None:
                self.malformed += 1
            else:
                rows.append(row)
        self._journal.append(*rows)
        self.received += len(rows)

    def _take(self, message: bytes) -> Row | None:
        """The record with nothing but its known fields; None for what is none, however odd: anybody can send here."""
        try:
            record = orjson.loads(message)
        except orjson.JSONDecodeError:
            return None
        match record:
            case {"kind": "span", "node": str(node), "frame": str(frame), "attempt": int(attempt), "t": dict(times)}:
                if not all(isinstance(t, int) for t in times.values()):
                    return None
                if isinstance(dropped := record.get("dropped"), int):
                    self.dropped[node] = max(dropped, self.dropped.get(node, 0))
                self._owed[node] -= 1
                return {"kind": "span", "node": node, "frame": frame, "attempt": attempt, "t": times}
            case {"kind": "node", "node": str(node), "offset_ns": int(offset), "uncertainty_ns": int(uncertainty)}:
                self.offsets[node] = hull(self.offsets.get(node), Offset(offset, uncertainty))
                return {"kind": "node", "node": node, "offset_ns": offset, "uncertainty_ns": uncertainty}
            case {"kind": "bye", "node": str(node), "sent": int(sent), "dropped": int(dropped)}:
                self.dropped[node] = max(dropped, self.dropped.get(node, 0))
                self._owed[node] += sent
                return {"kind": "bye", "node": node, "sent": sent, "dropped": dropped}
            case _:
                return None

    def close(self) -> None:
        """Takes what has arrived, and stops. Raises OSError where the journal could not be written."""
        self._closing.set()
        self._thread.join()
        self._spans.close()
        self._clock.close()
        self._context.term()
        self._journal.close()
        if self._failure is not None:
            raise self._failure
