"""The relay between a real gRPC client and a real gRPC server: any method, unchanged, and frames that are held."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adversary.addons.recorder import Pass, Recorder
from adversary.ledger import Kind, Ledger
from adversary.relay import Forward, Order, Relay
from splitcore.frame import Frame, Reply
from splitcore.journal import read
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import oip
from splitcore.wire.channel import aio_channel


class Server(grpc.GenericRpcHandler):
    """All four cardinalities under names of its own, and an inference stream that answers frames out of order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.payloads: dict[str, bytes] = {}
        self.cancelled = asyncio.Event()
        self.metadata: dict[str, Any] = {}
        self.timeout: float | None = None

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        kinds = {
            "/any.Service/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/any.Service/ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),
            "/any.Service/ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),
            "/any.Service/Both": grpc.stream_stream_rpc_method_handler(self.both),
            "/any.Service/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "/any.Service/FailStream": grpc.unary_stream_rpc_method_handler(self.fail_stream),
            "/any.Service/Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            oip.path(oip.INFER): grpc.unary_unary_rpc_method_handler(self.infer),
            oip.path(oip.STREAM): grpc.stream_stream_rpc_method_handler(self.frames),
        }
        return kinds.get(details.method)

    async def unary(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.metadata = dict(context.invocation_metadata() or ())
        self.timeout = context.time_remaining()
        await context.send_initial_metadata((("first", "1"), ("blob-bin", b"\x00\xff")))
        context.set_trailing_metadata((("last", "2"),))
        return request[::-1]

    async def server_stream(self, request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for byte in request:
            yield bytes([byte])

    async def client_stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        return b"".join([request async for request in requests])

    async def both(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request.upper()

    async def fail(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.ABORTED, "nicht möglich: 100 %", (("why-bin", b"\x01"),))
        return b""

    async def fail_stream(self, request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        yield b"one"
        await context.abort(grpc.StatusCode.DATA_LOSS, "after the first")

    async def hang(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    def answer(self, message: bytes) -> Reply:
        frame = oip.unpack_request(message)
        self.seen.append((frame.id, frame.attempt))
        self.payloads[frame.id] = bytes(frame.payloads[0])
        return Reply(id=frame.id, labels=np.array([len(frame.payloads[0])]))

    async def infer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return oip.pack_reply(self.answer(request))

    async def frames(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for request in requests:
            yield oip.pack_stream_reply(self.answer(request))


class Holding:
    """An addon that holds the frames it is told to, until they are let go, and sends another payload in their place."""

    kind: Kind = "forwarded"

    def __init__(self, *held: str, order: Order = "overtake") -> None:
        self.order: Order = order
        self.gates = {frame: asyncio.get_running_loop().create_future() for frame in held}

    def request(self, frame: Frame, message: bytes) -> Forward | Awaitable[Forward]:
        if frame.id not in self.gates:
            return Forward(message, "passed", 1)
        return self.hold(frame.id, message)

    async def close(self) -> None:
        return

    async def hold(self, frame: str, message: bytes) -> Forward:
        payload: bytes = await self.gates[frame]
        return Forward(oip.replace_payloads(message, [payload]), "success", len(payload))


@dataclass
class Path3:
    """Client, relay, server."""

    channel: grpc.aio.Channel
    relay: Relay
    server: Server
    upstream: grpc.aio.Server
    books: Path


@contextlib.asynccontextmanager
async def between(folder: Path) -> AsyncIterator[Path3]:
    behind = Server()
    upstream = grpc.aio.server()
    upstream.add_generic_rpc_handlers((behind,))
    port = upstream.add_insecure_port("127.0.0.1:0")
    await upstream.start()
    ledger = Ledger(folder / "queries.jsonl")
    relay = Relay(f"127.0.0.1:{port}", Pass(), ledger, Telemetry("adversary", None))
    relay_port = await relay.start("127.0.0.1:0")
    async with aio_channel(f"127.0.0.1:{relay_port}") as channel:
        yield Path3(channel, relay, behind, upstream, folder / "queries.jsonl")
    await relay.close()
    await upstream.stop(None)
    ledger.close()


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path3]:
    async with between(tmp_path) as path:
        yield path


def request(frame: str, payload: bytes = b"abc", attempt: int = 1) -> bytes:
    return oip.pack_request(Frame(id=frame, payloads=(payload,), codec="float16", shape=(1,), attempt=attempt))


def books(path: Path3) -> list[tuple[Any, ...]]:
    return [(row["event"], row["id"], row.get("why", row.get("kind"))) for row in read(path.books)]


async def test_all_four_kinds_of_method_pass_unchanged(path: Path3) -> None:
    assert await path.channel.unary_unary("/any.Service/Unary")(b"abc") == b"cba"
    streamed = path.channel.unary_stream("/any.Service/ServerStream")(b"abc")
    assert [message async for message in streamed] == [b"a", b"b", b"c"]

    async def messages() -> AsyncIterator[bytes]:
        for message in (b"x", b"y", b"z"):
            yield message

    assert await path.channel.stream_unary("/any.Service/ClientStream")(messages()) == b"xyz"
    both = path.channel.stream_stream("/any.Service/Both")(messages())
    assert [message async for message in both] == [b"X", b"Y", b"Z"]
    assert not list(read(path.books))


async def test_a_conversation_goes_both_ways_before_either_side_ends(path: Path3) -> None:
    call = path.channel.stream_stream("/any.Service/Both")()
    for word in (b"one", b"two"):
        await call.write(word)
        assert await call.read() == word.upper()
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


async def test_metadata_trailers_and_the_deadline_pass(path: Path3) -> None:
    call = path.channel.unary_unary("/any.Service/Unary")(b"a", metadata=(("key", "v"), ("raw-bin", b"\x00\x01")), timeout=30)
    assert await call == b"a"
    assert path.server.metadata["key"] == "v"
    assert path.server.metadata["raw-bin"] == b"\x00\x01"
    # gRPC core writes a long timeout in three digits, rounded up, at each of the two hops
    assert path.server.timeout is not None and 25 < path.server.timeout <= 30.2
    assert dict(await call.initial_metadata())["blob-bin"] == b"\x00\xff"
    assert dict(await call.trailing_metadata())["last"] == "2"


@pytest.mark.parametrize("method", ["/any.Service/Unknown", "/inference.GRPCInferenceService/ServerLive"])
async def test_a_method_that_the_server_does_not_have_is_unimplemented(path: Path3, method: str) -> None:
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await path.channel.unary_unary(method)(b"abc")
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_status_details_and_error_trailers_pass(path: Path3) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await path.channel.unary_unary("/any.Service/Fail")(b"")
    assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.ABORTED, "nicht möglich: 100 %")
    assert dict(failure.value.trailing_metadata() or ())["why-bin"] == b"\x01"
    call = path.channel.unary_stream("/any.Service/FailStream")(b"")
    assert await call.read() == b"one"
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()
    assert (failure.value.code(), failure.value.details()) == (grpc.StatusCode.DATA_LOSS, "after the first")


async def test_a_cancelled_call_is_cancelled_at_the_server(path: Path3) -> None:
    call = path.channel.unary_unary("/any.Service/Hang")(b"")
    await asyncio.sleep(0.2)
    call.cancel()
    await asyncio.wait_for(path.server.cancelled.wait(), 5)


async def test_a_deadline_that_passes_is_deadline_exceeded(path: Path3) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await path.channel.unary_unary("/any.Service/Hang")(b"", timeout=0.2)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(path.server.cancelled.wait(), 5)


async def test_a_server_that_is_down_is_unavailable(path: Path3) -> None:
    await path.upstream.stop(None)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await path.channel.unary_unary(oip.path(oip.INFER))(request("r/c/0"))
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert path.relay.upstream not in (failure.value.details() or "")
    assert not books(path)  # nothing was sent


async def replies_of(path: Path3, *messages: bytes) -> list[Reply]:
    call = path.channel.stream_stream(oip.path(oip.STREAM))()
    for message in messages:
        await call.write(message)
    await call.done_writing()
    return [oip.unpack_stream_reply(reply) async for reply in call]


async def test_frames_that_pass_are_booked_as_clean_and_answered(path: Path3) -> None:
    replies = await replies_of(path, request("r/c/0"), request("r/c/1", attempt=2))
    assert [reply.id for reply in replies] == ["r/c/0", "r/c/1"]
    assert path.server.seen == [("r/c/0", 1), ("r/c/1", 2)]
    assert sorted(books(path)) == [
        ("answered", "r/c/0", None), ("answered", "r/c/1", None),
        ("sent", "r/c/0", "passed"), ("sent", "r/c/1", "passed"),
    ]  # fmt: skip


async def test_a_message_that_is_no_frame_passes_and_is_the_servers_to_judge(path: Path3) -> None:
    reply = path.channel.unary_unary(oip.path(oip.INFER))(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await reply
    assert failure.value.code() is grpc.StatusCode.UNKNOWN  # this little server raised
    assert not books(path)


async def test_a_held_frame_is_overtaken_and_goes_on_changed(path: Path3) -> None:
    path.relay.addon = Holding("r/c/0")
    call = path.channel.stream_stream(oip.path(oip.STREAM))()
    for number in range(3):
        await call.write(request(f"r/c/{number}"))
    assert [oip.unpack_stream_reply(await call.read()).id for _ in range(2)] == ["r/c/1", "r/c/2"]
    path.relay.addon.gates["r/c/0"].set_result(b"longer than before")
    assert oip.unpack_stream_reply(await call.read()).id == "r/c/0"
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    assert path.server.payloads["r/c/0"] == b"longer than before"
    assert ("sent", "r/c/0", "success") in books(path)


async def test_the_half_close_waits_for_what_is_held(path: Path3) -> None:
    path.relay.addon = Holding("r/c/0", "r/c/1")
    call = path.channel.stream_stream(oip.path(oip.STREAM))()
    await call.write(request("r/c/0"))
    await call.write(request("r/c/1"))
    await call.done_writing()
    await asyncio.sleep(0.1)
    assert path.server.seen == []
    path.relay.addon.gates["r/c/1"].set_result(b"1")
    path.relay.addon.gates["r/c/0"].set_result(b"0")
    assert {oip.unpack_stream_reply(reply).id async for reply in call} == {"r/c/0", "r/c/1"}


async def test_with_order_keep_a_held_frame_holds_the_ones_behind_it(path: Path3) -> None:
    path.relay.addon = Holding("r/c/0", order="keep")
    call = path.channel.stream_stream(oip.path(oip.STREAM))()
    for number in range(3):
        await call.write(request(f"r/c/{number}"))
    await asyncio.sleep(0.1)
    assert path.server.seen == []
    path.relay.addon.gates["r/c/0"].set_result(b"x")
    await call.done_writing()
    assert [oip.unpack_stream_reply(reply).id async for reply in call] == ["r/c/0", "r/c/1", "r/c/2"]


async def test_a_client_that_leaves_while_its_frame_is_held_sends_nothing(path: Path3) -> None:
    path.relay.addon = Holding("r/c/0")
    call = path.channel.stream_stream(oip.path(oip.STREAM))()
    await call.write(request("r/c/0"))
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.sleep(0.1)
    path.relay.addon.gates["r/c/0"].cancel()
    await replies_of(path, request("r/c/5"))
    assert path.server.seen == [("r/c/5", 1)]
    assert ("sent", "r/c/0", "success") not in books(path)


async def test_an_addon_that_fails_ends_the_stream_with_its_reason(path: Path3) -> None:
    path.relay.addon = Holding("r/c/0")
    call = path.channel.stream_stream(oip.path(oip.STREAM))()
    await call.write(request("r/c/0"))
    await asyncio.sleep(0.1)
    path.relay.addon.gates["r/c/0"].set_exception(ZeroDivisionError("a bug in the addon"))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "a bug in the addon" in (failure.value.details() or "")


async def test_a_recorder_keeps_a_copy_of_every_frame_and_of_every_answer(path: Path3, tmp_path: Path) -> None:
    path.relay.addon = Recorder(tmp_path / "copy.jsonl")
    await replies_of(path, request("r/c/0", b"\x01\x02"), request("r/c/1", b"\x03"))
    assert await path.channel.unary_unary(oip.path(oip.INFER))(request("r/c/2", b"\x04", attempt=2))
    rows = list(read(tmp_path / "copy.jsonl"))
    sent = [(row["id"], row["attempt"], row["payloads"]) for row in rows if row["event"] == "sent"]
    assert sent == [("r/c/0", 1, ["0102"]), ("r/c/1", 1, ["03"]), ("r/c/2", 2, ["04"])]
    answered = [(row["id"], row["attempt"], row["labels"]) for row in rows if row["event"] == "answered"]
    assert answered == [("r/c/0", 1, [2]), ("r/c/1", 1, [1]), ("r/c/2", 2, [1])]
    assert [row["event"] for row in rows[-2:]] == ["sent", "answered"]


async def test_a_recorder_keeps_scores_and_refusals(path: Path3, tmp_path: Path) -> None:
    answers = {
        "r/c/0": Reply(id="r/c/0", scores=np.array([[0.5, -1.25]], np.float32), labels=np.array([0])),
        "r/c/1": Reply(id="r/c/1", error="RESOURCE_EXHAUSTED: the queue is full"),
    }
    path.server.answer = lambda message: answers[oip.unpack_request(message).id]  # type: ignore[method-assign]
    path.relay.addon = Recorder(tmp_path / "copy.jsonl")
    await replies_of(path, request("r/c/0"), request("r/c/1"))
    first, second = (row for row in read(tmp_path / "copy.jsonl") if row["event"] == "answered")
    assert (first["scores"], first["labels"]) == ([[0.5, -1.25]], [0])
    assert (second["error"], "labels" in second) == ("RESOURCE_EXHAUSTED: the queue is full", False)


async def test_an_addon_that_fails_at_an_answer_keeps_none_back(path: Path3, caplog: pytest.LogCaptureFixture) -> None:
    class Deaf(Pass):
        def reply(self, frame: Frame, reply: Reply) -> None:
            raise ZeroDivisionError("a bug in the addon")

    path.relay.addon = Deaf()
    assert [reply.id for reply in await replies_of(path, request("r/c/0"), request("r/c/1"))] == ["r/c/0", "r/c/1"]
    reply = await path.channel.unary_unary(oip.path(oip.INFER))(request("r/c/2"))
    assert oip.unpack_reply(reply).label == 3
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["r/c/0", "r/c/1", "r/c/2"]


async def test_an_answer_that_nobody_can_read_passes_a_recorder(path: Path3, tmp_path: Path) -> None:
    async def garbage(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return b"\xff\xff\xff"

    path.server.infer = garbage  # type: ignore[method-assign]
    path.relay.addon = Recorder(tmp_path / "copy.jsonl")
    assert await path.channel.unary_unary(oip.path(oip.INFER))(request("r/c/0")) == b"\xff\xff\xff"
    assert [row["event"] for row in read(tmp_path / "copy.jsonl")] == ["sent"]


async def test_the_answer_to_a_frame_of_an_earlier_behaviour_is_not_written_to_a_closed_recording(
    path: Path3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def slow(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await release.wait()
        return oip.pack_reply(path.server.answer(request))

    path.server.infer = slow  # type: ignore[method-assign]
    path.relay.addon = recorder = Recorder(tmp_path / "copy.jsonl")
    asked = asyncio.ensure_future(path.channel.unary_unary(oip.path(oip.INFER))(request("r/c/0")))
    await until(lambda: ("sent", "r/c/0", "recorded") in books(path))
    path.relay.addon = Pass()
    await recorder.close()
    release.set()
    assert oip.unpack_reply(await asked).label == 3
    assert [row["event"] for row in read(tmp_path / "copy.jsonl")] == ["sent"]
    assert not caplog.records


async def test_a_stream_that_breaks_leaves_its_frames_lost(path: Path3) -> None:
    """The server takes the frame and dies before it answers."""
    started = asyncio.Event()

    async def swallow(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for _ in requests:
            started.set()
            await asyncio.sleep(60)
            yield b""

    path.server.frames = swallow  # type: ignore[method-assign]
    call = path.channel.stream_stream(oip.path(oip.STREAM))()
    await call.write(request("r/c/0"))
    await asyncio.wait_for(started.wait(), 5)
    await path.upstream.stop(None)
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    await until(lambda: ("lost", "r/c/0", None) in books(path))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 5 s")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=st.lists(st.binary(max_size=300), max_size=6), cut=st.integers(0, 60), at=st.integers(0, 60))
async def test_no_bytes_from_a_client_stop_the_relay(messages: list[bytes], cut: int, at: int, tmp_path_factory: Any) -> None:
    """Garbage, and a good frame with a piece cut out, reach the server as they are; a good frame after them is answered."""
    good = request("r/c/0")
    mutated = good[:at] + good[at + cut :]
    async with between(tmp_path_factory.mktemp("fuzz")) as path:
        heard: list[bytes] = []

        async def echo(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
            async for message in requests:
                heard.append(message)
                yield message

        path.server.frames = echo  # type: ignore[method-assign]
        call = path.channel.stream_stream(oip.path(oip.STREAM))()
        for message in (*messages, mutated, good):
            await call.write(message)
        await call.done_writing()
        answers = [answer async for answer in call]
        assert answers == heard == [*messages, mutated, good]
