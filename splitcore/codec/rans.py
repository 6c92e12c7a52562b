"""Range variant of asymmetric numeral systems, interleaved: the bitstream of `entropy`, vectorised over lanes and latents.

Duda, "Asymmetric numeral systems", arXiv 1311.2540, section 2.4 (rANS); Giesen, "Interleaved entropy coders", arXiv 1402.3392.
Normative. Symbol e of n belongs to step e // L and lane e % L of L = `lanes_of(n)` lanes. A lane's state x is 32 bits,
2^16 <= x < 2^32. A symbol with frequency f and cumulated frequency c of 2^16 in all is decoded from s = x mod 2^16,
c <= s < c + f, by x <- f·(x >> 16) + s - c, and where that falls below 2^16, x <- x·2^16 + the stream's next word: step by
step, in a step lane by lane. After the last symbol every lane's state is 2^16. The stream is the L states before the first
symbol (uint32, little-endian), then the words (uint16, little-endian). The encoder runs backwards,
x <- (x div f)·2^16 + x mod f + c.

Departure from the usual 64-bit state: a lane wastes three bytes instead of six, so that 48 of them stay below 2 % of 10 kB. The
final state is a checksum of 16 bits a lane; a decoder does n steps' work whatever it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
ONE = np.uint32(1 << 16)
LOW, HALF = np.uint32((1 << 16) - 1), np.uint32(16)


def lanes_of(n: int) -> int:
    """Lanes for n symbols: one for every 512, from 1 to 48."""
    return min(48, max(1, n // 512))


@dataclass(frozen=True)
class Tables:
    """The intervals of all channels in a row, and one more that is the whole of a channel of its own: it codes nothing."""

    first: NDArray[np.int64]
    """[C + 1] where a channel's intervals begin"""
    start: U32
    """[N] cumulated frequency at an interval's lower end"""
    frequency: U32
    """[N]"""
    keys: U32
    """[N] channel·2^16 + start, strictly rising"""

    @classmethod
    def of(cls, cdf: tuple[tuple[int, ...], ...]) -> Tables:
        whole = (*cdf, (0, 1 << 16))
        start = np.concatenate([np.asarray(table[:-1], np.uint32) for table in whole])
        frequency = np.concatenate([np.diff(table).astype(np.uint32) for table in whole])
        lengths = np.array([len(table) - 1 for table in whole])
        keys = np.repeat(np.arange(len(whole), dtype=np.uint32) << HALF, lengths) | start
        return cls(np.cumsum(lengths) - lengths, start, frequency, keys)


def encode(intervals: NDArray[np.int64], tables: Tables) -> list[bytes]:
    """Indices of intervals [k, n] to k streams."""
    k, n = intervals.shape
    lanes = lanes_of(n)
    steps = -(-n // lanes)
    padded = np.full((k, steps * lanes), len(tables.start) - 1)
    padded[:, :n] = intervals
    order = np.ascontiguousarray(padded.reshape(k, steps, lanes).swapaxes(0, 1))
    frequency, start = tables.frequency[order], tables.start[order]
    rest = ONE - frequency
    words, written = np.empty((steps, k, lanes), np.uint16), np.empty((steps, k, lanes), bool)
    x = np.full((k, lanes), ONE)
    quotient, shift = np.empty_like(x), np.empty_like(x)
    for t in range(steps - 1, -1, -1):
        np.right_shift(x, HALF, out=quotient)
        np.greater_equal(quotient, frequency[t], out=written[t])
        words[t] = x  # the low half
        np.multiply(written[t], HALF, out=shift)
        np.right_shift(x, shift, out=x)
        np.floor_divide(x, frequency[t], out=quotient)
        # (x div f)·2^16 + x mod f = x + (x div f)·(2^16 - f)
        quotient *= rest[t]
        x += quotient
        x += start[t]
    return [
        x[row].astype("<u4").tobytes() + words[:, row][written[:, row]].astype("<u2").tobytes() for row in range(k)
    ]  # fmt: skip


def decode(
    states: U32, words: NDArray[np.uint16], channels: U32, tables: Tables
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """States [k, L] and words [k, W], filled up, with the channel of every symbol [n], to the indices of intervals [k, n],
    how many words were wanted [k], perhaps more than there are, and whether the states ended as they should [k]."""
    k, lanes = states.shape
    n = len(channels)
    steps = -(-n // lanes)
    base = np.full(steps * lanes, tables.keys[-1])
    base[:n] = channels << HALF
    base = base.reshape(steps, 1, lanes)
    found = np.empty((steps, k, lanes), np.int64)
    x = states.copy()
    flat = words.astype(np.uint32).reshape(-1)
    # one before the row's first word: the count of those wanted is added to it
    at = (np.arange(k) * words.shape[1] - 1).reshape(k, 1)
    begin = at.ravel().copy()
    for t in range(steps):
        slot = x & LOW
        interval = np.searchsorted(tables.keys, base[t] | slot, side="right")
        interval -= 1
        found[t] = interval
        x >>= HALF
        x *= tables.frequency[interval]
        x += slot
        x -= tables.start[interval]
        wanting = x < ONE
        places = at + np.cumsum(wanting, axis=1)
        np.copyto(x, x << HALF | flat.take(places, mode="clip"), where=wanting)
        at = places[:, -1:]
    indices = found.swapaxes(0, 1).reshape(k, steps * lanes)[:, :n]
    return indices, at.ravel() - begin, (x == ONE).all(axis=1)
