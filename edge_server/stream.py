"""One ModelStreamInfer: a reading loop, a writer, and what lies between them.

One task reads and one writes for the stream's whole life; a frame costs no task. Answers leave in the order in which
they are ready, or, where the server preserves ordering, in that of the requests. The client half-closes; the stream then ends
when everything that was asked is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from edge_server.queue import Job, Outcome
from edge_server.refusal import Refused
from splitcore.frame import Reply
from splitcore.wire import oip

_log = logging.getLogger(__name__)

MAX_UNREAD = 256
"""answers that wait for a client that does not read them; above this we stop reading its frames"""


class Order:
    """Holds answers back until those to earlier requests are there."""

    def __init__(self) -> None:
        self._open: deque[Job | None] = deque()
        """requests in their order; None: one that was refused at once"""
        self._ready: dict[Job | None, deque[Reply]] = {}

    def asked(self, job: Job) -> None:
        self._open.append(job)

    def answered(self, job: Job | None, reply: Reply) -> list[tuple[Job | None, Reply]]:
        """What may leave now. A refusal's place (job None) is where it comes."""
        if job is None:
            self._open.append(None)
        self._ready.setdefault(job, deque()).append(reply)
        leave = []
        while self._open and (replies := self._ready.get(self._open[0])):
            first = self._open.popleft()
            leave.append((first, replies.popleft()))
            if not replies:
                del self._ready[first]
        return leave


class Stream:
    """Who waits for the answers of one stream."""

    def __init__(
        self,
        context: grpc.aio.ServicerContext,
        on_replied: Callable[[Job], None],
        *,
        pack: Callable[[Reply], bytes] = oip.pack_stream_reply,
        identity: str = "",
        by_status: bool = False,
        in_order: bool = False,
    ) -> None:
        """`pack`: how an answer is written. `identity`: who asks. `by_status`: the first error ends the stream, and is its
        status."""
        self.gone = False
        self.identity = identity
        self.trace = ""
        """empty: a stream's metadata are no frame's, which brings its own"""
        self.failure: Refused | None = None
        """what the stream is to end with, once `run` has returned"""
        self._by_status = by_status
        self._order = Order() if in_order else None
        self._context, self._on_replied, self._pack = context, on_replied, pack
        self._outbox: deque[tuple[Job | None, Reply | bytes | None]] = deque()
        """None in the place of an answer: the writer ends there; bytes: an answer to no frame"""
        self._pending = 0
        """frames in the batcher, and answers that are not on the wire yet"""
        self._ended = False
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._failed = asyncio.Event()

    async def run(self, take: Callable[[bytes], None]) -> None:
        """Gives every message to `take`; returns when the client has half-closed and every answer is written."""
        writer = asyncio.create_task(self._write(), name="stream writer")
        read = self._read_or_fail if self._by_status else self._context.read
        try:
            while (message := await read()) is not grpc.aio.EOF and not self.gone:
                take(message)
                while len(self._outbox) > MAX_UNREAD and not self.gone:
                    self._moved.clear()
                    await self._moved.wait()
            self._ended = True
            self._wake.set()
            await writer
        finally:
            self.gone = True
            self._moved.set()
            writer.cancel()

    def submitted(self, job: Job) -> None:
        """A frame of this stream is in the batcher; `answer` will come for it."""
        self._pending += 1
        if self._order is not None:
            self._order.asked(job)

    async def _read_or_fail(self) -> Any:
        """The next message, or the end at the first error: a status waits for no message of the client."""
        reading = asyncio.ensure_future(self._context.read())
        failed = asyncio.ensure_future(self._failed.wait())
        try:
            await asyncio.wait((reading, failed), return_when=asyncio.FIRST_COMPLETED)
            return grpc.aio.EOF if failed.done() else reading.result()
        finally:
            failed.cancel()
            reading.cancel()

    def answer(self, job: Job, outcome: Outcome) -> None:
        if self.failure is not None:
            return
        if isinstance(outcome, Refused):
            if self._by_status:
                self._fail(outcome)
                return
            final: dict[str, bool | int | str | float] = {oip.FINAL_KEY: True} if job.frame.mark_final else {}
            outcome = Reply(id=job.frame.id, error=outcome.in_band, parameters=final)
        self._send(job, outcome)

    def refuse(self, frame_id: str, refusal: Refused) -> None:
        """An in-band error for a frame that never was in the batcher."""
        if self._by_status:
            self._fail(refusal)
            return
        self._pending += 1
        self._send(None, Reply(id=frame_id, error=refusal.in_band))

    def _send(self, job: Job | None, reply: Reply) -> None:
        self._outbox.extend([(job, reply)] if self._order is None else self._order.answered(job, reply))
        self._wake.set()

    def _fail(self, refusal: Refused) -> None:
        """What was answered before is still written; nothing is after it."""
        if self.failure is None:
            self.failure = refusal
            self._outbox.append((None, None))
            self._failed.set()
            self._wake.set()

    def say(self, message: bytes) -> None:
        """An answer to no frame, as it is."""
        self._pending += 1
        self._outbox.append((None, message))
        self._wake.set()

    async def written(self) -> None:
        """Returns when nothing is owed, or when nobody is there any more."""
        while self._pending and not self.gone:
            self._moved.clear()
            await self._moved.wait()

    async def _write(self) -> None:
        outbox, write = self._outbox, self._context.write
        try:
            while not (self._ended and not self._pending):
                if not outbox:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                job, reply = outbox.popleft()
                if reply is None:
                    break
                await write(reply if isinstance(reply, bytes) else self._pack(reply))
                self._pending -= 1
                self._moved.set()
                if job is not None:
                    self._on_replied(job)
        except grpc.aio.BaseError as error:
            _log.info("a client went away with %d answers unread: %s", self._pending, error)
        finally:
            # whatever ended the writer, nobody can be answered any more: the reader stops, queued frames are dropped
            self.gone = True
            self._moved.set()
