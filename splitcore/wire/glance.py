"""What a message is called, and how much it carries, without its tensors: for whoever only passes it on.

A walk over protobuf's wire format, as bounds.py has it, in the two places where that is enough: it takes a fifth of the time.
It judges nothing: what is not simple is for oip.py to read. https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import NamedTuple

from splitcore.errors import WireError
from splitcore.frame import Frame
from splitcore.wire.oip import ATTEMPT_KEY, MAX_ATTEMPT, MAX_ID, MAX_ROWS, RAW_INPUTS

MAX_FIELDS = 4096
LAYOUTS, LAYOUT_BYTES = 8, 1024
"""that are remembered, the newest first, and bytes of one"""
_ATTEMPT = b"\x0a" + bytes([len(ATTEMPT_KEY)]) + ATTEMPT_KEY.encode() + b"\x12"
"""how the parameter's entry begins: its key, then its value"""


class Glance(NamedTuple):
    """Of a frame of our own clients, in a ModelInferRequest with one raw input."""

    frame: Frame
    """with empty payloads and no shape"""
    payload_bytes: int
    size: int
    """of the message"""


class _Layout(NamedTuple):
    """Of a message with one id, less than 128 bytes long, and its tensor last: all but the id and what is in the tensor."""

    head: bytes
    """up to the id's length"""
    tail: bytes
    """from behind the id to the tensor's first byte"""
    raw: int
    """bytes of the tensor"""
    frame: Frame
    payload_bytes: int


class Glancer:
    """Glances at the messages of clients who send one after the other: what is as it was in one of the last few is compared and
    not read again, and that is all but ids and tensors."""

    def __init__(self) -> None:
        self._known: list[_Layout] = []

    def __call__(self, message: bytes, size: int | None = None) -> Glance | None:
        """None: it is not that simple, `oip.unpack_request` is to say what it is.

        `size`: of the message whose beginning this is. It is enough where all that is lacking is the rest of the tensor.
        """
        size = len(message) if size is None else size
        for head, tail, raw, frame, payload_bytes in self._known:
            at = len(head)
            if len(message) > at and message.startswith(head):
                end = at + 1 + message[at]
                if message.startswith(tail, end) and end + len(tail) + raw == size and at + 1 < end <= at + 0x80:
                    try:
                        name = message[at + 1 : end].decode()
                    except UnicodeDecodeError:
                        return None
                    return Glance(_named(name, frame.rows, frame.attempt), payload_bytes, size)
        return self._read(message, size)

    def _read(self, message: bytes, size: int) -> Glance | None:
        names: list[tuple[int, int]] = []
        attempt, rows, datatype, inputs, raws = 0, 0, b"", 0, list[tuple[int, int]]()
        try:
            fields = _fields(message, 0, len(message), size, RAW_INPUTS)
            for number, start, end in fields:
                if number == 3:
                    names.append((start, end))
                elif number == 4:
                    if message.startswith(_ATTEMPT, start, end):
                        attempt = _attempt(message, start + len(_ATTEMPT), end)
                elif number == 5:
                    inputs += 1
                    rows, datatype = _tensor(message, start, end)
                elif number == RAW_INPUTS:
                    raws.append((start, end))
            first, last = names[-1] if names else (0, 0)
            name = message[first:last].decode()
        except (WireError, UnicodeDecodeError):
            return None
        simple = inputs == len(raws) == 1 and 1 <= rows <= MAX_ROWS and 1 <= attempt <= MAX_ATTEMPT
        if not simple or datatype not in (b"BYTES", b"FP32") or not 0 < len(name) <= MAX_ID:
            return None
        [(start, end)] = raws
        raw = end - start
        payload_bytes = max(0, raw - 4 * rows) if datatype == b"BYTES" else raw
        frame = _named(name, rows, attempt)
        if len(names) == 1 and message[first - 1] == last - first and end == size and last <= start <= LAYOUT_BYTES:
            self._known.insert(0, _Layout(message[: first - 1], message[last:start], raw, frame, payload_bytes))
            del self._known[LAYOUTS:]
        return Glance(frame, payload_bytes, size)


def _named(name: str, rows: int, attempt: int) -> Frame:
    return Frame(id=name, payloads=(b"",) * rows, shape=(), attempt=attempt)


def answer(message: bytes) -> tuple[str, str | None] | None:
    """(id, error) of a streamed answer, in either dialect: `oip.unpack_stream_reply` says how they are told apart.

    None: it is not that simple.
    """
    name, error, response = b"", b"", (0, 0)
    bare = False
    try:
        for number, start, end in _fields(message, 0, len(message)):
            if number == 1:
                error = message[start:end]
            elif number == 2:
                response = start, end
            else:
                bare = True
                if number == 3:
                    name = message[start:end]
        if bare:
            return name.decode(), None
        for number, start, end in _fields(message, *response):
            if number == 3:
                name = message[start:end]
        return (name.decode(), error.decode() or None) if name else None
    except (WireError, UnicodeDecodeError):
        return None


def _attempt(message: bytes, at: int, end: int) -> int:
    """The value of the parameter, an int64 (2) or a uint64 (5), the last if several."""
    value = 1
    try:
        size, at = _varint(message, at)
        end = min(end, at + size)
    except IndexError:
        end = at
    while at < end:
        tag = message[at]
        value, at = _varint(message, at + 1)
        if tag not in (0x10, 0x28):
            raise WireError(f"expected parameter {ATTEMPT_KEY} as int64_param, got another kind")
    return value


def _tensor(message: bytes, at: int, end: int) -> tuple[int, bytes]:
    """(rows, datatype) of an input."""
    rows, datatype, found = 0, b"", False
    for number, start, stop in _fields(message, at, end):
        if number == 2:
            datatype = message[start:stop]
        elif number == 3 and not found and stop > start:
            rows, found = _varint(message, start)[0], True
    return rows, datatype


def _fields(message: bytes, at: int, end: int, size: int = 0, last: int = 0) -> list[tuple[int, int, int]]:
    """(number, start, end) of each field's content between two places. Raises WireError.

    Where the message goes on behind them to `size`, it must do so within the field `last`, which ends with it.
    """
    found: list[tuple[int, int, int]] = []
    try:
        while at < end:
            tag = message[at]
            at += 1
            if tag > 0x7F:
                tag, at = _varint(message, at - 1)
            kind, start = tag & 7, at
            if kind == 2:
                length = message[at]
                at += 1
                if length > 0x7F:
                    length, at = _varint(message, at - 1)
                start = at
                at += length
            elif kind == 0:
                while message[at] > 0x7F:
                    at += 1
                at += 1
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise WireError(f"expected a protobuf message, got wire type {kind} in {len(message)} bytes")
            if at > end and at == size and tag >> 3 == last:
                found.append((last, start, at))
                return found
            if at > end or len(found) == MAX_FIELDS:
                raise WireError(f"expected at most {MAX_FIELDS} fields that end in {end} bytes, got one that ends at {at}")
            found.append((tag >> 3, start, at))
    except IndexError:
        raise WireError(f"expected a protobuf message, got {len(message)} bytes that end within a number") from None
    if end < size:
        raise WireError(f"expected a message of {size} bytes, got {end} that end between two fields")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise WireError(f"expected a protobuf message, got a number of more than ten bytes in {len(message)}")
