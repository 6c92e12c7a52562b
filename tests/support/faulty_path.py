"""A way between two nodes that a test can spoil while it is used: cut it, make it a black hole, stop one direction."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Any, Literal

from splitcore.wire.channel import split_address

State = Literal["open", "black hole", "stalled up", "stalled down"]
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing resets"""


class FaultyPath:
    """A TCP relay to `target`, in a thread of its own. Connections that are in a black hole stay there when it heals.

    `stalled up`: nothing more is read from the near side; `stalled down`: from the far side; both go on when it heals.
    """

    def __init__(self, target: str) -> None:
        self._target = split_address(target)
        self._state: State = "open"
        self._loop = asyncio.new_event_loop()
        self._pairs: set[_Pair] = set()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="faulty path", daemon=True)
        self._thread.start()
        started.wait(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        self._loop.run_forever()
        server.close()
        for pair in tuple(self._pairs):
            pair.task.cancel()
        self._loop.run_until_complete(asyncio.gather(*(pair.task for pair in self._pairs), return_exceptions=True))
        self._loop.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def become(self, state: State) -> None:
        """For the connections that there are and those that come, until the next `become`."""
        self._ask(self._become, state)

    def cut(self) -> int:
        """Resets every connection; new ones are taken. How many there were."""
        count: int = self._ask(self._cut)
        return count

    def _ask(self, act: Any, *arguments: Any) -> Any:
        async def on_the_loop() -> Any:
            return act(*arguments)

        return asyncio.run_coroutine_threadsafe(on_the_loop(), self._loop).result(10)

    def _become(self, state: State) -> None:
        self._state = state
        for pair in self._pairs:
            pair.become(state)

    def _cut(self) -> int:
        count = len(self._pairs)
        for pair in tuple(self._pairs):
            pair.reset()
        return count

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        pair = _Pair(task, self._state)
        self._pairs.add(pair)
        try:
            await pair.pass_on(reader, writer, self._target)
        finally:
            self._pairs.discard(pair)


class _Pair:
    """One connection and the one behind it."""

    def __init__(self, task: asyncio.Task[Any], state: State) -> None:
        self.task = task
        self._lost = False
        self._may: dict[str, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._writers: list[asyncio.StreamWriter] = []
        self.become(state)

    def become(self, state: State) -> None:
        self._lost = self._lost or state == "black hole"
        for way, event in self._may.items():
            if state == f"stalled {way}":
                event.clear()
            else:
                event.set()

    def reset(self) -> None:
        for writer in self._writers:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        self.task.cancel()

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int]) -> None:
        self._writers = [writer]
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far_reader, far = await asyncio.open_connection(*target)
            self._writers.append(far)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far, "up"))
                both.create_task(self._pump(far_reader, writer, "down"))
        for open_one in self._writers:
            open_one.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                await self._may[way].wait()
                piece = await reader.read(1 << 16)
                if self._lost:
                    if not piece:
                        return
                    continue  # neither side hears of it
                if not piece:
                    writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()
