"""gRPC's interop cases and what else a proxy can get wrong, with real clients and a real server on either side of the relay."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from interop import CODES, KINDS, LIMIT, SERVICE, Relayed, TestService, begin, messages, relayed, wrong_statuses

from adversary.ledger import Kind
from adversary.relay import Forward, Order
from splitcore.frame import Frame, Reply
from splitcore.journal import read
from splitcore.wire import oip
from splitcore.wire.channel import aio_channel, channel_options


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Relayed]:
    async with relayed(tmp_path, TestService()) as path:
        yield path


@pytest.fixture
async def channel(path: Relayed) -> AsyncIterator[grpc.aio.Channel]:
    async with aio_channel(path.target, LIMIT) as channel:
        yield channel


async def outcome(call: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError:
        pass
    return await call.code(), await call.details(), dict(await call.trailing_metadata())


@pytest.mark.parametrize("kind", KINDS)
async def test_every_status_of_every_kind_of_call_passes_with_its_message_and_its_details(
    kind: str, channel: grpc.aio.Channel
) -> None:
    text = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈 100 %\t\n"  # the interop case special_status_message
    for code in CODES:
        call = begin(channel, kind, metadata=(("code", code.name), ("message-bin", text.encode())))
        got, details, trailers = await outcome(call)
        assert got is code
        if code is not grpc.StatusCode.OK:
            assert details == text
            assert trailers["grpc-status-details-bin"] == b"\x00\x01\xfe"


async def test_every_status_passes_to_a_client_with_threads(path: Relayed) -> None:
    def ask() -> list[grpc.StatusCode]:
        got = []
        with grpc.insecure_channel(path.target, options=channel_options(LIMIT)) as channel:
            for code in CODES:
                try:
                    channel.unary_unary(SERVICE + "UnaryCall")(b"a", metadata=(("code", code.name),))
                    got.append(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    got.append(error.code())
        return got

    assert await asyncio.to_thread(ask) == CODES


async def test_the_interop_cases_of_unary_and_streaming_calls(path: Relayed, channel: grpc.aio.Channel) -> None:
    assert await channel.unary_unary(SERVICE + "EmptyCall")(b"") == b""
    assert await channel.unary_unary(SERVICE + "UnaryCall")(bytes(271_828)) == bytes(271_828)
    sizes = [31_415, 9, 2_653, 58_979]
    streamed = channel.unary_stream(SERVICE + "StreamingOutputCall")(" ".join(map(str, sizes)).encode())
    assert [len(reply) async for reply in streamed] == sizes
    asked = channel.stream_unary(SERVICE + "StreamingInputCall")(messages(*map(bytes, (27_182, 8, 1_828, 45_904))))
    assert await asked == b"27182 8 1828 45904"
    call = channel.stream_stream(SERVICE + "FullDuplexCall")()
    for size in sizes:  # ping_pong
        await call.write(bytes(size))
        assert len(await call.read()) == size
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    empty = channel.stream_stream(SERVICE + "FullDuplexCall")(messages())
    assert [reply async for reply in empty] == []
    for method in (SERVICE + "UnimplementedCall", "/grpc.testing.UnimplementedService/Call"):
        assert (await outcome(channel.unary_unary(method)(b"")))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_custom_metadata_passes_both_ways_binary_too(path: Relayed, channel: grpc.aio.Channel) -> None:
    sent = (("x-grpc-test-echo-initial", "v"), ("some-bin", bytes(range(256))), ("many", "1"), ("many", "2"))
    call = channel.unary_unary(SERVICE + "UnaryCall")(b"", metadata=sent, timeout=30)
    await call
    assert path.service.metadata["some-bin"] == bytes(range(256))
    assert path.service.metadata["user-agent"].startswith("grpc-python-asyncio")
    assert dict(await call.initial_metadata())["x-grpc-test-echo-initial"] == "initial"
    assert dict(await call.trailing_metadata())["x-grpc-test-echo-trailing-bin"] == b"\x0a\xff"
    assert path.service.timeout is not None and 25 < path.service.timeout <= 30.1
    await channel.unary_unary(SERVICE + "UnaryCall")(b"")
    assert path.service.timeout is None


async def test_a_call_is_cancelled_before_and_after_its_first_answer(path: Relayed, channel: grpc.aio.Channel) -> None:
    begun = channel.stream_unary(SERVICE + "StreamingInputCall")()
    begun.cancel()
    assert await begun.code() is grpc.StatusCode.CANCELLED
    call = channel.unary_stream(SERVICE + "StreamingOutputCall")(b"10", metadata=(("wait", "60"),))
    assert await call.read() == bytes(10)
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED
    await until(lambda: path.service.cancelled == 1)
    late = channel.unary_unary(SERVICE + "UnaryCall")(b"", metadata=(("wait", "60"),), timeout=0.1)
    assert (await outcome(late))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: path.service.cancelled == 2)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_calls_pass_compressed(path: Relayed, compression: grpc.Compression) -> None:
    async with grpc.aio.insecure_channel(path.target, options=channel_options(LIMIT), compression=compression) as channel:
        await channel.unary_unary(SERVICE + "EmptyCall")(b"")
        splice = next(iter(path.relay.pairs)).splice
        passed, receive = [0, 0], splice.receive

        def counted(index: int, data: bytes) -> None:
            passed[index] += len(data)
            receive(index, data)

        splice.receive = counted  # type: ignore[method-assign]
        assert await channel.unary_unary(SERVICE + "UnaryCall")(b"zip " + bytes(500_000)) == b"zip " + bytes(500_000)
    assert max(passed) < 10_000  # half a megabyte of zeros


async def test_messages_around_64_kib_and_of_3_mb_pass(channel: grpc.aio.Channel) -> None:
    for size in (65_529, 65_530, 65_531, 65_535, 65_536, 65_537, 131_072, 3_000_000):
        content = os.urandom(size)
        assert await channel.unary_unary(SERVICE + "UnaryCall")(content) == content


async def test_a_reader_that_is_slow_stalls_the_writer_and_the_relay_keeps_little(path: Relayed) -> None:
    async with aio_channel(path.target, LIMIT) as channel:
        call = channel.stream_stream(SERVICE + "FullDuplexCall")()
        written = 0

        async def write() -> None:
            nonlocal written
            while True:
                await call.write(bytes(100_000))
                written += 1

        writer = asyncio.create_task(write())
        before = -1
        while before != written or not written:  # nobody reads the answers: it must come to a stop
            before = written
            await asyncio.sleep(0.3)
        pair = next(iter(path.relay.pairs))
        kept = sum(len(way.waiting) for stream in pair.splice.streams.values() for way in stream.ways)
        sockets = [side.transport.get_write_buffer_size() for side in (pair.client, pair.server) if side.transport]
        assert kept + sum(sockets) < 8 << 20
        writer.cancel()
        call.cancel()


class Held:
    """Holds what it is told to until it is let go."""

    kind: Kind = "forwarded"
    order: Order = "overtake"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.count = 0

    def request(self, frame: Frame, message: bytes) -> Awaitable[Forward]:
        self.count += 1

        async def wait() -> Forward:
            await self.gate.wait()
            return Forward(oip.replace_payloads(message, [b"longer" * 20_000]), "changed", 1)

        return wait()

    async def close(self) -> None:
        return


class Inference(TestService):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return (
            grpc.unary_unary_rpc_method_handler(self.infer)
            if details.method == oip.path(oip.INFER)
            else super().service(details)
        )

    async def infer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        frame = oip.unpack_request(request)
        self.peers[frame.id] = len(frame.payloads[0])
        return oip.pack_reply(Reply(id=frame.id))


def frame(name: str, payload: bytes = b"abc") -> bytes:
    return oip.pack_request(Frame(id=name, payloads=(payload,), codec="float16", shape=(1,)))


async def test_300_held_calls_are_cancelled_and_a_later_one_is_let_go(tmp_path: Path) -> None:
    addon = Held()
    async with relayed(tmp_path, Inference(), addon) as path, aio_channel(path.target, LIMIT) as channel:
        infer = channel.unary_unary(oip.path(oip.INFER))
        for number in range(300):
            call = infer(frame(f"r/c/{number}", bytes(20_000)))
            await until(lambda number=number: addon.count == number + 1)
            call.cancel()
        late = infer(frame("r/c/300"), timeout=0.1)
        assert (await outcome(late))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await channel.unary_unary(SERVICE + "UnaryCall")(bytes(300_000)) == bytes(300_000)
        last = asyncio.ensure_future(infer(frame("r/c/301")))
        await until(lambda: addon.count == 302)
        addon.gate.set()
        assert oip.unpack_reply(await last).id == "r/c/301"
        assert path.service.peers == {"r/c/301": 120_000}
        rows = [(row["event"], row["id"]) for row in read(path.books)]
        assert rows == [("sent", "r/c/301"), ("answered", "r/c/301")]
        await until(lambda: path.relay.books.room == 256 << 20)


async def test_a_server_that_comes_back_is_reached_by_new_connections(tmp_path: Path) -> None:
    async with relayed(tmp_path, TestService()) as path, aio_channel(path.target, LIMIT) as channel:
        assert await channel.unary_unary(SERVICE + "UnaryCall")(b"1") == b"1"
        await path.server.stop(None)
        call = channel.unary_unary(SERVICE + "UnaryCall")(b"2")
        code, details, _ = await outcome(call)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert path.relay.upstream not in details
        again = grpc.aio.server()
        again.add_generic_rpc_handlers((TestService(),))
        assert again.add_insecure_port(path.relay.upstream)
        await again.start()
        assert await channel.unary_unary(SERVICE + "UnaryCall")(b"3", wait_for_ready=True, timeout=30) == b"3"
        await again.stop(None)


async def test_no_status_is_wrong_in_300_calls_rejected_cancelled_and_late_ones_too(path: Relayed) -> None:
    assert not await wrong_statuses(path.target, 300)


@pytest.mark.long
async def test_no_status_is_wrong_in_3000_calls(path: Relayed) -> None:
    assert not await wrong_statuses(path.target, 3000, at_once=32, seed=1)


async def until(condition: Any) -> None:
    for _ in range(15_000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("not within 30 s")


async def test_a_call_that_runs_when_the_relay_ends_has_its_grace(path: Relayed, channel: grpc.aio.Channel) -> None:
    call = begin(channel, "UnaryCall", metadata=(("wait", "0.3"),))
    await until(lambda: any(pair.splice.streams for pair in path.relay.pairs))
    await path.relay.close(grace_s=30)
    assert await call == b"a"


async def test_whatever_a_port_scanner_says_ends_its_own_connection_alone(path: Relayed, channel: grpc.aio.Channel) -> None:
    assert await channel.unary_unary(SERVICE + "UnaryCall")(b"1") == b"1"
    reader, writer = await asyncio.open_connection("127.0.0.1", path.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await asyncio.wait_for(reader.read(), 20)  # to its end
    writer.close()
    assert await channel.unary_unary(SERVICE + "UnaryCall")(b"2") == b"2"
    assert len(path.relay.pairs) == 1


async def test_idle_connections_cost_none_to_the_server(path: Relayed, channel: grpc.aio.Channel) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", path.port) for _ in range(200)]
    assert await channel.unary_unary(SERVICE + "UnaryCall")(b"1") == b"1"
    assert sum(pair.server.transport is not None for pair in path.relay.pairs) == 1
    for _, writer in idle:
        writer.close()
    await until(lambda: len(path.relay.pairs) == 1)


class Longer(Held):
    """Another latent in every frame, at once."""

    def request(self, frame: Frame, message: bytes) -> Forward:  # type: ignore[override]
        self.count += 1
        return Forward(oip.replace_payloads(message, [bytes(len(frame.payloads[0]) + 10)]), "longer", 1)


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed (Debian: nghttp2-client)")
@pytest.mark.parametrize("size", [5_000, 200_000])
async def test_a_client_of_nghttp2_that_waits_for_nobody_is_served(size: int, tmp_path: Path) -> None:
    """Its first frames come before it has heard a word of the server."""
    message = frame("r/c/0", bytes(size))
    (tmp_path / "message").write_bytes(b"\0" + len(message).to_bytes(4) + message)
    async with relayed(tmp_path, Inference(), Longer()) as path:
        load = await asyncio.create_subprocess_exec(
            "h2load", "-n200", "-c5", "-m10", "-ph2c", "-d", str(tmp_path / "message"), "-Hcontent-type: application/grpc",
            "-Hte: trailers", f"http://{path.target}{oip.path(oip.INFER)}", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, _ = await asyncio.wait_for(load.communicate(), 60)
        assert b"200 succeeded, 0 failed, 0 errored" in said
        assert path.service.peers == {"r/c/0": size + 10}
        assert path.relay.addon.count == 200  # type: ignore[attr-defined]
