"""A radio link in user space: bytes through a TCP relay on loopback, delivered when a link of that kind would.

The model. One direction is a first-in-first-out line of rate R with a one-way delay D. A piece of n bytes that enters at
t leaves the line at free = max(t, free') + 8 n / R, where free' is when the piece before it left, and arrives at
free + D + J + L. J is uniform on [0, jitter]. L is what TCP makes of a loss: the application sees no hole, it sees a
delay of the lost segment and of everything behind it. Each of the ceil(n / 1448) segments is lost with probability p,
again and again; a round of retransmission costs a tail loss probe, 2 SRTT (RFC 8985, section 7.2) with SRTT the mean
round trip of an idle link, at least 10 ms. Nothing overtakes: arrival = max(arrival, arrival of the piece before).

Not in the model: TCP's own slow start and congestion control on that link, the link's share that retransmitted segments
take, and the time of the connection's handshake. All connections through one relay share the line, as all of a phone's
do. The numbers of PROFILES are ours: round figures of what such links commonly give, not measurements.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from splitcore.wire.channel import split_address

SEGMENT_BYTES = 1448
"""payload of a TCP segment on a path with an MTU of 1500 and timestamps"""
MIN_PROBE_MS = 10.0
PIECE_BYTES = 16 << 10
"""the relay reads at most this at once: a longer message is shaped in pieces, so that its bytes trickle"""
SPARE_BYTES = 64 << 10
MAX_HELD_BYTES = 16 << 20

LinkName: TypeAlias = Literal["wifi", "lte", "5g", "lan"]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LinkProfile:
    """What a link does to the bytes of each direction."""

    rate_up_kbps: Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
    """from the phone, in 1000 bits a second"""
    rate_down_kbps: Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
    """to the phone, likewise"""
    delay_ms: Annotated[float, Field(ge=0, le=2_000)]
    """one way, without jitter"""
    jitter_ms: Annotated[float, Field(ge=0, le=2_000)] = 0.0
    """widest extra delay of a piece, one way; uniform from 0"""
    loss: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """probability that a segment is lost, each time it is sent"""

    @property
    def probe_ms(self) -> float:
        """What one round of retransmission costs."""
        return max(MIN_PROBE_MS, 4 * (self.delay_ms + self.jitter_ms / 2))


PROFILES: dict[LinkName, LinkProfile] = {
    "wifi": LinkProfile(rate_up_kbps=40_000, rate_down_kbps=80_000, delay_ms=2, jitter_ms=2, loss=0.001),
    "lte": LinkProfile(rate_up_kbps=10_000, rate_down_kbps=30_000, delay_ms=25, jitter_ms=8, loss=0.002),
    "5g": LinkProfile(rate_up_kbps=50_000, rate_down_kbps=200_000, delay_ms=8, jitter_ms=3, loss=0.0005),
    "lan": LinkProfile(rate_up_kbps=1_000_000, rate_down_kbps=1_000_000, delay_ms=0.2, jitter_ms=0.05),
}

Link: TypeAlias = LinkName | LinkProfile
"""as a scenario writes it: a name of PROFILES, or a mapping"""


def profile_of(link: Link) -> LinkProfile:
    return PROFILES[link] if isinstance(link, str) else link


class Line:
    """One direction. Takes times and returns times: it has no clock of its own."""

    def __init__(self, profile: LinkProfile, rate_kbps: float, rng: np.random.Generator) -> None:
        self._profile, self._rng = profile, rng
        self._bytes_per_s = rate_kbps * 1000 / 8
        self._free_s = self._last_s = float("-inf")
        latest_s = (profile.delay_ms + profile.jitter_ms + profile.probe_ms) / 1000
        self.holds_bytes = min(MAX_HELD_BYTES, SPARE_BYTES + int(self._bytes_per_s * latest_s))
        """bytes on their way at most: what fills the line, so that the bound itself never costs rate"""

    def arrival_s(self, now_s: float, size_bytes: int) -> float:
        """When a piece that enters now arrives. Pieces enter in the order of their times."""
        self._free_s = max(now_s, self._free_s) + size_bytes / self._bytes_per_s
        late_ms = self._profile.jitter_ms * self._rng.random() + self._profile.probe_ms * self._rounds(size_bytes)
        self._last_s = max(self._last_s, self._free_s + (self._profile.delay_ms + late_ms) / 1000)
        return self._last_s

    def _rounds(self, size_bytes: int) -> int:
        """Rounds of retransmission until every segment is through; P(any) = 1 - (1 - loss)^segments."""
        rounds, missing = 0, -(-size_bytes // SEGMENT_BYTES)
        while self._profile.loss and (missing := int(self._rng.binomial(missing, self._profile.loss))):
            rounds += 1
        return rounds


class LinkRelay:
    """A TCP relay to `target` whose two directions are the two lines of a profile. Made by `shaped`."""

    def __init__(self, target: str, profile: LinkProfile, seed: int) -> None:
        self.address = ""
        self.bytes_up = self.bytes_down = 0
        """delivered so far"""
        self._target = split_address(target)
        self._up = Line(profile, profile.rate_up_kbps, np.random.default_rng([seed, 0]))
        self._down = Line(profile, profile.rate_down_kbps, np.random.default_rng([seed, 1]))
        self._connections: set[asyncio.Task[None]] = set()
        self._alarm = ThreadPoolExecutor(4, thread_name_prefix="link")

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=PIECE_BYTES)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._alarm.shutdown(wait=False, cancel_futures=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer), name="link connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        writers = [near]
        try:
            far_reader, far = await asyncio.open_connection(*self._target, limit=PIECE_BYTES)
            writers.append(far)
            up, down = _Pipe(self._up, self._alarm), _Pipe(self._down, self._alarm)
            async with asyncio.TaskGroup() as both:
                both.create_task(up.take_in(near_reader))
                both.create_task(down.take_in(far_reader))
                both.create_task(up.hand_out(far, self._count_up))
                both.create_task(down.hand_out(near, self._count_down))
        except* OSError:
            # either peer is gone (or never was there): the other one is told so by the closing below, as by a real link
            pass
        finally:
            for writer in writers:
                if writer.transport.get_write_buffer_size():
                    # a peer that does not read would keep the rest for ever
                    writer.transport.abort()
                else:
                    writer.close()

    def _count_up(self, size: int) -> None:
        self.bytes_up += size

    def _count_down(self, size: int) -> None:
        self.bytes_down += size


class _Pipe:
    """One direction of one connection: a bounded row of pieces, each with the time at which it arrives."""

    def __init__(self, line: Line, alarm: ThreadPoolExecutor) -> None:
        self._line, self._alarm = line, alarm
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._moved = asyncio.Event()

    async def take_in(self, reader: asyncio.StreamReader) -> None:
        while True:
            piece = await reader.read(PIECE_BYTES)
            self._pieces.append((self._line.arrival_s(time.monotonic(), len(piece)), piece))
            self._held_bytes += len(piece)
            self._moved.set()
            if not piece:
                return
            while self._held_bytes >= self._line.holds_bytes:
                # not reading is what makes the sender wait
                await self._motion()

    async def hand_out(self, writer: asyncio.StreamWriter, count: Callable[[int], None]) -> None:
        while True:
            while not self._pieces:
                await self._motion()
            due_s, piece = self._pieces[0]
            await self._until(due_s)
            if not piece:
                writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()
            count(len(piece))
            self._pieces.popleft()
            self._held_bytes -= len(piece)
            self._moved.set()

    async def _motion(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def _until(self, due_s: float) -> None:
        """The event loop's timers are good to a millisecond, more than a LAN's delay: the rest is slept in a thread."""
        ahead_s = due_s - time.monotonic()
        if ahead_s > 0.002:
            await asyncio.sleep(ahead_s - 0.002)
            ahead_s = due_s - time.monotonic()
        if ahead_s > 0:
            await asyncio.get_running_loop().run_in_executor(self._alarm, time.sleep, ahead_s)


@contextlib.asynccontextmanager
async def shaped(target: str, profile: LinkProfile, seed: int) -> AsyncIterator[LinkRelay]:
    """While the body runs, connections to the relay's `address` reach `target` through a link of this profile."""
    relay = LinkRelay(target, profile, seed)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.close()
