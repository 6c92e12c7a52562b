"""HTTP/2 frames (RFC 9113, sections 4 and 6), as far as a splice looks at them; all others pass unseen."""

from __future__ import annotations

import struct
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 0x1, 0x4, 0x5
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
FRAME_SIZE_ERROR, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x6, 0x8, 0x9, 0xB
ERRORS = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip
DEFAULT_WINDOW, DEFAULT_FRAME = 65_535, 16_384
MAX_STREAM = 0x7FFF_FFFF
HEADER = struct.Struct(">BHBBI")
"""length in two parts, type, flags, stream"""
_SETTING = struct.Struct(">HI")
_WORD = struct.Struct(">I")


class H2Error(Exception):
    """What a peer sent is not HTTP/2, or more of it than is taken. It ends the connection, never the process."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def error_name(code: int) -> str:
    return ERRORS[code] if code < len(ERRORS) else f"error {code:#x}"


def header(length: int, kind: int, flags: int, stream: int) -> bytes:
    return HEADER.pack(length >> 16, length & 0xFFFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return header(len(payload), kind, flags, stream) + payload


def window_update(stream: int, n: int) -> bytes:
    return header(4, WINDOW_UPDATE, 0, stream) + _WORD.pack(n)


def rst_stream(stream: int, code: int) -> bytes:
    return header(4, RST_STREAM, 0, stream) + _WORD.pack(code)


def goaway(last: int, code: int, why: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + why.encode())


def data(stream: int, content: bytes | bytearray | memoryview, largest: int, end: bool) -> list[bytes | memoryview]:
    """Content as DATA frames of at most `largest` bytes, the last of them with END_STREAM where it is the end."""
    view = memoryview(content)
    n = len(view)
    if n <= largest:
        return [header(n, DATA, END_STREAM if end else 0, stream), view]
    frames: list[bytes | memoryview] = []
    for at in range(0, n, largest):
        piece = view[at : at + largest]
        frames += (header(len(piece), DATA, END_STREAM if end and at + largest >= n else 0, stream), piece)
    return frames


def word(frame: memoryview, what: str) -> int:
    """The 32 bits of a whole WINDOW_UPDATE or RST_STREAM frame. Raises H2Error."""
    if len(frame) != HEADER.size + 4:
        raise H2Error(FRAME_SIZE_ERROR, f"expected 4 bytes in a {what} frame, got {len(frame) - HEADER.size}")
    return int.from_bytes(frame[HEADER.size :])


def settings(payload: memoryview) -> Iterator[tuple[int, int]]:
    """(name, value) of each setting. Raises H2Error."""
    if len(payload) % 6:
        raise H2Error(FRAME_SIZE_ERROR, f"expected SETTINGS of 6 bytes each, got {len(payload)} bytes")
    return _SETTING.iter_unpack(payload)


def pack_settings(pairs: list[tuple[int, int]]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))


def content(flags: int, payload: memoryview, kind: int) -> memoryview:
    """Of a DATA or HEADERS frame, less its padding and its priority. Raises H2Error."""
    start, stop = 0, len(payload)
    if flags & PADDED:
        if not stop:
            raise H2Error(FRAME_SIZE_ERROR, "expected a padding length in a PADDED frame, got an empty frame")
        start, stop = 1, stop - payload[0]
    if kind == HEADERS and flags & WITH_PRIORITY:
        start += 5
    if start > stop:
        raise H2Error(PROTOCOL_ERROR, f"expected padding within the frame, got {len(payload)} bytes in all")
    return payload[start:stop]
