"""A link in user space: a TCP relay on loopback that hands bytes over when its two lines say that they arrive.

No kernel support is needed, and whatever speaks TCP passes unchanged. Pieces come some 0.1 ms late: a thread wakes up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from splitcore.link.line import Line, LinkProfile
from splitcore.link.steps import LinkInTime, schedule_of
from splitcore.wire.channel import split_address

PIECE_BYTES = 16 << 10
"""the relay reads at most this at once: a longer message is shaped in pieces, so that its bytes trickle"""


class LinkRelay:
    """A TCP relay to `target` whose two directions are the two lines of a link. Made by `shaped`."""

    def __init__(self, target: str, link: LinkInTime, seed: int) -> None:
        self.address = ""
        self.bytes_up = self.bytes_down = 0
        """delivered so far"""
        self._target = split_address(target)
        (_, profile), *self._later = schedule_of(link)
        self._up = Line(profile, profile.rate_up_kbps, np.random.default_rng([seed, 0]))
        self._down = Line(profile, profile.rate_down_kbps, np.random.default_rng([seed, 1]))
        self._connections: set[asyncio.Task[None]] = set()
        self._alarm = ThreadPoolExecutor(4, thread_name_prefix="link")
        self._steps: list[asyncio.TimerHandle] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=PIECE_BYTES)
        loop = asyncio.get_running_loop()
        self._steps = [loop.call_later(at_s, self._become, profile) for at_s, profile in self._later]
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _become(self, profile: LinkProfile) -> None:
        self._up.become(profile, profile.rate_up_kbps)
        self._down.become(profile, profile.rate_down_kbps)

    async def close(self) -> None:
        for step in self._steps:
            step.cancel()
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
async def shaped(target: str, link: LinkInTime, seed: int) -> AsyncIterator[LinkRelay]:
    """While the body runs, connections to the relay's `address` reach `target` through this link; its time runs from here."""
    relay = LinkRelay(target, link, seed)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.close()
