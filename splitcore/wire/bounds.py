"""How heavy a message is, seen before protobuf parses it: the top level of protobuf's wire format.

A field of two bytes can become an object of a hundred: 16 MiB of empty tensors take 700 MiB and more than a second to
parse. So whatever is no tensor is bounded first. https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from splitcore.errors import WireError

MAX_LOOSE_BYTES = 64 << 10
"""bytes of a message outside its tensors at most: parsed, they take up to 50 times as much memory"""
MAX_FIELDS = 4096
"""top-level fields of a message at most"""


CONTENTS = 5
"""the protocol's number of a tensor's typed contents"""
LIGHT = (2, 4, 6, 7, 8)
"""numbers in these of packed int32, uint32, float32, float64 and of BYTES: parsed they take at most four times their bytes, or
are few"""


def weigh(message: bytes | memoryview, raw: int, typed: int = 0) -> None:
    """Refuses a message that would take far more memory than its length, before it is parsed. Raises WireError.

    `raw`: the number of the field with raw tensors, `typed` of that with tensors and their contents; 0: there is none.
    """
    if len(message) > MAX_LOOSE_BYTES:
        weighed(message, raw, typed)


def weighed(message: bytes | memoryview, raw: int, typed: int = 0) -> list[tuple[int, int, int]]:
    """The fields of a large message, which is no heavier than `weigh` allows. Raises WireError."""
    parts, loose = list(fields(message)), 0
    for number, start, end in parts:
        if number == raw:
            continue
        loose += end - start
        if number == typed and end - start > MAX_LOOSE_BYTES:
            loose -= _numbers(memoryview(message)[start:end])
    if loose > MAX_LOOSE_BYTES:
        raise WireError(f"expected at most {MAX_LOOSE_BYTES} bytes outside the tensors of a message, got {loose}")
    return parts


def _numbers(tensor: memoryview) -> int:
    """Bytes of packed numbers and of BYTES elements in a tensor's typed contents."""
    return sum(
        stop - begin
        for number, start, end in fields(tensor)
        if number == CONTENTS
        for kind, begin, stop in fields(tensor[start:end])
        if kind in LIGHT
    )


def fields(message: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each top-level field's content (protobuf's wire format). Raises WireError."""
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(message):
            return
        tag, at = _varint(message, at)
        start = at
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                size, start = _varint(message, at)
                at = start + size
            case 5:
                at += 4
            case other:
                raise WireError(f"expected a protobuf message, got wire type {other} in {len(message)} bytes")
        if at > len(message):
            raise WireError(f"expected a protobuf message, got {len(message)} bytes with a field that ends at {at}")
        yield tag >> 3, start, at
    if at != len(message):
        raise WireError(f"expected at most {MAX_FIELDS} fields in a message, got more in {len(message)} bytes")


def _varint(message: bytes | memoryview, at: int) -> tuple[int, int]:
    if at < len(message) and (byte := message[at]) < 0x80:
        return byte, at + 1
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise WireError(f"expected a protobuf message, got {len(message)} bytes that end within a number")
