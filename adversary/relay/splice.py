"""Two HTTP/2 connections as one: frames pass byte for byte, but DATA of streams of which something is kept or changed.

No socket is touched here: bytes of either side go in, bytes for the sides come out. The lane ASK carries what the client sends,
ANSWER what the server does. All frames pass in their order, only DATA, trailers and END_STREAM of a stream wait behind what is
kept of it. Windows: window.py. RFC 9113.
"""

from __future__ import annotations

from collections.abc import Callable

from adversary.relay import frames as h2
from adversary.relay.addon import Addon
from adversary.relay.frames import H2Error
from adversary.relay.headers import MAX_BLOCK_BYTES, Requests, code_of, context_free
from adversary.relay.hooks import Hooks
from adversary.relay.lane import ANSWER, ASK, Lane, Out
from adversary.relay.outflow import CONNECTION_FLOOR
from adversary.relay.passage import INFER, STREAM, Books, Call
from adversary.relay.stream import Stream, Way
from adversary.relay.window import MAX_WINDOW

__all__ = ["ANSWER", "ASK", "Splice"]

MAX_STREAMS = 16_384
"""open at once on one connection; servers allow far fewer"""


class Splice(Hooks):
    """One pair of connections. `addon` gives the present one; `wake` is called when a held message has left bytes to write."""

    def __init__(self, addon: Callable[[], Addon], books: Books, wake: Callable[[], None]) -> None:
        super().__init__(addon, books, wake)
        self.last = 0
        """the highest stream of the client"""
        self.peer = ""
        """the client's address"""
        self._requests = Requests()
        self._preface = h2.PREFACE
        self._handlers = {
            h2.HEADERS: self._headers, h2.PUSH_PROMISE: self._headers, h2.CONTINUATION: self._continuation,
            h2.RST_STREAM: self._reset, h2.SETTINGS: self._settings, h2.WINDOW_UPDATE: self._window_update,
            h2.GOAWAY: self._goaway,
        }  # fmt: skip

    def receive(self, index: int, data: bytes) -> None:
        """What one side sent; what the sides are to be sent is in `lanes[...].out` then. Raises H2Error."""
        lane = self.lanes[index]
        if lane.partial:
            lane.partial.append(data)
            lane.have += len(data)
            if lane.have < lane.need:
                return
            data = b"".join(lane.partial)
            lane.partial.clear()
        view = memoryview(data)
        at, end = 0, len(data)
        if index == ASK and self._preface:
            size = len(self._preface)
            if data[:size] != self._preface[:end]:
                raise H2Error(h2.PROTOCOL_ERROR, f"expected the preface of HTTP/2, got {data[:24]!r}")
            if end < size:
                self._rest(lane, data, size)
                return
            self._preface = b""
            lane.out.append(data[:size])
            at = size
        run, out = at, lane.out
        while end - at >= 9:
            high, low, kind, flags, number = h2.HEADER.unpack_from(data, at)
            length = high << 16 | low
            stop = at + 9 + length
            if length > lane.limit:
                raise H2Error(h2.FRAME_SIZE_ERROR, f"expected frames of at most {lane.limit} bytes, got one of {length}")
            if stop > end:
                break
            if lane.next is not None and kind != lane.next:
                raise H2Error(h2.PROTOCOL_ERROR, f"expected a frame of type {lane.next}, got type {kind}")
            if kind == h2.DATA:
                instead = self._data(lane, number & h2.MAX_STREAM, flags, view[at + 9 : stop])
            elif (handler := self._handlers.get(kind)) is not None:
                instead = handler(lane, number & h2.MAX_STREAM, kind, flags, view[at:stop])
            else:
                instead = None
            if instead is not None:
                if run < at:
                    out.append(view[run:at])
                out += instead
                run = stop
            at = stop
        if run < at:
            out.append(view[run:at])
        if at < end:
            high, low = h2.HEADER.unpack_from(data, at)[:2] if end - at >= 9 else (0, 0)
            self._rest(lane, data[at:], 9 + (high << 16 | low))

    @staticmethod
    def _rest(lane: Lane, data: bytes, need: int) -> None:
        lane.partial.append(data)
        lane.have, lane.need = len(data), need

    def _data(self, lane: Lane, number: int, flags: int, payload: memoryview) -> Out | None:
        """None: the frame passes as it is."""
        stream = self.streams.get(number)
        n = len(payload)
        if stream is None:
            return self._stray(lane, number, n)
        way = stream.ways[lane.index]
        if way.ended:
            raise H2Error(h2.PROTOCOL_ERROR, f"expected nothing on stream {number} after its end, got DATA")
        if flags & h2.END_STREAM:
            way.ended = True
        if flags & h2.PADDED:
            payload = h2.content(flags, payload, h2.DATA)
        pieces: Out | None = None
        if way.reader is not None:
            try:
                pieces = self._messages(lane, stream, way, payload)
            except Exception as error:
                if isinstance(error, H2Error):
                    raise
                ends = self._failed(stream, error)
                self._stray(lane, number, n)
                self.lanes[1 - lane.index].say(ends[1 - lane.index])
                return ends[lane.index]
        empty = way.empty
        if pieces is None and not way.waiting and (empty or not way.ended) and way.window.fits(n) and lane.window.fits(n):
            way.window.passed(n)
            lane.window.passed(n)
            if way.ended:
                self._close(stream, way)
            return None
        out: Out = []
        way.window.received(n)
        lane.window.received(n)
        content = payload if pieces is None else pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._put(lane, stream, way, content, out)
        keeping = way.reader.keeping if way.reader is not None else 0
        lane.keeping += keeping - way.keeping
        way.keeping = keeping
        self._credit(lane, stream, way)
        return out

    def _stray(self, lane: Lane, number: int, n: int) -> Out | None:
        """DATA of a stream that is gone: for its receiver to judge, where that would take it."""
        if number not in self._cut and lane.window.fits(n) and number:
            lane.window.passed(n)
            return None
        if not number:
            raise H2Error(h2.PROTOCOL_ERROR, "expected DATA on a stream, got it on the connection")
        lane.window.received(n)
        self._credit(lane, None, None)
        return []

    # -- the other frames; `frame` has its header ------------------------------------------------------------------------

    def _headers(self, lane: Lane, number: int, kind: int, flags: int, frame: memoryview) -> Out | None:
        fragment = h2.content(flags, frame[9:], kind)
        if flags & h2.END_HEADERS:
            return self._block(lane, number, kind, flags, bytes(fragment), frame)
        lane.block, lane.next = (number, kind, flags, bytearray(fragment), bytearray(frame)), h2.CONTINUATION
        return []

    def _continuation(self, lane: Lane, number: int, _: int, flags: int, frame: memoryview) -> Out | None:
        if lane.block is None or lane.block[0] != number:
            raise H2Error(h2.PROTOCOL_ERROR, f"expected no CONTINUATION of stream {number}, got one")
        _, kind, first, block, raw = lane.block
        block += frame[9:]
        raw += frame
        if len(raw) > 2 * MAX_BLOCK_BYTES:
            raise H2Error(h2.ENHANCE_YOUR_CALM, f"expected a header block of at most {MAX_BLOCK_BYTES} bytes, got more")
        if not flags & h2.END_HEADERS:
            return []
        lane.block = lane.next = None
        whole = bytes(raw)
        instead = self._block(lane, number, kind, first, bytes(block), memoryview(whole))
        return [whole] if instead is None else instead

    def _block(self, lane: Lane, number: int, kind: int, flags: int, block: bytes, raw: memoryview) -> Out | None:
        """A whole header block, in the frames `raw`."""
        if len(block) > MAX_BLOCK_BYTES:
            raise H2Error(h2.ENHANCE_YOUR_CALM, f"expected a header block of at most {MAX_BLOCK_BYTES} bytes, got {len(block)}")
        if kind != h2.HEADERS:
            return None
        if not number:
            raise H2Error(h2.PROTOCOL_ERROR, "expected HEADERS on a stream, got them on the connection")
        stream = self.streams.get(number)
        if lane.index == ASK:
            if stream is None and number > self.last:
                self._open(number, block, bool(flags & h2.END_STREAM))
                return None
            self._requests.follow(block)
        if stream is None:
            return [] if number in self._cut and (lane.index == ANSWER or self._requests.free) else None
        if not flags & h2.END_STREAM:
            if lane.index == ANSWER:
                stream.begun = True
                if stream.call is not None:
                    stream.call.opened(block)
            return None
        way = stream.ways[lane.index]
        if lane.index == ANSWER:
            stream.code = code_of(block)
            if stream.call is not None:
                self._later(stream.call, stream.call.closed, block)
        way.ended = True
        if not way.empty:
            if not (context_free(block) and (lane.index == ANSWER or self._requests.free)):
                raise H2Error(h2.INTERNAL_ERROR, "expected trailers behind a held message to need no dynamic table")
            way.tail = bytes(raw)
            return []
        self._close(stream, way)
        return None

    def _open(self, number: int, block: bytes, ended: bool) -> None:
        if not number & 1:
            raise H2Error(h2.PROTOCOL_ERROR, f"expected an odd stream from a client, got {number}")
        if len(self.streams) >= MAX_STREAMS:
            raise H2Error(h2.ENHANCE_YOUR_CALM, f"expected at most {MAX_STREAMS} streams at once, got more")
        self.last = number
        path, encoding, authorization = self._requests.call(block)
        if authorization:
            self._books.overheard = authorization.decode(errors="replace")
        ask, answer = self.lanes
        call = Call(self._books, path, encoding) if path in (INFER, STREAM) else None
        ways = Way(ask.initial, call is not None), Way(answer.initial, call is not None)
        kind = "bidi_stream" if path == STREAM else "unary"
        stream = Stream(number, *ways, call, self._books.calls.begin(path.decode("latin-1"), kind, self.peer))
        stream.ways[ASK].ended = stream.ways[ASK].closed = ended
        self.streams[number] = stream

    def _reset(self, lane: Lane, number: int, _: int, __: int, frame: memoryview) -> Out | None:
        code = h2.word(frame, "RST_STREAM")
        stream = self.streams.get(number)
        if stream is None:
            return [] if number in self._cut else None
        if lane.index == ASK:
            self._drop(stream, "CANCELLED: the client went away")
        else:
            self._drop(stream, f"the server reset the stream: {h2.error_name(code)}")
        return None

    def _settings(self, lane: Lane, number: int, _: int, flags: int, frame: memoryview) -> Out | None:
        if number:
            raise H2Error(h2.PROTOCOL_ERROR, f"expected SETTINGS of the connection, got them on stream {number}")
        if flags & h2.ACK:
            if lane.index == ASK:
                self._requests.free = True
            return None
        towards = self.lanes[1 - lane.index]
        pairs = list(h2.settings(frame[9:]))
        for name, value in pairs:
            if name == h2.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise H2Error(h2.FLOW_CONTROL_ERROR, f"expected an initial window of at most {MAX_WINDOW}, got {value}")
                grown, towards.initial = value - towards.initial, value
                for stream in self.streams.values():
                    stream.ways[towards.index].window.resized(grown)
            elif name == h2.MAX_FRAME_SIZE:
                if not h2.DEFAULT_FRAME <= value < 1 << 24:
                    raise H2Error(h2.PROTOCOL_ERROR, f"expected a maximum frame size of 16384 to 16777215, got {value}")
                towards.largest, towards.limit = value, max(value, towards.limit)
        self._pump(towards)
        first, lane.next = lane.next is not None, None
        if not first and not any(name == h2.HEADER_TABLE_SIZE for name, _ in pairs):
            return None
        rest = [pair for pair in pairs if pair[0] != h2.HEADER_TABLE_SIZE]
        return [h2.pack_settings([(h2.HEADER_TABLE_SIZE, 0), *rest]), *lane.settled()]

    def _window_update(self, lane: Lane, number: int, _: int, __: int, frame: memoryview) -> Out | None:
        n = h2.word(frame, "WINDOW_UPDATE") & MAX_WINDOW
        towards = self.lanes[1 - lane.index]
        if not number:
            if towards.window.even:
                towards.window.allowance += n
                return None
            towards.window.granted(n)
            self._pump(towards)
            due = towards.window.due(towards.keeping, CONNECTION_FLOOR)
        else:
            stream = self.streams.get(number)
            if stream is None:
                return [] if number in self._cut else None
            way = stream.ways[towards.index]
            if way.window.even:
                way.window.allowance += n
                return None
            way.window.granted(n)
            if way.waiting:
                self._pump(towards)
            due = way.window.due(way.keeping, way.reader.missing if way.reader is not None else 0)
        if due == n:
            return None
        return [h2.window_update(number, due)] if due else []

    def _goaway(self, lane: Lane, _: int, __: int, ___: int, frame: memoryview) -> Out | None:
        if len(frame) < 17:
            raise H2Error(h2.FRAME_SIZE_ERROR, f"expected a GOAWAY of 8 bytes or more, got {len(frame) - 9}")
        if lane.index == ANSWER:
            last = int.from_bytes(frame[9:13]) & h2.MAX_STREAM
            for stream in [stream for number, stream in self.streams.items() if number > last]:
                self._drop(stream, "UNAVAILABLE: the server went away before it took the call")
        return None

    def close(self, reason: str) -> None:
        """The connection is no more."""
        for stream in [*self.streams.values()]:
            self._drop(stream, reason)

    def abort(self, error: H2Error) -> None:
        """Tells both sides that this connection ends, and why."""
        self.close(f"INTERNAL: {error}")
        for lane, last in zip(self.lanes, (0, self.last), strict=True):
            lane.out.append(h2.goaway(last, error.code))
