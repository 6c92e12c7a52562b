"""HTTP/2 by hand, as those speak it who mean no good: frames, header blocks without tables, and a socket (RFC 9113, 7541)."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator, Sequence

from splitcore.wire import oip
from splitcore.wire.channel import split_address

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY, ACK = 1, 4, 8, 32, 1


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """`length`: what the frame says of itself, where that is not so."""
    return (
        struct.pack(">I", len(payload) if length is None else length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload
    )


def settings(**values: int) -> bytes:
    """By their numbers: s1=0 is SETTINGS_HEADER_TABLE_SIZE of 0."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", int(name[1:]), value) for name, value in values.items()))


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that enters no table (RFC 7541, 6.2.2)."""
    return b"\0" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    out, rest = bytearray([127]), len(text) - 127
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest]) + text


def block(path: str = oip.path(oip.STREAM), **more: str) -> bytes:
    """The header block of a gRPC request."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return b"".join(literal(name.encode(), value.encode()) for name, value in fields.items())


def grpc_message(message: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", compressed, len(message) if length is None else length) + message


def conversation(messages: Sequence[bytes], path: str = oip.path(oip.STREAM)) -> list[bytes]:
    """What a good client sends, frame by frame, its preface first."""
    data = [frame(DATA, 0, 1, grpc_message(message)) for message in messages]
    return [
        PREFACE,
        settings(s4=1 << 20),
        frame(WINDOW_UPDATE, payload=struct.pack(">I", 1 << 20)),
        frame(SETTINGS, ACK),
        frame(HEADERS, END_HEADERS, 1, block(path)),
        *data,
        frame(PING, payload=bytes(8)),
        frame(DATA, END_STREAM, 1),
    ]


def answer(messages: Sequence[bytes]) -> list[bytes]:
    """What a good server sends to a first call, its settings first."""
    head = literal(b":status", b"200") + literal(b"content-type", b"application/grpc")
    data = [frame(DATA, 0, 1, grpc_message(message)) for message in messages]
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(b"grpc-status", b"0"))
    return [
        settings(s3=100),
        frame(SETTINGS, ACK),
        frame(HEADERS, END_HEADERS, 1, head),
        *data,
        frame(PING, payload=bytes(8)),
        trailers,
    ]


def mutated_frames(frames: Sequence[bytes], rng: random.Random, keep: int = 1) -> bytes:
    """Frames with other types, flags, streams, lengths, contents; left out, doubled, in another order. `keep` stay first."""
    changed = [bytearray(piece) for piece in frames[keep:]]
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        piece = changed[at]
        match rng.randrange(8):
            case 0:
                piece[3:4] = bytes([rng.randrange(16)])
            case 1:
                piece[4:5] = bytes([rng.randrange(256)])
            case 2:
                piece[5:9] = struct.pack(">I", rng.choice((0, 1, 2, 3, 5, 2**31 - 1, 2**31 + 1, rng.randrange(2**32))))
            case 3:
                piece[0:3] = (
                    rng.randbytes(3)
                    if rng.random() < 0.5
                    else (max(len(piece) - 9, 1) + rng.choice((-1, 1, 9))).to_bytes(3, "big")
                )
            case 4 if len(piece) > 9:
                piece[rng.randrange(9, len(piece))] ^= 1 << rng.randrange(8)
            case 5:
                changed.insert(at, bytearray(piece))
            case 6 if len(changed) > 1:
                del changed[at]
            case _:
                other = rng.randrange(len(changed))
                changed[at], changed[other] = changed[other], changed[at]
    return b"".join([*frames[:keep], *changed])


def connect(address: str, timeout: float = 10.0) -> socket.socket:
    return socket.create_connection(split_address(address), timeout)


def heard(connection: socket.socket, *, quiet_s: float = 0.2) -> bytes:
    """What comes until the other side closes, or says nothing for a while."""
    connection.settimeout(quiet_s)
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except (TimeoutError, ConnectionError):
        pass
    return b"".join(parts)


def frames_of(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload) of each whole frame."""
    at = 0
    while at + 9 <= len(data):
        size = int.from_bytes(data[at : at + 3], "big")
        kind, flags, stream = struct.unpack(">BBI", data[at + 3 : at + 9])
        yield kind, flags, stream & 0x7FFFFFFF, data[at + 9 : at + 9 + size]
        at += 9 + size
