"""The link as a running stream shows it: a rate from its frames, a round trip from small calls beside them.

Frames go up one behind the other, so frame i reaches the edge when the line has carried it:
arrived_i = max(sent_i, arrived_{i-1}) + 8 b_i / R, all on the way's own delay. The phone sees e_i = answered_i - edge_i, which
is arrived_i plus the round trip T, and so e_i - max(sent_i + T, e_{i-1}) = 8 b_i / R: on a busy line without T, on an idle one
with it. Rate and round trip cannot be told apart from frames of one size on an idle line; a call without payload, sent when no
frame is out, gives T.

Whatever disturbs a time on its way (another process on a core, a retransmission) makes it longer, so the shorter half of the
newest observations is averaged. An exponential mean of all follows every disturbance, and one of small frames then makes a
fast link look slow. What an adversary holds looks like a slow link too, as it does to whoever waits.
"""

from __future__ import annotations

from collections import deque

from splitcore.plan import LinkEstimate

FASTEST_KBPS = 1e7


class Recent:
    """The newest observations of one kind: amounts, and the time that each took."""

    def __init__(self, size: int) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, took_ms: float, amount: float = 1.0) -> None:
        self._seen.append((took_ms, amount))

    @property
    def ms_each(self) -> float | None:
        """Time for one of the amount, over the shorter half; None before there was any."""
        if not self._seen:
            return None
        shorter = sorted(self._seen, key=lambda seen: seen[0] / seen[1])[: (len(self._seen) + 1) // 2]
        return sum(took_ms for took_ms, _ in shorter) / sum(amount for _, amount in shorter)


class ObservedLink:
    """Takes times and returns estimates: it has no clock of its own."""

    def __init__(self, memory: int) -> None:
        """`memory`: frames and round trips that count."""
        self._enough = (memory + 1) // 2
        self._round_trips, self._frames = Recent(memory), Recent(memory)
        self._before_ms = float("-inf")

    def round_trip(self, took_ms: float) -> None:
        """Of a call without payload, while no frame was out."""
        self._round_trips.add(took_ms)

    def answer(self, bytes_up: int, sent_ms: float, answered_ms: float, edge_ms: float) -> None:
        """Of a frame: its request's size, when it was sent and answered, and how long it was at the edge."""
        round_trip_ms = self._round_trips.ms_each
        if round_trip_ms is None:
            return
        arrived_ms = answered_ms - edge_ms
        if arrived_ms >= self._before_ms:
            self._frames.add(arrived_ms - max(sent_ms + round_trip_ms, self._before_ms), bytes_up)
            self._before_ms = arrived_ms
        # else answers changed places in the edge's batches: it came up behind another, and nobody knows when

    def new_stream(self) -> None:
        """What was on its way is lost: the next frame does not queue behind it."""
        self._before_ms = float("-inf")

    @property
    def estimate(self) -> LinkEstimate | None:
        """None before there was a round trip, and half a memory of frames: a stream's first ones warm it up."""
        round_trip_ms, ms_a_byte = self._round_trips.ms_each, self._frames.ms_each
        if round_trip_ms is None or ms_a_byte is None or len(self._frames) < self._enough:
            return None
        return LinkEstimate(rate_up_kbps=8 / max(ms_a_byte, 8 / FASTEST_KBPS), round_trip_ms=round_trip_ms)
