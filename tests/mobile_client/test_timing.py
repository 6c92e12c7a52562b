"""Detection of a man in the middle by timing: the arithmetic, and a phone whose frames are held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from mobile_client.timing import CLIP, HonestWay, threshold, way_ms, windows
from splitcore.errors import ScenarioError
from splitcore.frame import EDGE_US, Frame, FrameId, Reply
from splitcore.wire import oip


def test_the_edges_time_is_taken_off_where_it_can_be_true() -> None:
    assert way_ms(1_000_000, 11_000_000, 4.0) == 6.0
    for impossible in (None, -0.001, 10.001):
        assert way_ms(1_000_000, 11_000_000, impossible) is None


def test_what_a_byte_costs_is_learned_where_sizes_differ_and_a_few_stragglers_change_nothing() -> None:
    sizes = np.linspace(100, 10_000, 200)
    ways = 2.0 + 0.001 * sizes
    ways[::20] += 500
    way = HonestWay.learned(ways, sizes)
    assert way.fixed_ms == pytest.approx(2.0, abs=0.01) and way.per_byte_ms == pytest.approx(0.001, rel=0.01)
    assert way.scores([2.0 + 5.0 + 1.0], [5000])[0] == pytest.approx(1.0 / way.scatter_ms, abs=0.5)
    alike = HonestWay.learned(np.full(50, 3.0), np.full(50, 500))
    assert (alike.fixed_ms, alike.per_byte_ms) == (3.0, 0.0)


def test_a_window_is_the_mean_of_clipped_scores_and_its_threshold_a_quantile_of_honest_ones() -> None:
    scores = [0.0, 1.0, 2.0, 1000.0, -1000.0, 3.0]
    assert windows(scores, 2).tolist() == [0.5, 1.5, (2 + CLIP) / 2, 0.0, (3 - CLIP) / 2]
    assert windows(scores, 2, apart=True).tolist() == [0.5, (2 + CLIP) / 2, (3 - CLIP) / 2]
    assert windows(scores, 7).size == 0 and threshold(scores, 7, 0.01) == float("inf")
    honest = np.random.default_rng(0).normal(0, 1, 5000)
    above = threshold(honest, 4, 0.05)
    assert (windows(honest, 4) > above).mean() == pytest.approx(0.05, abs=0.001)


def answer(frame: Frame) -> bytes:
    labels = np.array([FrameId.parse(frame.id).sequence % 10])
    return oip.pack_stream_reply(Reply(id=frame.id, labels=labels, parameters={EDGE_US: 0} if frame.timed else {}))


async def at_once(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
    async for frame in frames:
        await write(answer(frame))


async def held(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
    kept = [frame async for frame in frames_until(frames, 40)]
    await asyncio.sleep(0.5)
    for frame in kept:
        await write(answer(frame))


async def frames_until(frames: AsyncIterator[Frame], count: int) -> AsyncIterator[Frame]:
    async for frame in frames:
        yield frame
        count -= 1
        if not count:
            return


async def test_a_phone_whose_frames_are_held_raises_the_alarm(start_peer: Any, run_pass: Any) -> None:
    honest = await start_peer(at_once)
    plain = await run_pass(honest.address, run="untimed", count=10)
    assert "way_ms" not in plain.frames[0]
    window = {"window": 64, "count": 40}
    first = await run_pass(honest.address, run="honest", timing={"window": 4}, **window)
    assert all(row["way_ms"] > 0 and row["message_bytes"] > 0 and "alarm" not in row for row in first.frames)
    between = await start_peer(held)
    second = await run_pass(between.address, run="held", timing={"window": 4, "baseline": "honest"}, **window)
    assert min(row["way_ms"] for row in second.frames) >= 450
    assert sum(row["alarm"] for row in second.frames) == 37, "every whole window"
    assert all(row["way_score"] > 0 for row in second.frames)
    with pytest.raises(ScenarioError, match=r"expected a run nobody of this phone with 20 timed frames or more.*it has 0"):
        await run_pass(honest.address, run="third", timing={"baseline": "nobody"}, count=0 + 1)


async def test_a_pass_that_shall_go_direct_needs_a_phone_that_knows_where(start_peer: Any, run_pass: Any) -> None:
    peer = await start_peer(at_once)
    with pytest.raises(ScenarioError, match="started with --direct"):
        await run_pass(peer.address, direct=True)
