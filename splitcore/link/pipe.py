"""A TCP relay that changes nothing and counts: what really crosses, with TLS and HTTP/2 around the messages."""

from __future__ import annotations

import asyncio
import contextlib
import time

from splitcore.wire.channel import split_address

PIECE_BYTES = 256 << 10
QUIET_S = 0.05


class CountingPipe:
    """Passes connections on to `target`. `start` and `close` on one event loop; the counts may be read anywhere."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.bytes_up = self.bytes_down = 0
        self._target = split_address(target)
        self._moved_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def settle(self) -> None:
        """From another thread: returns when nothing has moved for a while, so that a connection's last bytes are counted."""
        while time.monotonic() - self._moved_s < QUIET_S:
            time.sleep(QUIET_S / 5)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection(*self._target)
            try:
                await asyncio.gather(self._pass(reader, back, up=True), self._pass(there, writer, up=False))
            finally:
                back.close()
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        while data := await reader.read(PIECE_BYTES):
            self._moved_s = time.monotonic()
            if up:
                self.bytes_up += len(data)
            else:
                self.bytes_down += len(data)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
