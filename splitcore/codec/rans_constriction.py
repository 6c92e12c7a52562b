"""The bitstream of `rans.py` by constriction, several times faster, where it is installed (it has no wheels for ARM).

Bamler, "Understanding entropy coding with asymmetric numeral systems", arXiv 2201.01741, and its library constriction: an
AnsCoder has 64 bits of state, words of 32 bits and probabilities of 24. Interval i of m begins at floor(weight below·(2^24 - m)
/ all weight) + i. With weights 256·f - 1, whole numbers that add up to 2^24 - m, that is 256·c to the last bit. A coder is only
handed out when it writes what `rans.py` writes for every entry of the tables: what a payload means must not depend on what is
installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitcore.codec.lanes import ends
from splitcore.codec.rans import Places, Rans

try:
    import constriction
except ImportError:
    constriction = None


class Constriction:
    """As Rans, with the same tables."""

    def __init__(self, channel: NDArray[np.int64], models: Sequence[Any]) -> None:
        self._channel = channel
        self._models = models

    def _runs(self, lanes: int) -> list[list[tuple[int, int, int]]]:
        """For each lane its (channel, begin, end) in a row."""
        n = len(self._channel)
        bounds = ends(n, lanes)
        changes = np.flatnonzero(np.diff(self._channel)) + 1
        cuts = np.union1d(bounds, changes)
        lane = np.searchsorted(bounds, cuts[:-1], "right") - 1
        runs: list[list[tuple[int, int, int]]] = [[] for _ in range(lanes)]
        for of, channel, begin, end in zip(
            lane.tolist(), self._channel[cuts[:-1]].tolist(), cuts.tolist(), cuts[1:].tolist(), strict=False
        ):
            runs[of].append((channel, begin, end))
        return runs

    def write(self, places: Places, lanes: Sequence[int]) -> list[list[bytes]]:
        """As Rans.write."""
        return [self._write(row, each) for row, each in zip(places.astype(np.int32), lanes, strict=True)]

    def _write(self, places: NDArray[np.int32], lanes: int) -> list[bytes]:
        streams = []
        for runs in self._runs(lanes):
            coder = constriction.stream.stack.AnsCoder()
            for channel, begin, end in reversed(runs):
                coder.encode_reverse(places[begin:end], self._models[channel])
            streams.append(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))
        return streams

    def read(self, streams: Sequence[Sequence[bytes]]) -> tuple[Places, NDArray[np.bool_]]:
        """As Rans.read."""
        places = np.empty((len(streams), len(self._channel)), np.int64)
        whole = np.ones(len(streams), bool)
        for row, each in enumerate(streams):
            for stream, runs in zip(each, self._runs(len(each)), strict=True):
                words = np.frombuffer(stream.ljust(-(-len(stream) // 4) * 4, b"\0"), "<u4").astype(np.uint32)
                coder = constriction.stream.stack.AnsCoder(words)
                for channel, begin, end in runs:
                    places[row, begin:end] = coder.decode(self._models[channel], end - begin)
                whole[row] &= coder.is_empty()
        return places, whole


def fastest(plain: Rans) -> Rans | Constriction:
    """constriction's coder where there is one that writes the same, or `plain`."""
    if constriction is None:
        return plain
    models = [constriction.stream.model.Categorical(256.0 * np.diff(cdf) - 1, perfect=False, lazy=False) for cdf in plain.cdf]
    lengths = [len(cdf) - 1 for cdf in plain.cdf]
    channel = np.arange(len(lengths)).repeat(lengths)
    every = np.concatenate([np.arange(length) for length in lengths])[None]
    lanes = [-(-len(channel) // 64)]
    agreed = Constriction(channel, models).write(every, lanes) == Rans(plain.cdf, channel).write(every, lanes)
    return Constriction(plain.channel, models) if agreed else plain
