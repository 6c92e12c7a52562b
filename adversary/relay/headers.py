"""Header blocks (HPACK, RFC 7541): which method a request calls, how a call ended, and an ending of our own.

Both peers are told to keep no dynamic table (SETTINGS_HEADER_TABLE_SIZE 0), so that a block means the same wherever it stands
and trailers may wait behind held messages. A client may not have heard of it when it sends its first requests: until it has
acknowledged, its blocks are followed by a real decoder, the package hpack. Afterwards a walk over the fields is enough, which
decodes the values that are asked for and skips the others: 5 us where the decoder takes 100.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import grpc
from hpack import Decoder, HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from adversary.relay.frames import COMPRESSION_ERROR, END_HEADERS, END_STREAM, HEADERS, H2Error, frame

MAX_BLOCK_BYTES = 64 << 10
"""of one header block; gRPC's own limit on metadata is 8 to 16 KiB"""
MAX_KNOWN = 256
_STATIC = [(name, value) for name, value in HeaderTable.STATIC_TABLE]
_ASKED = (b":path", b"grpc-encoding", b"authorization")
_OUTGROWN = "expected a header block without a dynamic table, as it was told to, got a reference into one"


class Request(NamedTuple):
    """What is read of a request's headers."""

    path: bytes
    encoding: bytes
    """by which its messages are compressed, where they say that they are"""
    authorization: bytes


class Requests:
    """The header blocks of one client, in their order."""

    def __init__(self) -> None:
        self.free = False
        """whether the client keeps no dynamic table any more: a block means the same at any place"""
        self._decoder = Decoder(max_header_list_size=4 * MAX_BLOCK_BYTES)
        self._known: dict[bytes, Request] = {}

    def call(self, block: bytes) -> Request:
        """What a request says. Raises H2Error."""
        if not self.free:
            try:
                fields = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
            except (HPACKError, IndexError, ValueError) as error:
                raise H2Error(COMPRESSION_ERROR, f"expected a header block, got {error!r}") from error
            return Request(*(fields.get(name, b"") for name in _ASKED))
        known = self._known.get(block)
        if known is None:
            found = pick(block, _ASKED)
            known = Request(*(found.get(name, b"") for name in _ASKED))
            if len(self._known) < MAX_KNOWN and len(block) < 1024:
                self._known[block] = known
        return known

    def follow(self, block: bytes) -> None:
        """A block of which nothing is asked: trailers, or one of a stream that is gone. Raises H2Error."""
        if not self.free:
            self.call(block)


def pick(block: bytes, names: tuple[bytes, ...]) -> dict[bytes, bytes]:
    """The values of these fields in a block that refers to no dynamic table. Raises H2Error."""
    found: dict[bytes, bytes] = {}
    for name, value, coded in _walk(block):
        if name in names:
            found[name] = _plain(value, coded)
    return found


def context_free(block: bytes) -> bool:
    """Whether a block of a peer that keeps no dynamic table may be sent at another time: it says nothing of that table."""
    try:
        at = 0
        while at < len(block):
            if block[at] & 0xE0 == 0x20:
                return False
            at = _field(block, at)[3]
    except (H2Error, IndexError):
        return False
    return True


def _walk(block: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(name, value, whether that is Huffman-coded) of each field. Raises H2Error."""
    at, end = 0, len(block)
    try:
        while at < end:
            if block[at] & 0xE0 == 0x20:  # the table's size, which is 0 from then on
                _, at = _integer(block, at, 5)
                continue
            name, value, coded, at = _field(block, at)
            if at > end:
                raise H2Error(COMPRESSION_ERROR, f"expected a header block, got {end} bytes that end within a field")
            yield name, value, coded
    except IndexError:
        raise H2Error(COMPRESSION_ERROR, f"expected a header block, got {end} bytes that end within a number") from None


def _field(block: bytes, at: int) -> tuple[bytes, bytes, bool, int]:
    first = block[at]
    if first & 0x80:
        index, at = _integer(block, at, 7)
        name, value = _static(index)
        return name, value, False, at
    index, at = _integer(block, at, 6 if first & 0x40 else 4)
    if index:
        name = _static(index)[0]
    else:
        name, coded, at = _string(block, at)
        name = _plain(name, coded)
    value, coded, at = _string(block, at)
    return name, value, coded, at


def _static(index: int) -> tuple[bytes, bytes]:
    if not 1 <= index <= len(_STATIC):
        raise H2Error(COMPRESSION_ERROR, _OUTGROWN)
    return _STATIC[index - 1]


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    mask = (1 << bits) - 1
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in range(0, 28, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise H2Error(COMPRESSION_ERROR, "expected a number of at most 28 bits in a header block, got a longer one")


def _string(block: bytes, at: int) -> tuple[bytes, bool, int]:
    coded = bool(block[at] & 0x80)
    size, at = _integer(block, at, 7)
    return block[at : at + size], coded, at + size


def _plain(value: bytes, coded: bool) -> bytes:
    if not coded:
        return value
    try:
        return bytes(decode_huffman(value))
    except HPACKError as error:
        raise H2Error(COMPRESSION_ERROR, f"expected a Huffman-coded value, got {error!r}") from error


@lru_cache(maxsize=128)
def status_of(block: bytes) -> tuple[int | None, str]:
    """(gRPC's code, its message) of a response's last header block; None where it has none. Raises H2Error."""
    found = pick(block, (b"grpc-status", b"grpc-message"))
    code = found.get(b"grpc-status", b"")
    text = unquote_to_bytes(found.get(b"grpc-message", b"")).decode(errors="replace")
    return int(code) if code.isdigit() and len(code) < 4 else None, text


def code_of(block: bytes) -> grpc.StatusCode:
    """How the server ended a call, as far as its last header block can be read."""
    try:
        said = status_of(block)[0]
    except H2Error:
        said = None
    return next((code for code in grpc.StatusCode if code.value[0] == said), grpc.StatusCode.UNKNOWN)


def ending(stream: int, code: int, message: str, begun: bool) -> bytes:
    """A HEADERS frame that ends a call with this status; `begun`: the response's own headers have been sent."""
    fields = [
        (b"grpc-status", str(code).encode()),
        (b"grpc-message", quote(message, safe=" !#$&'()*+,/:;=?@[]").encode()[:4096]),
    ]
    block = b"" if begun else b"\x88" + _literal(b"content-type", b"application/grpc")
    block += b"".join(_literal(*field) for field in fields)
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block)


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(n: int) -> bytes:
    if n < 0x7F:
        return bytes([n])
    out, n = bytearray(b"\x7f"), n - 0x7F
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)
