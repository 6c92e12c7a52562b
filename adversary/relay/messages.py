"""gRPC's length-prefixed messages within a stream of DATA: found wherever the frames cut them, and their compression."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from splitcore.wire.glance import Glance

MAX_MESSAGE_BYTES = 64 << 20
"""above what either end takes by default; a longer one passes without being looked at"""
PREFIX = 5
GLANCE_BYTES = 1024
"""of a message's beginning, in which all but its tensor must be"""
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}


class Reader:
    """One direction of one call. What is not kept passes piece by piece, and is a message too once its last byte is there."""

    __slots__ = ("_body", "_glance", "_missing", "_prefix", "_seen", "compressed", "kept")

    def __init__(self) -> None:
        self._prefix = bytearray()
        self._body = bytearray()
        self._missing = 0
        self._glance: Glance | None = None
        """of a present message that need not be put together"""
        self._seen = True
        """whether the present message is put together at all"""
        self.kept = False
        """whether the present message, or what there is of it, is kept back"""
        self.compressed = False
        """of the message that was whole last"""

    @property
    def missing(self) -> int:
        """Bytes of the present message that have not come."""
        return self._missing

    @property
    def keeping(self) -> int:
        """Bytes that are kept of the present message."""
        return len(self._prefix) + len(self._body) if self.kept else 0

    @property
    def between(self) -> bool:
        """Whether the next byte is the first of a message."""
        return not self._missing and not self._prefix

    def let_go(self) -> bytes:
        """What is kept of a message that will never be whole."""
        kept = bytes(self._prefix + self._body)
        self.kept = self._seen = False
        return kept

    def begins(self, payload: memoryview, look: Callable[[bytes, int], Glance | None]) -> bool:
        """Whether a message begins here, and ends later, of which `look` at its beginning tells all that is wanted."""
        n, size = len(payload) - PREFIX, int.from_bytes(payload[1:PREFIX])
        if self._missing or self._prefix or not 0 < n < size <= MAX_MESSAGE_BYTES or payload[0]:
            return False  # a compressed one, say
        self._glance = look(bytes(payload[PREFIX : PREFIX + GLANCE_BYTES]), size)
        if self._glance is None:
            return False
        self.kept, self.compressed, self._seen = False, False, True
        self._missing = size - n
        return True

    def skim(self, payload: memoryview) -> bytes | Glance | None:
        """What `feed` would say of the two usual payloads that pass, at less cost: b"" for a piece of a message, the message
        for one that begins and ends with it. None: it is neither."""
        n = len(payload)
        if self._missing > n and self._seen and not self.kept:
            if self._glance is None:
                self._body += payload
            self._missing -= n
            return b""
        if self._missing == n and (glance := self._glance) is not None:
            self._missing, self._glance = 0, None
            self._prefix.clear()
            return glance
        if not self._missing and not self._prefix and n > PREFIX and int.from_bytes(payload[1:PREFIX]) == n - PREFIX:
            self.kept, self.compressed = False, bool(payload[0])
            return bytes(payload[PREFIX:])
        return None

    def feed(
        self, payload: memoryview, catches: Callable[[int], bool]
    ) -> Iterator[tuple[memoryview | bytes | None, bytes | Glance | None]]:
        """(bytes that pass or None, a message that is whole or None), in their order.

        A message that was kept is not in what passes; one that was not is told before its last piece passes, and as an empty
        one where it was too long. `catches` says whether one is to be kept: asked at its first byte with 0, and if it said yes,
        with the length once that is known.
        """
        at, end = 0, len(payload)
        while at < end:
            if not self._missing:
                if not self._prefix:
                    self.kept = catches(0)
                start, at = at, min(at + PREFIX - len(self._prefix), end)
                self._prefix += payload[start:at]
                if len(self._prefix) < PREFIX:
                    yield None if self.kept else payload[start:at], None
                    return
                passing = self._begin(payload[start:at], catches)
                if self._missing:
                    yield passing, None
                    continue
                yield passing, self._whole(b"")
                continue
            start, at = at, min(at + self._missing, end)
            piece = payload[start:at]
            self._missing -= at - start
            if self._missing:
                if self._seen and self._glance is None:
                    self._body += piece
                yield None if self.kept else piece, None
                continue
            if self._glance is not None:
                glance, self._glance = self._glance, None
                self._prefix.clear()
                yield piece, glance
                continue
            if not self._seen:
                message = b""
            elif self._body:
                self._body += piece
                message = bytes(self._body)
                self._body = bytearray()
            else:
                message = bytes(piece)
            yield None if self.kept else piece, self._whole(message)

    def _begin(self, last: memoryview, catches: Callable[[int], bool]) -> memoryview | bytes | None:
        """The prefix is whole; what of it passes."""
        size = int.from_bytes(self._prefix[1:])
        self._missing = size
        self._seen = size <= MAX_MESSAGE_BYTES
        if not self.kept:
            return last
        self.kept = self._seen and catches(size)
        # a message that is not kept after all: what was kept of its prefix goes with the rest
        return None if self.kept else bytes(self._prefix)

    def _whole(self, message: bytes) -> bytes:
        self.compressed = bool(self._prefix[0])
        self._prefix.clear()
        return message


def size_of(message: bytes | Glance) -> int:
    return message.size if isinstance(message, Glance) else len(message)


def prefixed(message: bytes, compressed: bool) -> tuple[bytes, bytes]:
    return compressed.to_bytes(1) + len(message).to_bytes(4), message


def expand(message: bytes, encoding: bytes) -> bytes | None:
    """A compressed message as it was; None where it cannot be read, or would be larger than any that is looked at."""
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        return None
    decompressor = zlib.decompressobj(bits)
    try:
        plain = decompressor.decompress(message, MAX_MESSAGE_BYTES)
    except zlib.error:
        return None
    return plain if decompressor.eof and not decompressor.unused_data else None


def compress(message: bytes, encoding: bytes) -> bytes:
    """The inverse, by the encoding that the call has named."""
    compressor = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
    return compressor.compress(message) + compressor.flush()
