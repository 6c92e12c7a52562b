"""Range variant of asymmetric numeral systems: the bitstream of `entropy`, vectorised over lanes and latents with numpy.

Duda, "Asymmetric numeral systems", arXiv 1311.2540, section 2.4 (rANS). Normative: `lanes.py` says which symbols a stream
holds; it is what constriction's AnsCoder (`rans_constriction.py`) writes with our tables. The state x is 64 bits, 0 before the
first symbol that is coded, which is the last of the lane: coding goes backwards. A symbol of frequency f and cumulated
frequency c out of 2^24 (256 times the prior's) is coded by x <- (x div f)·2^24 + x mod f + c; where that would not stay
below 2^64, that is where x >= 2^40·f, x mod 2^32 is first written as a word and x <- x div 2^32. The stream is the words in
the order written and then x, little-endian, less the zero bytes at its end.

Decoding: x is the last two words, or fewer where there are not as many. The symbol is found by s = x mod 2^24, c <= s < c + f;
x <- f·(x div 2^24) + s - c, and where that falls below 2^32 and a word is left, x <- x·2^32 + the word before. At the end
there is no word left and x = 0: 24 bits of checksum a lane. All of that is defined for any bytes, in as many steps as symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from splitcore.codec.lanes import ends

U64 = NDArray[np.uint64]
Places = NDArray[np.int64]
PRECISION, WORD = np.uint64(24), np.uint64(32)
ONE = 1 << 24
TOGETHER = 1 << 20
"""symbols that are coded in one go: what bounds the memory of a long stack"""


@dataclass(frozen=True, eq=False)
class Rans:
    """Codes places [k, n] in the tables of their channels, `cdf` [C][m + 1] of 2^16; symbol e has channel[e]."""

    cdf: tuple[tuple[int, ...], ...]
    channel: NDArray[np.int64]
    """[n]"""

    @cached_property
    def _whole(self) -> tuple[tuple[int, ...], ...]:
        # one more channel, of one symbol that is certain: it fills up lanes, and codes nothing
        return (*self.cdf, (0, ONE >> 8))

    @cached_property
    def _first(self) -> Places:
        """[C + 1] where a channel's intervals begin among all."""
        lengths = np.array([len(table) - 1 for table in self._whole])
        first: Places = np.cumsum(lengths) - lengths
        return first

    @cached_property
    def _frequency(self) -> U64:
        """[N] of all intervals in a row."""
        return np.concatenate([np.diff(table) for table in self._whole]).astype(np.uint64) << np.uint64(8)

    @cached_property
    def _keys(self) -> U64:
        """[N] channel·2^24 + cumulated frequency: strictly rising."""
        starts = [np.asarray(table[:-1], np.uint64) << np.uint64(8) for table in self._whole]
        return np.concatenate([start | np.uint64(c << 24) for c, start in enumerate(starts)])

    def write(self, places: Places, lanes: Sequence[int]) -> list[list[bytes]]:
        """Places [k, n], each latent in its number of lanes, to as many streams."""
        streams: list[list[bytes]] = [[] for _ in lanes]
        for rows in self._parts(lanes):
            written = iter(self._write(places[rows], [lanes[row] for row in rows]))
            for row in rows:
                streams[row] = [next(written) for _ in range(lanes[row])]
        return streams

    def read(self, streams: Sequence[Sequence[bytes]]) -> tuple[Places, NDArray[np.bool_]]:
        """Streams of k latents to places [k, n], and whether each of the k came to the end as it should."""
        places = np.empty((len(streams), len(self.channel)), np.int64)
        whole = np.empty(len(streams), bool)
        for rows in self._parts([len(each) for each in streams]):
            places[rows], whole[rows] = self._read([streams[row] for row in rows])
        return places, whole

    def _parts(self, lanes: Sequence[int]) -> list[list[int]]:
        """Latents that go together: of about as many lanes, so that those whose lanes are short need not be filled up much."""
        parts: list[list[int]] = []
        width = steps = 0
        for row in sorted(range(len(lanes)), key=lanes.__getitem__):
            width += lanes[row]
            if not parts or steps * width > TOGETHER:
                parts.append([])
                width, steps = lanes[row], -(-len(self.channel) // lanes[row])
            parts[-1].append(row)
        return parts

    def _spread(self, lanes: Sequence[int]) -> tuple[Places, NDArray[np.bool_]]:
        """[steps, W] which of the k·n symbols each of all W lanes has at a step, and whether it still has one."""
        n = len(self.channel)
        bounds = [row * n + ends(n, each) for row, each in enumerate(lanes)]
        begin, end = (np.concatenate([bound[part] for bound in bounds]) for part in (slice(-1), slice(1, None)))
        at = begin + np.arange(-(-n // min(lanes)))[:, None]
        return np.minimum(at, end - 1), at < end

    def _write(self, places: Places, lanes: Sequence[int]) -> list[bytes]:
        at, inside = self._spread(lanes)
        interval = np.where(inside, (places + self._first[self.channel]).ravel()[at], len(self._keys) - 1)
        frequency = self._frequency[interval]
        start = self._keys[interval] & np.uint64(ONE - 1)
        rest, limit = np.uint64(ONE) - frequency, frequency << np.uint64(40)
        limit[frequency == ONE] = np.iinfo(np.uint64).max  # 2^64 does not fit; what is certain writes nothing
        words, full = np.empty(at.shape, np.uint32), np.empty(at.shape, bool)
        x = np.zeros(at.shape[1], np.uint64)
        quotient = np.empty_like(x)
        for t in range(len(at) - 1, -1, -1):
            np.greater_equal(x, limit[t], out=full[t])
            words[t] = x  # the low half
            np.right_shift(x, WORD, out=quotient)
            np.copyto(x, quotient, where=full[t])
            np.floor_divide(x, frequency[t], out=quotient)
            # (x div f)·2^24 + x mod f = x + (x div f)·(2^24 - f)
            quotient *= rest[t]
            x += quotient
            x += start[t]
        bodies = words[::-1].T[full[::-1].T].astype("<u4").tobytes()
        stops = (4 * np.cumsum(full.sum(axis=0))).tolist()
        states = x.astype("<u8").tobytes()
        return [
            (bodies[begin:stop] + states[8 * lane : 8 * lane + 8]).rstrip(b"\0")
            for lane, (begin, stop) in enumerate(zip([0, *stops], stops, strict=False))
        ]

    def _read(self, streams: Sequence[Sequence[bytes]]) -> tuple[Places, NDArray[np.bool_]]:
        at, inside = self._spread([len(each) for each in streams])
        channels = self.channel.astype(np.uint64) << PRECISION
        base = np.where(inside, channels[at % len(channels)], self._keys[-1])
        # before each stream's words one that is none, where reading stops
        filled = [b"\0" * 4 + stream.ljust(-(-len(stream) // 4) * 4, b"\0") for each in streams for stream in each]
        words = np.frombuffer(b"".join(filled), "<u4").astype(np.uint64)
        left = np.cumsum([len(stream) // 4 for stream in filled]) - 1
        least = np.full(len(words), 1 << 32, np.uint64)
        least[[0, *(left[:-1] + 1)]] = 0
        # an interval is found as the number of keys up to it, one more than its index
        frequency, keys = np.append(0, self._frequency).astype(np.uint64), np.append(0, self._keys).astype(np.uint64)
        low, shift = np.full(len(left), ONE - 1, np.uint64), np.full(len(left), PRECISION)
        found = np.empty(at.shape, np.int64)
        x, bound = np.zeros(len(left), np.uint64), least[left]
        key, wanting = np.empty_like(x), np.empty(len(x), bool)
        for t in range(-2, len(at)):
            if t >= 0:
                np.bitwise_and(x, low, out=key)
                np.bitwise_or(key, base[t], out=key)
                interval = self._keys.searchsorted(key, "right")
                found[t] = interval
                np.right_shift(x, shift, out=x)
                np.multiply(x, frequency.take(interval), out=x)
                np.subtract(key, keys.take(interval), out=key)
                np.add(x, key, out=x)
            np.less(x, bound, out=wanting)
            [wanters] = wanting.nonzero()
            if len(wanters):
                read = left[wanters]
                x[wanters] = x[wanters] << WORD | words[read]
                read -= 1
                left[wanters] = read
                bound[wanters] = least[read]
        places = np.empty((len(streams), len(channels)), np.int64)
        places.reshape(-1)[at[inside]] = found[inside]
        places -= self._first[self.channel] + 1
        ended = (x == 0) & (least[left] == 0)
        lanes = np.cumsum([0, *map(len, streams)])[:-1]
        return places, np.logical_and.reduceat(ended, lanes)
