"""Codes of b bits without gaps: 8 of them fill b bytes, the first in the highest bits, zero bits at the end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import CodecError


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes uint8 [k, n] below 2^bits to bytes uint8 [k, ceil(n·bits/8)]; the last byte is filled with zero bits."""
    if bits == 8:
        return codes
    k, n = codes.shape
    if bits == 1:
        return np.packbits(codes, axis=1)
    if bits == 4:  # the same bytes as below, in three passes
        nibbles = codes if n % 2 == 0 else np.pad(codes, ((0, 0), (0, 1)))
        packed: NDArray[np.uint8] = nibbles[:, 0::2] << np.uint8(4) | nibbles[:, 1::2]
        return packed
    groups = -(-n // 8)
    padded = np.zeros((k, groups * 8), np.uint64)
    padded[:, :n] = codes
    shifts = np.arange(7, -1, -1, dtype=np.uint64) * np.uint64(bits)
    words = (padded.reshape(k, groups, 8) << shifts).sum(axis=2, dtype=np.uint64)
    as_bytes = words.astype(">u8").view(np.uint8).reshape(k, groups, 8)[:, :, 8 - bits :]
    return np.ascontiguousarray(as_bytes).reshape(k, groups * bits)[:, : -(-n * bits // 8)]


def unpack(packed: NDArray[np.uint8], bits: int, n: int) -> NDArray[np.uint8]:
    """The inverse of `pack`: bytes [k, ceil(n·bits/8)] to codes [k, n]. Raises CodecError for a set filling bit."""
    if bits == 8:
        return packed
    if bits == 1:
        return _whole(np.unpackbits(packed, axis=1), n)
    k = len(packed)
    if bits == 4:
        nibbles = np.empty((k, 2 * packed.shape[1]), np.uint8)
        np.right_shift(packed, 4, out=nibbles[:, 0::2])
        np.bitwise_and(packed, 15, out=nibbles[:, 1::2])
        return _whole(nibbles, n)
    groups = -(-n // 8)
    room = np.zeros((k, groups * bits), np.uint8)
    room[:, : packed.shape[1]] = packed
    words = np.zeros((k, groups, 8), np.uint8)
    words[:, :, 8 - bits :] = room.reshape(k, groups, bits)
    shifts = np.arange(7, -1, -1, dtype=np.uint64) * np.uint64(bits)
    codes = (words.view(">u8").astype(np.uint64) >> shifts) & np.uint64((1 << bits) - 1)
    return _whole(codes.astype(np.uint8).reshape(k, groups * 8), n)


def _whole(codes: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """The first n codes of each row; the filling after them is zero. Raises CodecError."""
    if codes[:, n:].any():
        raise CodecError("uniform: the bits after the last code must be zero: the payload was altered")
    return codes[:, :n]
