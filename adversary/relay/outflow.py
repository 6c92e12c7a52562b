"""What goes on to either side: content as the windows allow, ends behind it, and what senders are due in return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from adversary.relay import frames as h2
from adversary.relay.lane import ANSWER, ASK, Lane, Out
from adversary.relay.passage import Books, Call
from adversary.relay.stream import Stream, Way
from adversary.relay.window import MAX_WINDOW

QUANTUM = 64 << 10
"""bytes that a stream sends in its turn when many wait for the connection's window"""
CONNECTION_FLOOR = 32 << 10
"""of the connection's window, left to other streams while a message is put together"""


class Outflow:
    """Of one pair of connections."""

    def __init__(self, books: Books) -> None:
        self.lanes = (Lane(ASK), Lane(ANSWER))
        self.streams: dict[int, Stream] = {}
        self.unsettled: dict[Call, None] = {}
        """calls of which something passed that is not in the books yet"""
        self._books = books

    def _put(self, lane: Lane, stream: Stream, way: Way, content: bytes | memoryview, out: Out) -> None:
        """Content goes on as far as the windows allow; the stream's end behind it when nothing is kept."""
        n = len(content)
        if not way.waiting and n <= way.window.allowance and n <= lane.window.allowance:
            ends = way.ended and way.tail is None and way.empty and not way.closed
            if n:
                out += h2.data(stream.number, content, lane.largest, ends)
                way.window.sent(n)
                lane.window.sent(n)
            if ends and n:
                self._close(stream, way)
        elif n:
            way.waiting += content
            way.window.queued += n
            lane.window.queued += n
            lane.waiting[stream.number] = stream
            self._drain(lane, stream, MAX_WINDOW, out)
        self._finish(lane, stream, way, out)

    def _finish(self, lane: Lane, stream: Stream, way: Way, out: Out) -> None:
        if way.ended and not way.closed and way.empty:
            out.append(h2.header(0, h2.DATA, h2.END_STREAM, stream.number) if way.tail is None else way.tail)
            self._close(stream, way)

    def _drain(self, lane: Lane, stream: Stream, most: int, out: Out) -> bool:
        """Sends what waits on a stream, at most so many bytes; whether any went."""
        way = stream.ways[lane.index]
        n = min(len(way.waiting), way.window.allowance, lane.window.allowance, most)
        if n <= 0:
            return False
        content = bytes(memoryview(way.waiting)[:n])
        del way.waiting[:n]
        way.window.queued -= n
        lane.window.queued -= n
        ends = way.ended and way.tail is None and way.empty
        out += h2.data(stream.number, content, lane.largest, ends)
        way.window.sent(n)
        lane.window.sent(n)
        if not way.waiting:
            del lane.waiting[stream.number]
        if ends:
            self._close(stream, way)
        self._finish(lane, stream, way, out)
        return True

    def _pump(self, lane: Lane) -> None:
        """Streams that wait send by turns."""
        while lane.waiting and sum(self._drain(lane, stream, QUANTUM, lane.out) for stream in [*lane.waiting.values()]):
            pass

    def _credit(self, lane: Lane, stream: Stream | None, way: Way | None) -> None:
        """Grants the sender what it is due."""
        back = self.lanes[1 - lane.index]
        floor = 0
        if stream is not None and way is not None:
            floor = way.reader.missing if way.reader is not None else 0
            if not way.ended and (due := way.window.due(way.keeping, floor)):
                back.say([h2.window_update(stream.number, due)])
        if due := lane.window.due(lane.keeping, floor + CONNECTION_FLOOR):
            back.say([h2.window_update(0, due)])

    def _close(self, stream: Stream, way: Way) -> None:
        """The end of one direction has gone to its receiver."""
        way.closed = True
        ask, answer = stream.ways
        if answer.closed and not ask.closed and not ask.empty:
            # the server has said its last word: what is held would be answered by nobody
            ended = ask.ended
            self._drop(stream, "the stream ended before an answer")
            if ended:
                self.lanes[ASK].out.append(h2.rst_stream(stream.number, h2.CANCEL))
        elif answer.closed and ask.closed:
            self._drop(stream, "the stream ended before an answer")
        elif answer.closed:
            ask.reader = None
            self._forget(stream, self.lanes[ASK], ask)

    def _drop(self, stream: Stream, reason: str) -> None:
        """The stream is no more: nothing that is kept of it goes on."""
        if self.streams.pop(stream.number, None) is None:
            return
        for future in [*stream.holds]:
            future.cancel()
        for lane, way in zip(self.lanes, stream.ways, strict=True):
            self._forget(stream, lane, way)
            self._credit(lane, None, None)
        self._free(stream, stream.reserved)
        if stream.call is not None:
            self._later(stream.call, stream.call.ended, reason)
        stream.watched.end(stream.code or grpc.StatusCode.CANCELLED)

    @staticmethod
    def _forget(stream: Stream, lane: Lane, way: Way) -> None:
        lane.waiting.pop(stream.number, None)
        lane.window.queued -= len(way.waiting)
        lane.keeping -= way.keeping
        way.keeping = 0
        way.waiting = bytearray()

    def _later(self, call: Call, what: Callable[[Any, int], None], about: object) -> None:
        call.later(what, about)
        self.unsettled[call] = None

    def settle(self) -> None:
        """What can be done when the bytes are on their way: the books of answers."""
        while self.unsettled:
            self.unsettled.popitem()[0].settle()

    def _free(self, stream: Stream, size: int) -> None:
        self._books.room += size
        stream.reserved -= size
