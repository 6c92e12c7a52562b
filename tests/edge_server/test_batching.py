"""The batcher inside a running server: what it computes together, what it refuses, what it logs before it computes."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from edge_server.queue import BatchSettings
from splitcore.journal import read
from splitcore.telemetry.collector import Collector
from splitcore.wire import oip

from .conftest import Peer


async def queued(edge, requests: int) -> None:
    """Until that many requests wait in the held batcher; each look at the server is a round trip, not a sleep."""
    while edge.server.batcher.pending[0] < requests:
        await edge.peer.call(oip.LIVE)


async def send(edge, frames, **options):
    """A stream on which `frames` were written."""
    call = edge.peer.stream(**options)
    for frame in frames:
        await call.write(oip.pack_request(frame))
    return call


async def test_rows_of_several_requests_are_computed_together(start_edge, served):
    edge = await start_edge(batching=BatchSettings(max_batch_size=8))
    edge.server.batcher.hold()
    sizes = [3, 4, 2, 6, 1]
    stacks = [served.latents(rows, seed=rows) for rows in sizes]
    call = await send(edge, [served.frame(f"{n}", stack) for n, stack in enumerate(stacks)])
    await queued(edge, 5)
    edge.server.batcher.release()
    await call.done_writing()
    replies = {reply.id: reply for reply in [oip.unpack_stream_reply(message) async for message in call]}
    # 3+4, then 2+6, then 1
    assert edge.server.metrics.executions == 3 and edge.server.metrics.rows == 16
    times = [row["t_ns"] for row in read(edge.log)]
    assert [times.index(t) for t in times] == [0, 0, 2, 2, 4]
    for n, stack in enumerate(stacks):
        np.testing.assert_allclose(replies[str(n)].scores, served.scores(stack), rtol=1e-4, atol=1e-4)


async def test_a_request_with_more_rows_than_a_batch_is_computed_in_slices(start_edge, served):
    edge = await start_edge(batching=BatchSettings(max_batch_size=4))
    latents = served.latents(11)
    reply = await edge.peer.infer(served.frame("large", latents))
    np.testing.assert_allclose(reply.scores, served.scores(latents), rtol=1e-4, atol=1e-4)
    assert edge.server.metrics.executions == 3
    assert [(row["id"], row["rows"]) for row in read(edge.log)] == [("large", 11)]


async def test_a_full_queue_refuses_in_band_and_by_status_and_takes_requests_again_when_it_is_empty(start_edge, served):
    edge = await start_edge(batching=BatchSettings(max_queue_size=4))
    edge.server.batcher.hold()
    call = await send(edge, [served.frame("a", served.latents(3)), served.frame("b", served.latents(2))])
    refused = oip.unpack_stream_reply(await call.read())
    assert refused.id == "b" and refused.error.startswith("RESOURCE_EXHAUSTED: Exceeds maximum queue size: 3 rows")
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await edge.peer.infer(served.frame("c", served.latents(2)))
    assert unary.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "max_queue_size 4" in unary.value.details()
    edge.server.batcher.release()
    assert oip.unpack_stream_reply(await call.read()).id == "a"
    await call.write(oip.pack_request(served.frame("b", served.latents(2), attempt=2)))
    assert oip.unpack_stream_reply(await call.read()).error is None
    await call.done_writing()
    assert edge.logged() == ["a", "b"]
    assert edge.server.metrics.failures["REJECTED_FULL"] == 2


async def test_a_request_that_waited_past_its_timeout_is_refused_and_never_computed(edge, served):
    edge.server.batcher.hold()
    call = await send(edge, [served.frame("late", timeout_us=1), served.frame("patient", timeout_us=600_000_000)])
    await queued(edge, 2)
    edge.server.batcher.release()
    await call.done_writing()
    late, patient = [oip.unpack_stream_reply(message) async for message in call]
    assert late.id == "late" and late.error.startswith("DEADLINE_EXCEEDED: Request timeout expired")
    assert patient.id == "patient" and patient.error is None
    assert edge.logged() == ["patient"]
    assert edge.server.metrics.failures["REJECTED_DEADLINE"] == 1


async def test_requests_whose_callers_have_gone_are_dropped_when_dequeued(edge, served):
    edge.server.batcher.hold()
    unary = asyncio.create_task(edge.peer.infer(served.frame("unary")))
    call = await send(edge, [served.frame("stream")])
    stays = await send(edge, [served.frame("stays")])
    await queued(edge, 3)
    unary.cancel()
    call.cancel()
    while edge.server.metrics.open_streams > 1:
        await edge.peer.call(oip.LIVE)
    # the end of a unary call shows nowhere but at the call itself
    for _ in range(20):
        await edge.peer.call(oip.LIVE)
    edge.server.batcher.release()
    assert oip.unpack_stream_reply(await stays.read()).id == "stays"
    await stays.done_writing()
    assert edge.logged() == ["stays"]
    assert edge.server.metrics.failures["CANCELED"] == 2


async def test_rows_are_logged_when_they_leave_the_queue_and_not_before(edge, served):
    edge.server.batcher.hold()
    call = await send(
        edge, [served.frame("run/phone/1", attempt=3), served.frame("run/q/1", served.latents(5), origin="query")]
    )
    await queued(edge, 2)
    assert edge.logged() == []
    edge.server.batcher.release()
    await call.done_writing()
    assert len([message async for message in call]) == 2
    rows = [{key: row[key] for key in ("id", "attempt", "origin", "rows")} for row in read(edge.log)]
    assert rows == [
        {"id": "run/phone/1", "attempt": 3, "origin": "client", "rows": 1},
        {"id": "run/q/1", "attempt": 1, "origin": "query", "rows": 5},
    ]


async def test_when_the_log_cannot_be_written_nothing_is_computed_and_the_caller_is_told(start_edge, served, tmp_path):
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "server.jsonl").symlink_to("/dev/full")
    edge = await start_edge()
    [reply] = await edge.peer.ask([served.frame("a")])
    assert reply.error.startswith("INTERNAL: the server's log cannot be written (No space left on device)")
    assert edge.server.metrics.executions == 0


async def test_a_client_that_does_not_read_its_answers_is_not_read_from_and_others_go_on(start_edge, served, monkeypatch):
    monkeypatch.setattr("edge_server.stream.MAX_UNREAD", 8)
    edge = await start_edge(batching=BatchSettings(max_batch_size=4096, max_queue_size=1 << 20))
    call = edge.peer.stream()
    # 32 KB up and 96 KB down each: what the transport buffers is soon full
    frame = oip.pack_request(served.frame("x", served.latents(2048), "uniform2/tensor"))

    async def flood() -> None:
        while True:
            while edge.server.batcher.pending[0] > 2:
                await edge.peer.call(oip.LIVE)
            await call.write(frame)

    flooding = asyncio.create_task(flood())
    while not (streams := edge.server.service._streams) or len(next(iter(streams))._outbox) <= 8:
        await edge.peer.call(oip.LIVE)
    [stream] = streams
    # its frames that were taken in are computed when those behind them are, for the queue is served in order
    assert (await edge.peer.infer(served.frame("other"))).error is None
    taken_in = stream._pending
    for n in range(20):
        assert (await edge.peer.infer(served.frame(f"other{n}"))).error is None
    assert stream._pending == taken_in == len(stream._outbox) + 1
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    call.cancel()


async def test_a_client_that_never_half_closes_does_not_keep_the_server_from_ending(start_edge, served):
    edge = await start_edge()
    call = edge.peer.stream()
    await call.write(oip.pack_request(served.frame("a")))
    assert oip.unpack_stream_reply(await call.read()).error is None
    await edge.server.drain()
    assert not edge.server.batcher.alive
    assert await call.code() == grpc.StatusCode.UNAVAILABLE


async def test_the_times_of_a_clients_frame_go_to_telemetry_and_an_adversarys_queries_do_not(start_edge, served, tmp_path):
    collector = Collector(tmp_path / "spans.jsonl")
    try:
        edge = await start_edge(telemetry=collector.endpoint)
        await edge.peer.ask([served.frame("run/phone/1"), served.frame("run/phone/1", origin="query", attempt=2)])
        await edge.peer.infer(served.frame("run/phone/2"))
        while collector.received < 3:
            await edge.peer.call(oip.LIVE)
    finally:
        collector.close()
    spans = [row for row in read(tmp_path / "spans.jsonl") if row["kind"] == "span"]
    assert [(row["node"], row["frame"], row["attempt"]) for row in spans] == [
        ("edge", "run/phone/1", 1), ("edge", "run/phone/2", 1),
    ]  # fmt: skip
    for row in spans:
        times = [row["t"][name] for name in ("received", "dequeued", "decoded", "tail_done", "replied")]
        assert times == sorted(times) and times[0] > 0


async def test_answers_of_a_stream_leave_in_the_order_of_its_requests_where_that_is_wanted(start_edge, served):
    settings = BatchSettings(max_batch_size=2, preserve_ordering=True, priority_levels=2, default_priority_level=2)
    edge = await start_edge(batching=settings)
    edge.server.batcher.hold()
    frames = [served.frame("a"), served.frame("b"), served.frame("wrong", model="another"), served.frame("c", priority=1)]
    call = await send(edge, [*frames, served.frame("d"), served.frame("e", priority=1)])
    await queued(edge, 5)
    edge.server.batcher.release()
    await call.done_writing()
    replies = [oip.unpack_stream_reply(message) async for message in call]
    assert [reply.id for reply in replies] == ["a", "b", "wrong", "c", "d", "e"]
    assert [reply.id for reply in replies if reply.error] == ["wrong"]
    assert edge.logged()[:2] == ["c", "e"], "they were computed by their priority"


async def test_a_flooder_does_not_starve_another_client(start_edge, served):
    edge = await start_edge(batching=BatchSettings(max_batch_size=8, max_queue_size=64))
    edge.server.batcher.hold()
    flood = await send(edge, [served.frame(f"flood/{n}") for n in range(64)])
    await queued(edge, 64)
    other = Peer(edge.server.address)
    asked = [asyncio.create_task(other.infer(served.frame(f"other/{n}"))) for n in range(4)]
    while edge.server.metrics.failures["REJECTED_FULL"] < 4:
        await edge.peer.call(oip.LIVE)
    edge.server.batcher.release()
    assert all(reply.error is None for reply in await asyncio.gather(*asked))
    await flood.done_writing()
    replies = [oip.unpack_stream_reply(message) async for message in flood]
    pushed_out = [reply for reply in replies if reply.error]
    assert {reply.id for reply in pushed_out} == {f"flood/{n}" for n in range(60, 64)}
    assert all("made room for a client that holds less" in reply.error for reply in pushed_out)
    assert {f"other/{n}" for n in range(4)} <= set(edge.logged()[:16]), "in the first batches, not behind the flood"
    await other.channel.close()


async def test_a_unary_refusal_says_when_to_ask_again(start_edge, served):
    edge = await start_edge(batching=BatchSettings(max_queue_size=1, status="triton"))
    edge.server.batcher.hold()
    first = asyncio.create_task(edge.peer.infer(served.frame("first")))
    await queued(edge, 1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await edge.peer.infer(served.frame("second"))
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert int(dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1
    edge.server.batcher.release()
    assert (await first).error is None


async def test_a_deadline_that_cannot_be_met_is_refused_before_the_queue_and_says_what_was_predicted(
    start_edge, served, monkeypatch
):
    monkeypatch.setattr("edge_server.forecast.STALE_NS", 1 << 60)
    edge = await start_edge(batching=BatchSettings(max_batch_size=4))
    for n in range(16):  # enough batches to know what one takes
        await edge.peer.infer(served.frame(f"learn/{n}"))
    edge.server.batcher.hold()
    call = await send(edge, [served.frame(f"{n}", served.latents(64)) for n in range(60)])
    await queued(edge, 60)
    await call.write(oip.pack_request(served.frame("hopeless", timeout_us=2)))
    reply = oip.unpack_stream_reply(await call.read())
    assert reply.id == "hopeless" and reply.error.startswith("DEADLINE_EXCEEDED: Request timeout expired: 3840 rows wait")
    assert edge.server.batcher.pending[0] == 60
    call.cancel()
    edge.server.batcher.release()
