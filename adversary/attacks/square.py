"""Square: random search over windows, squares of ±eps in linf, bumps of opposite sign in l2.

Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack via random search",
ECCV 2020, algorithm 1 with the distributions of algorithms 2 (linf) and 3 (l2).

Departures for latents: the paper's window spans all (three) channels. With many channels that would redraw everything at a
place, so above `whole_channels` the window is a block of channels too, of p·C·H·W coordinates in all: √p of the channels on √p
of the map, and p of the channels where the map is one place. In l2 the window that takes and the one that gives then lie in
blocks of channels of their own. On maps that are not square a window may fill the shorter side, where the paper has square
maps alone; a side below 5 has as many tiles at the start as places, and on maps up to 6 wide bumps shrink to one place, where
the paper stops at 3. A targeted search lowers the target's margin, where the paper takes the cross-entropy. The l2 search goes
on from what arrived, so that what the box or the quantiser took of the length is given out again.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Ask, Case, Search, as_map
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, LinfBall, Norm

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""the paper's schedule: p is halved after these iterations of 10,000 (section 3.2)"""
AHEAD = 64
"""windows that are drawn at once"""
REDRAWS = 100
"""of a window that changes nothing, at most"""
TILES = 5
"""bumps along a side at the start of the l2 search (section 3.4)"""
LONGER = np.float32(1.001)
"""of a new bump, so that it leaves something where it is the opposite of the old"""
TINY = np.float32(1e-20)

Window = tuple[slice, slice, slice]
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Square:
    """Keep a redrawn window iff it lowers the margin."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    kind: Literal["square"] = "square"
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
    """p: fraction of the coordinates that the first windows change; the authors' for MNIST and robust models. For ImageNet they
    take 0.05 in linf and 0.1 in l2"""
    whole_channels: Annotated[int, Field(ge=0)] = 4
    """with at most so many channels a window spans them all, as in the paper"""

    def perturb(self, z: F32, case: Case) -> Search:
        return self.corners(z, case) if case.ball.norm == "linf" else self.bumps(z, case)

    def corners(self, z: F32, case: Case) -> Search:
        """Algorithm 2, on the corners of ball, box and grid: there every candidate lies, so none is projected."""
        assert isinstance(case.ball, LinfBall)
        n, rng, shape = case.budget, case.rng, as_map(z.shape)
        low, high = case.ball.low.reshape(shape), case.ball.high.reshape(shape)
        best = np.where(coins(rng, (shape[0], 1, shape[2])), high, low)  # vertical stripes (section 3.3)
        [best_loss] = (yield Ask("init", best.reshape(1, *z.shape))).loss
        turns = self.turns(n)
        for i in range(1, n):
            if i in turns:
                drawn = windows(rng, self.window(self.p(i, n), *shape), shape)
            for window, heads in islice(drawn, REDRAWS):
                fresh: F32 = np.where(heads, high[window], low[window])  # one sign per channel
                if fresh.tobytes() != best[window].tobytes():  # the cheapest comparison
                    break
            candidate = best.copy()
            candidate[window] = fresh
            [loss] = (yield Ask("search", candidate.reshape(1, *z.shape))).loss
            if loss < best_loss:
                best, best_loss = candidate, loss
        return None

    def bumps(self, z: F32, case: Case) -> Search:
        """Algorithm 3: one window gets a new bump and the length of another, which is emptied."""
        ball, n, rng, shape = case.ball, case.budget, case.rng, as_map(z.shape)
        radius2 = np.float32(ball.eps**2 * (1 - 1e-5))  # the rest is for what float32 rounds
        delta = tiles(rng, shape)
        delta *= np.sqrt(radius2 / np.vdot(delta, delta))
        answers = yield Ask("init", ball.boxed(z + delta.reshape(1, *z.shape)))
        [best_loss] = answers.loss
        nu = (answers.arrived - z).reshape(shape)  # ν: the best so far less the clean latent
        turns = self.turns(n)
        for i in range(1, n):
            if i in turns:
                size = c, h, w = self.window(self.p(i, n), *shape, odd=True)
                takers, givers = windows(rng, size, shape), windows(rng, size, shape)
                etas = (bump(h, w), -bump(h, w)), (bump(w, h).T, -bump(w, h).T)
            (taker, heads), (giver, turned) = next(takers), next(givers)
            unused = max(np.float32(0), radius2 - np.vdot(nu, nu))
            old = nu[taker]
            length2 = squares(old)
            eta: F32 = np.where(heads, *etas[turned.item(0)])
            length: F32 = np.sqrt(np.maximum(length2, TINY))
            fresh = LONGER * eta + old / length  # ν_temp, of the new and the old direction
            delta = nu.copy()
            delta[taker] = 0
            available2 = length2 + squares(delta[giver]) + unused / np.float32(c)
            delta[giver] = 0
            delta[taker] = fresh * np.sqrt(available2 / squares(fresh))
            answers = yield Ask("search", ball.boxed(z + delta.reshape(1, *z.shape)))
            if answers.loss[0] < best_loss:
                [best_loss] = answers.loss
                nu = (answers.arrived - z).reshape(shape)
        return None

    def p(self, i: int, n: int) -> float:
        """The fraction changed at iteration i of n: the paper's schedule, stretched to the budget."""
        return self.p_init / float(1 << bisect_left(HALVINGS, i * 10_000 / n))

    @staticmethod
    def turns(n: int) -> set[int]:
        """The iterations of n that p changes at, and the first."""
        return {1, *(halving * n // 10_000 + 1 for halving in HALVINGS)}

    def window(self, p: float, C: int, H: int, W: int, *, odd: bool = False) -> Shape:
        """Channels, height and width: a square of side round(√(p·H·W)), at least 1 and below the longer side, cut at the
        shorter one; with many channels √p of the map and √p of them. `odd`: the next odd side, at least 3 where that is less
        than half of the map's."""
        whole = self.whole_channels >= C
        s = round(math.sqrt((p if whole else math.sqrt(p)) * H * W))
        if odd:
            s = max(3 if max(H, W) > 6 else 1, s + 1 - s % 2)
        s = max(1, min(s, max(H, W) - 1))
        h, w = min(s, H), min(s, W)
        return C if whole else max(1, min(round(p * C * H * W / (h * w)), C)), h, w


def windows(rng: np.random.Generator, size: Shape, of: Shape) -> Iterator[tuple[Window, NDArray[np.bool_]]]:
    """Without end, places for a window in a map, and a coin for each of its channels [c, 1, 1]."""
    c, h, w = size
    room = np.subtract(of, size) + 1
    while True:
        corners = (rng.random((AHEAD, 3)) * room).astype(np.int64).tolist()
        for (k, y, x), heads in zip(corners, coins(rng, (AHEAD, c, 1, 1)), strict=True):
            yield (slice(k, k + c), slice(y, y + h), slice(x, x + w)), heads


def coins(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """True or False, each with probability a half, [*shape]."""
    return (np.frombuffer(rng.bytes(math.prod(shape)), np.int8) < 0).reshape(shape)


def squares(x: F32) -> F32:
    """Σ x² of each channel of x [c, h, w], [c, 1, 1]."""
    each: F32 = np.einsum("chw,chw->c", x, x)[:, None, None]
    return each


def tiles(rng: np.random.Generator, shape: Shape) -> F32:
    """5x5 bumps, each upright or turned, of either sign in each channel, [C, H, W] (section 3.4)."""
    C, H, W = shape
    rows, columns = min(TILES, H), min(TILES, W)
    h, w = H // rows, W // columns
    eta = np.where(coins(rng, (rows, 1, columns, 1)), bump(h, w)[:, None], bump(w, h).T[:, None])
    tiled = np.where(coins(rng, (C, rows, 1, columns, 1)), eta, -eta).reshape(C, rows * h, columns * w)
    top, left = (H - rows * h) // 2, (W - columns * w) // 2
    delta: F32 = np.zeros(shape, np.float32)
    delta[:, top : top + rows * h, left : left + columns * w] = tiled
    return delta


@cache
def bump(h: int, w: int) -> F32:
    """η [h, w] of length 1, read-only: two halves side by side, of opposite sign, each peaked in its middle (section 3.4)."""
    left = w // 2
    eta = np.concatenate([peak(h, left), -peak(h, w - left)], axis=1)
    eta /= np.linalg.norm(eta)
    eta.flags.writeable = False
    return eta


def peak(h: int, w: int) -> F32:
    """Nested rectangles [h, w], ever higher towards the middle: Σ 1/(n+1-k)² over k from 0 to M, n = max(h, w)//2 (eq. 2)."""
    n = max(h, w) // 2
    M = n - np.maximum(np.abs(np.arange(h) - h // 2)[:, None], np.abs(np.arange(w) - w // 2))
    heights: F32 = np.cumsum(1 / (n + 1 - np.arange(n + 1)) ** 2)[M].astype(np.float32)
    return heights
