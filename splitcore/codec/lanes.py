"""Lanes: how the symbols of a latent are spread over streams that are coded apart, and how those lie in a payload.

Giesen, "Interleaved entropy coders", arXiv 1402.3392: streams that do not depend on one another are coded side by side. Here
each has its own bytes, so that any coder of one stream reads them. Normative. Of n symbols in L lanes, lane l has those from
floor(l·n/L) to floor((l+1)·n/L) - 1. A payload is L (uint16, little-endian), the length in bytes of every lane's stream
(likewise), the streams one after the other, none with a zero at its end, and what the codec adds behind them.

A lane costs five bytes: two for its length, three that its first symbol and its last byte waste. So the sender takes one for
every 280 bytes, which stays below 2 % of the whole, but `fewest` at least: numpy is as fast as lanes are many, and a stream's
length must fit. The receiver takes any number from `fewest` to `most`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import CodecError

BYTES_A_LANE = 280
"""of a payload, from which on there are more lanes than `fewest`"""
LONGEST = 30_000
"""symbols of a lane: at two bytes each, what a stream's length can say"""
HEAD = struct.Struct("<H")


def fewest(n: int) -> int:
    """Lanes for n symbols at least."""
    return max(1, min(32, n // 512), -(-n // LONGEST))


def most(n: int) -> int:
    """Lanes for n symbols at most."""
    return min(4096, max(1, n // 64))


def lanes_for(n: int, size: int) -> int:
    """Lanes for n symbols that take about `size` bytes."""
    return max(fewest(n), min(most(n), size // BYTES_A_LANE))


def ends(n: int, lanes: int) -> NDArray[np.int64]:
    """[lanes + 1] where the lanes of n symbols begin, and n."""
    return np.arange(lanes + 1) * n // lanes


def join(streams: Sequence[bytes]) -> bytes:
    """Lanes' streams to the payload's beginning."""
    lengths = np.array([len(stream) for stream in streams], "<u2")
    return b"".join((HEAD.pack(len(streams)), lengths.tobytes(), *streams))


def split(payload: bytes, n: int) -> tuple[list[bytes], bytes]:
    """The inverse of `join` for n symbols: the streams, and what stands behind them. Raises CodecError."""
    lanes = HEAD.unpack_from(payload)[0] if len(payload) >= 2 else 0
    if not fewest(n) <= lanes <= most(n) or len(payload) < 2 + 2 * lanes:
        raise CodecError(
            f"entropy: expected {fewest(n)} to {most(n)} lanes and their lengths, got {lanes} lanes in {len(payload)} bytes: "
            "the payload was altered or cut"
        )
    at = (2 + 2 * lanes + np.cumsum(np.frombuffer(payload, "<u2", lanes, 2), dtype=np.int64)).tolist()
    if at[-1] > len(payload):
        raise CodecError(f"entropy: expected streams up to byte {at[-1]}, got {len(payload)} bytes: the payload was cut")
    streams = [payload[begin:end] for begin, end in zip([2 + 2 * lanes, *at], at, strict=False)]
    if any(stream.endswith(b"\0") for stream in streams):
        raise CodecError("entropy: expected streams without a zero at their end: the payload was altered")
    return streams, payload[at[-1] :]
