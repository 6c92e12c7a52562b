"""Parsimonious: which blocks of the latent to raise and which to lower by eps, by lazy greedy local search.

Moon, An, Song, "Parsimonious Black-Box Adversarial Attacks via Efficient Combinatorial Optimization", ICML 2019, algorithms 1
to 5, with the authors' mini-batches of blocks, each of whose first gains are asked for in one round.

Departures: the paper's blocks are squares in one channel of an image. Here the first ones are larger where there would be more
than a mini-batch of them, and span runs of channels where they fill the map; they are halved across the map, then across
channels. A gain that still holds when its turn comes is not asked for again. The complement of the set (algorithm 3, last line)
is not tried.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass as plain
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from adversary.attacks.base import Answers, Ask, Case, Search, as_map
from splitcore.codec.base import STRICT
from splitcore.latent import F32
from splitcore.threat import Feedback, LinfBall, Norm


@plain(slots=True)
class Block:
    """An element e of the ground set V, and whether it is in the working set S."""

    at: tuple[slice, ...]
    """of [C, H, W]"""
    raised: bool = False

    def split(self) -> list[Block]:
        """Its halves along height and width, where those are one along the channels; itself where it is one coordinate."""
        c, h, w = (span.stop - span.start for span in self.at)
        axes = (1, 2) if max(h, w) > 1 else (0,)
        spans = [cuts(span, -(-(span.stop - span.start) // 2)) if axis in axes else [span] for axis, span in enumerate(self.at)]
        return [Block(at, self.raised) for at in itertools.product(*spans)] if max(c, h, w) > 1 else [self]


@plain(slots=True)
class Working:
    """The working set as the latent that it stands for."""

    best: F32
    """[C, H, W]"""
    opposite: F32
    """[C, H, W]: every coordinate the other way"""
    loss: float
    """of `best`"""

    def flipped(self, blocks: list[Block]) -> F32:
        """`best` with one of the blocks the other way, for each of them, [k, C, H, W]."""
        candidates = np.repeat(self.best[None], len(blocks), axis=0)
        for candidate, block in zip(candidates, blocks, strict=True):
            candidate[block.at] = self.opposite[block.at]
        return candidates

    def flip(self, block: Block, loss: float) -> None:
        fresh = self.opposite[block.at].copy()
        self.opposite[block.at] = self.best[block.at]
        self.best[block.at] = fresh
        block.raised = not block.raised
        self.loss = loss


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Parsimonious:
    """Flip the block that gains most, until none gains; then halve the blocks."""

    feedback: ClassVar[Feedback] = "scores"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)

    kind: Literal["parsimonious"] = "parsimonious"
    side: Annotated[int, Field(ge=1)] = 4
    """k: of the first blocks; the authors' for images of 32x32"""
    most: Annotated[int, Field(ge=1)] = 64
    """|V| at the start, about, at most; the authors' k = 4 makes 192 of 3x32x32, for budgets of 20,000"""
    batch: Annotated[int, Field(ge=1)] = 64
    """blocks of a mini-batch; the authors' 64"""

    def perturb(self, z: F32, case: Case) -> Search:
        assert isinstance(case.ball, LinfBall)
        shape = as_map(z.shape)
        low, high = case.ball.low.reshape(shape), case.ball.high.reshape(shape)
        blocks = self.first(*shape)
        [loss] = (yield Ask("init", low.reshape(1, *z.shape))).loss
        work = Working(low.copy(), high.copy(), float(loss))
        while blocks := [block for block in blocks if (low[block.at] != high[block.at]).any()]:  # the others cannot move
            order = case.rng.permutation(len(blocks)).tolist()
            for start in range(0, len(order), self.batch):
                part = [blocks[i] for i in order[start : start + self.batch]]
                yield from greedy("insert", [block for block in part if not block.raised], work, z.shape)
                yield from greedy("delete", [block for block in part if block.raised], work, z.shape)
            blocks = [half for block in blocks for half in block.split()]
        return None

    def first(self, C: int, H: int, W: int) -> list[Block]:
        """Squares in one channel, wider where there would be too many, and in runs of channels where they fill the map."""
        side = min(self.side, max(H, W))
        while C * -(-H // side) * -(-W // side) > self.most and side < max(H, W):
            side *= 2
        places = -(-H // side) * -(-W // side)
        run = min(C, -(-C * places // self.most))
        spans = cuts(slice(0, C), run), cuts(slice(0, H), side), cuts(slice(0, W), side)
        return [Block(at) for at in itertools.product(*spans)]


def cuts(span: slice, length: int) -> list[slice]:
    """`span` in pieces of `length`, the last perhaps shorter."""
    return [slice(start, min(start + length, span.stop)) for start in range(span.start, span.stop, length)]


def greedy(phase: str, blocks: list[Block], work: Working, shape: tuple[int, ...]) -> Generator[Ask, Answers, None]:
    """Flips of `blocks` those that lower the loss, always the one that gains most (algorithms 1 and 2).

    What a block gained earlier is no less than what it gains now where the set function is submodular: so only the best of the
    old gains is asked for again, and flipped if it is still no worse than the next.
    """
    if not blocks:
        return
    losses = (yield Ask(phase, work.flipped(blocks).reshape(-1, *shape))).loss.tolist()
    gains = [(gain(loss, work), i, loss, 0) for i, loss in enumerate(losses)]
    heapq.heapify(gains)
    flips = 0
    while gains:
        change, i, loss, known_after = heapq.heappop(gains)
        if known_after < flips:
            [loss] = (yield Ask(phase, work.flipped([blocks[i]]).reshape(-1, *shape))).loss.tolist()
            change = gain(loss, work)
            if gains and change > gains[0][0]:
                heapq.heappush(gains, (change, i, loss, flips))
                continue
        if change >= 0:
            return
        work.flip(blocks[i], loss)
        flips += 1


def gain(loss: float, work: Working) -> float:
    """The change of the loss; one without an answer is no gain, whatever it is compared with."""
    return loss - work.loss if loss < math.inf else math.inf
