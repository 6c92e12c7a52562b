"""Conversations of the phone's stream with a server that does what servers do on bad days."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from mobile_client.backoff import Backoff
from mobile_client.sender import StreamLostError
from splitcore.errors import HandshakeError, LatentbedError
from splitcore.frame import Frame, FrameId, Reply
from splitcore.wire import oip


def label_of(frame: Frame) -> int:
    return FrameId.parse(frame.id).sequence % 10


def answer(frame: Frame, **fields: Any) -> bytes:
    return oip.pack_stream_reply(Reply(id=frame.id, **(fields or {"labels": np.array([label_of(frame)])})))


async def in_order(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
    async for frame in frames:
        await write(answer(frame))


async def test_every_frame_gets_its_own_answer(start_peer: Any, run_pass: Any) -> None:
    peer = await start_peer(in_order)
    done = await run_pass(peer.address, count=50)
    assert [row["predicted"] for row in done.frames] == [row["sequence"] % 10 for row in done.frames]
    assert {row["attempts"] for row in done.frames} == {1}
    assert peer.streams == 1
    assert {row["id"] for row in done.frames} == {f"r/client/{n}" for n in range(50)}


@pytest.mark.parametrize("window", [1, 3, 16])
async def test_the_window_is_filled_and_never_exceeded(start_peer: Any, run_pass: Any, window: int) -> None:
    async def hold_until_full(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        held: list[Frame] = []
        async for frame in frames:
            held.append(frame)
            if len(held) == window:
                # time for one more to come, were the bound not kept
                await asyncio.sleep(0.02)
                while held:
                    await write(answer(held.pop()))

    peer = await start_peer(hold_until_full)
    await run_pass(peer.address, count=4 * window, window=window)
    assert peer.most_in_flight == window


async def test_replies_out_of_order_find_their_frames(start_peer: Any, run_pass: Any) -> None:
    async def shuffled(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        held: list[Frame] = []
        async for frame in frames:
            held.append(frame)
            if len(held) == 8:
                random.Random(1).shuffle(held)
                for one in held:
                    await write(answer(one))
                held.clear()

    peer = await start_peer(shuffled)
    done = await run_pass(peer.address, count=40, window=8)
    assert all(row["predicted"] == row["sequence"] % 10 for row in done.frames)
    assert [row["sequence"] for row in done.frames] != list(range(40))


async def test_duplicated_and_unasked_replies_are_dropped(start_peer: Any, run_pass: Any) -> None:
    async def twice(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            await write(answer(frame))
            await write(answer(frame, labels=np.array([(label_of(frame) + 1) % 10])))
            await write(oip.pack_stream_reply(Reply(id="other/phone/1", labels=np.array([3]))))

    peer = await start_peer(twice)
    done = await run_pass(peer.address)
    assert all(row["predicted"] == row["sequence"] % 10 for row in done.frames)


async def test_an_in_band_error_is_its_frames_answer_and_the_stream_goes_on(start_peer: Any, run_pass: Any) -> None:
    async def odd_ones_fail(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            odd = label_of(frame) % 2
            await write(answer(frame, error="RESOURCE_EXHAUSTED: full") if odd else answer(frame))

    peer = await start_peer(odd_ones_fail)
    done = await run_pass(peer.address)
    for row in done.frames:
        assert (row["predicted"], row["error"]) == (
            (None, "RESOURCE_EXHAUSTED: full") if row["sequence"] % 2 else (row["sequence"] % 10, None)
        )
    assert len(peer.received) == 20
    reasons = {row["reason"] for row in done.attempts if row["event"] == "lost"}
    assert reasons == {"RESOURCE_EXHAUSTED: full"}


async def test_an_error_without_an_id_is_that_of_the_only_frame_in_flight(start_peer: Any, run_pass: Any) -> None:
    async def nameless(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for _ in frames:
            await write(oip.pack_stream_reply(Reply(id="", error="INTERNAL: something")))

    peer = await start_peer(nameless)
    done = await run_pass(peer.address, count=3, window=1)
    assert {row["error"] for row in done.frames} == {"INTERNAL: something"}


@pytest.mark.parametrize("end", ["ok", "exception", "Internal error from Core"])
async def test_a_stream_cut_by_the_server_is_asked_again_in_order_under_the_same_ids(
    start_peer: Any, run_pass: Any, end: str
) -> None:
    first_of_stream: list[list[Frame]] = []

    async def cut_after_five(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        first_of_stream.append([])
        cut = peer.streams < 3
        async for frame in frames:
            first_of_stream[-1].append(frame)
            if cut and len(first_of_stream[-1]) > 5:
                if end == "exception":
                    raise RuntimeError("the server falls over")
                if end != "ok":
                    await peer.context.abort(grpc.StatusCode.INTERNAL, end)
                return
            await write(answer(frame))

    peer = await start_peer(cut_after_five)
    done = await run_pass(peer.address, count=30, window=8)
    assert peer.streams == 3
    assert all(row["predicted"] == row["sequence"] % 10 for row in done.frames)
    asked = [(frame.id, frame.attempt) for frame in peer.received]
    assert len(asked) == len(set(asked))
    for frames in first_of_stream[1:]:
        again = [n for n, frame in enumerate(frames) if frame.attempt > 1]
        assert again == list(range(len(again)))
        assert again
        sequences = [FrameId.parse(frame.id).sequence for frame in frames]
        assert sequences == sorted(sequences)


async def test_a_frame_that_a_draining_server_turned_away_is_asked_again_when_it_is_back(
    start_peer: Any, run_pass: Any
) -> None:
    async def draining_first(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            if peer.streams == 1 and label_of(frame) > 4:
                await write(answer(frame, error="UNAVAILABLE: draining: the server is stopping"))
            else:
                await write(answer(frame))

    peer = await start_peer(draining_first)
    done = await run_pass(peer.address, count=10)
    assert [row["error"] for row in done.frames] == [None] * 10
    assert {row["sequence"] for row in done.frames if row["attempts"] == 2} >= {5}
    assert peer.streams == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        b"\x12\x7f\x00",
        random.Random(3).randbytes(200),
        b"",
        oip.pack_stream_reply(Reply(id="", error="who was that")),
    ],
    ids=["not protobuf", "cut", "random", "empty", "an error of nobody"],
)
async def test_garbage_from_the_server_costs_a_stream_at_most(start_peer: Any, run_pass: Any, garbage: bytes) -> None:
    async def garbage_first(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        told = 0
        async for frame in frames:
            if peer.streams == 1 and not told:
                told = 1
                await frames.__anext__()
                await peer.raw(garbage)
                if peer.streams == 1:
                    return
            await write(answer(frame))

    peer = await start_peer(garbage_first)
    done = await run_pass(peer.address)
    assert all(row["predicted"] == row["sequence"] % 10 for row in done.frames)


async def test_replies_with_flipped_bytes_never_cost_a_line_or_make_one_too_many(start_peer: Any, run_pass: Any) -> None:
    rng = random.Random(11)

    def flipped(message: bytes) -> bytes:
        damaged = bytearray(message)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged[: rng.randint(1, len(damaged))]) if rng.random() < 0.3 else bytes(damaged)

    async def damaging(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            scores = np.zeros((1, 10), np.float32)
            await write(answer(frame))
            if peer.streams < 15:
                await peer.raw(flipped(answer(frame, scores=scores, labels=np.array([0]))))

    peer = await start_peer(damaging)
    done = await run_pass(peer.address, count=150, window=4)
    assert len(done.frames) == 150


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ({"labels": np.array([99])}, "expected a label below 10, got 99"),
        ({"labels": np.array([-1])}, "expected a label below 10, got -1"),
        ({"model": "x"}, "expected a label in the reply"),
        ({"labels": np.array([], np.int64)}, "expected output 'label'"),
        ({"scores": np.full((1, 10), np.nan, np.float32)}, "got NaN"),
    ],
)
async def test_an_answer_that_says_nothing_usable_is_an_error_of_its_frame(
    start_peer: Any, run_pass: Any, reply: dict[str, Any], error: str
) -> None:
    async def useless(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            await write(answer(frame, **reply))

    peer = await start_peer(useless)
    done = await run_pass(peer.address, count=2)
    assert all(error in row["error"] and row["predicted"] is None for row in done.frames)


async def test_a_server_that_only_talks_garbage_ends_the_pass_after_the_patience(start_peer: Any, run_pass: Any) -> None:
    async def only_garbage(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for _ in frames:
            await peer.raw(b"\xff\xff")

    peer = await start_peer(only_garbage)
    with pytest.raises(StreamLostError, match=r"expected an answer from 127.0.0.1:\d+ within 0.2 s"):
        await run_pass(peer.address, patience_s=0.2)


async def test_a_frame_that_the_server_swallows_once_is_asked_again(start_peer: Any, run_pass: Any) -> None:
    swallowed: list[str] = []

    async def swallow_one(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            if frame.id.endswith("/3") and not swallowed:
                swallowed.append(frame.id)
                continue
            await write(answer(frame))

    peer = await start_peer(swallow_one)
    result = await run_pass(peer.address, count=8, window=4, patience_s=1)
    assert sorted(row["sequence"] for row in result.frames) == list(range(8))
    assert {row["attempts"] for row in result.frames if row["sequence"] == 3} == {2}


async def test_a_frame_that_is_always_swallowed_ends_the_pass_and_is_named(start_peer: Any, run_pass: Any) -> None:
    async def swallow(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            if not frame.id.endswith("/3"):
                await write(answer(frame))

    peer = await start_peer(swallow)
    with pytest.raises(LatentbedError, match=r"/3 within 0.5 s, got none in attempt"):
        await run_pass(peer.address, count=8, window=4, patience_s=0.5)


async def test_nobody_there_ends_the_pass_after_the_patience_and_says_what_to_do(run_pass: Any) -> None:
    with pytest.raises(StreamLostError, match="start the server, then post the run again"):
        await run_pass("127.0.0.1:9", patience_s=0.2)


def test_the_pause_doubles_from_100_ms_to_1_s_and_ends_with_the_patience() -> None:
    backoff = Backoff(patience_s=10)
    assert [backoff.pause_s(now_s) for now_s in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.pause_s(10.0) == 1.0
    assert backoff.pause_s(10.1) is None
    backoff.reset()
    assert backoff.pause_s(50.0) == 0.1


async def test_another_artefact_ends_the_pass_at_once_and_names_both_sides(
    start_peer: Any, run_pass: Any, digits_artefact: Path
) -> None:
    peer = await start_peer(in_order, handshake="digits@feed")
    with pytest.raises(HandshakeError, match=r"the phone holds artefact .*, the edge server holds digits@feed"):
        await run_pass(peer.address)
    assert peer.streams == 0


async def test_another_latent_shape_ends_the_pass_at_once(start_peer: Any, run_pass: Any) -> None:
    peer = await start_peer(in_order, latent_shape=(3, 3, 3))
    with pytest.raises(HandshakeError, match=r"the server takes \[\('latent', \[-1, 3, 3, 3\]\)\]"):
        await run_pass(peer.address)
    assert peer.streams == 0


async def test_a_handshake_refused_in_band_ends_the_pass(start_peer: Any, run_pass: Any) -> None:
    async def refusing(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            await write(answer(frame, error="FAILED_PRECONDITION: the edge server holds artefact b"))

    peer = await start_peer(refusing)
    with pytest.raises(HandshakeError, match=r"the phone holds .* the edge server holds artefact b"):
        await run_pass(peer.address)
    assert peer.streams == 1


async def test_what_is_no_server_of_the_protocol_ends_the_pass_at_once(run_pass: Any) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(HandshakeError, match="UNIMPLEMENTED"):
        await run_pass(f"127.0.0.1:{port}")
    await server.stop(None)


async def test_the_deadline_travels_as_what_is_left_of_it_and_late_frames_say_so(start_peer: Any, run_pass: Any) -> None:
    async def slow(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            await asyncio.sleep(0.03)
            await write(answer(frame))

    peer = await start_peer(slow)
    done = await run_pass(peer.address, count=4, window=1, deadline_ms=45.0)
    assert all(frame.timeout_us is not None and 1 <= frame.timeout_us <= 45_000 for frame in peer.received)
    # all four arrived at once: each waited for those before it
    assert [row["late"] for row in done.frames][2:] == [True, True]
    assert all(row["late"] == (row["total_ms"] > 45.0) for row in done.frames)
    assert peer.received[3].timeout_us == 1


async def test_a_link_with_a_long_delay_is_connected_over(start_peer: Any, run_pass: Any) -> None:
    """One attempt to connect takes several round trips: it must not be cut off after the first backoff."""
    peer = await start_peer(in_order)
    link = {"rate_up_kbps": 1e5, "rate_down_kbps": 1e5, "delay_ms": 150, "jitter_ms": 0, "loss": 0}
    done = await run_pass(peer.address, count=4, window=4, link=link)
    assert {row["attempts"] for row in done.frames} == {1}
