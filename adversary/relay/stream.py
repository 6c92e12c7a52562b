"""One HTTP/2 stream: what it has in either direction, and what of it is kept back."""

from __future__ import annotations

import asyncio
from collections import deque

import grpc

from adversary.relay.addon import Forward
from adversary.relay.messages import Reader
from adversary.relay.passage import Call, Passage
from adversary.relay.window import Window
from splitcore.telemetry.calls import Call as Watched


class Turn:
    """A message that an addon holds, or that waits behind one."""

    __slots__ = ("content", "passage", "size")

    def __init__(self, passage: Passage, size: int) -> None:
        self.passage = passage
        self.size = size
        """bytes of room that it takes"""
        self.content: bytes | None = None
        """what goes on, once that is known"""


class Way:
    """One direction of a stream."""

    __slots__ = ("closed", "ended", "held", "keeping", "reader", "tail", "turns", "waiting", "window")

    def __init__(self, window: int, looked_at: bool) -> None:
        self.window = Window(window)
        self.reader = Reader() if looked_at else None
        self.waiting = bytearray()
        """content that is ready and waits for the receiver's window"""
        self.held = 0
        """messages that an addon has not let go"""
        self.turns: deque[Turn] = deque()
        """with order `keep`: held ones and those behind them"""
        self.keeping = 0
        """bytes of a message that is kept and not whole yet"""
        self.tail: bytes | None = None
        """trailers that wait behind all this"""
        self.ended = False
        """the sender has ended it"""
        self.closed = False
        """the receiver knows"""

    @property
    def empty(self) -> bool:
        """Whether nothing is kept back."""
        return not (self.waiting or self.held or self.turns)


class Stream:
    """Both directions of one stream, and the call in it where that is looked at."""

    __slots__ = ("begun", "call", "code", "holds", "number", "reserved", "watched", "ways")

    def __init__(self, number: int, ask: Way, answer: Way, call: Call | None, watched: Watched) -> None:
        self.number = number
        self.ways = (ask, answer)
        self.call = call
        self.watched = watched
        self.code: grpc.StatusCode | None = None
        """how the server ended it; None: it has not"""
        self.holds: set[asyncio.Future[Forward]] = set()
        self.reserved = 0
        """bytes of room that its kept messages take"""
        self.begun = False
        """the response's headers went to the client"""
