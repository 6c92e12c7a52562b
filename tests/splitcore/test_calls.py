"""How gRPC calls are counted: a real server on this loop, and clients that end their calls in every way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from splitcore.telemetry.calls import Calls
from splitcore.telemetry.exposition import Histogram, exposition, quantile
from splitcore.wire.server import aio_server

ECHO, TALK, FAIL, HANG = (f"/test.Service/{name}" for name in ("Echo", "Talk", "Fail", "Hang"))


async def echo(message: bytes, context: Any) -> bytes:
    return message


async def talk(requests: Any, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message * 2)


async def fail(message: bytes, context: Any) -> bytes:
    if message == b"abort":
        await context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
    raise RuntimeError("a fault of ours")


async def hang(message: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    await asyncio.sleep(3600)


@pytest.fixture
async def served() -> AsyncIterator[tuple[Calls, grpc.aio.Channel]]:
    calls = Calls("server", (ECHO, TALK, FAIL, HANG))
    server = aio_server((), watch=calls)
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Hang": grpc.unary_stream_rpc_method_handler(hang),
        "Secret": grpc.unary_unary_rpc_method_handler(echo),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield calls, channel
    await server.stop(None)


def values(calls: Calls) -> dict[str, dict[tuple[str, ...], float]]:
    registry = CollectorRegistry()
    registry.register(calls)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(exposition(registry).decode()):
        for sample in family.samples:
            labels = sample.labels
            found.setdefault(sample.name, {})[labels["grpc_method"], labels.get("grpc_code", ""), labels.get("le", "")] = (
                sample.value
            )
    return found


async def settled(calls: Calls) -> None:
    for _ in range(500):
        if not calls.open:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(calls.open)} calls are still open")


async def test_messages_and_bytes_are_counted_in_both_directions(served: tuple[Calls, grpc.aio.Channel]) -> None:
    calls, channel = served
    assert await channel.unary_unary(ECHO)(b"12345") == b"12345"
    stream = channel.stream_stream(TALK)()
    for _ in range(3):
        await stream.write(b"ab")
        assert await stream.read() == b"abab"
    [open_call] = calls.open
    assert (open_call.name, open_call.read_messages, open_call.put_messages) == ("Talk", 3, 3)
    assert open_call.peer.startswith(("ipv4:127.0.0.1:", "ipv6:"))
    await stream.done_writing()
    assert await stream.code() == grpc.StatusCode.OK
    await settled(calls)
    seen = values(calls)
    assert seen["grpc_server_msg_received_bytes_total"] == {("Echo", "", ""): 5, ("Talk", "", ""): 6}
    assert seen["grpc_server_msg_sent_bytes_total"] == {("Echo", "", ""): 5, ("Talk", "", ""): 12}
    assert seen["grpc_server_msg_received_total"] == {("Echo", "", ""): 1, ("Talk", "", ""): 3}
    assert seen["grpc_server_handled_total"] == {("Echo", "OK", ""): 1, ("Talk", "OK", ""): 1}
    assert seen["grpc_server_handling_seconds_count"][("Talk", "", "")] == 1


async def test_every_way_to_end_has_its_status(served: tuple[Calls, grpc.aio.Channel]) -> None:
    calls, channel = served
    for message, code in ((b"abort", grpc.StatusCode.NOT_FOUND), (b"raise", grpc.StatusCode.UNKNOWN)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(FAIL)(message)
        assert refused.value.code() is code
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary("/test.Service/Unheard")(b"")
    cancelled = channel.unary_stream(HANG)(b"")
    assert await cancelled.read() == b"first"
    cancelled.cancel()
    await settled(calls)
    late = channel.unary_stream(HANG)(b"", timeout=0.3)
    assert await late.read() == b"first"
    with pytest.raises(grpc.aio.AioRpcError):
        await late.read()
    await settled(calls)
    ended = {(method, code): count for (method, code, _), count in values(calls)["grpc_server_handled_total"].items()}
    assert ended.pop(("Hang", "CANCELLED")) + ended.pop(("Hang", "DEADLINE_EXCEEDED"), 0) == 2
    assert ended == {("Fail", "NOT_FOUND"): 1, ("Fail", "UNKNOWN"): 1, ("other", "UNIMPLEMENTED"): 1}


async def test_names_that_nobody_allowed_make_no_series_of_their_own(served: tuple[Calls, grpc.aio.Channel]) -> None:
    calls, channel = served
    for number in range(30):
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(f"/made.Up/Number{number}")(b"")
    await channel.unary_unary("/test.Service/Secret")(b"x")
    await settled(calls)
    assert {method for method, _, _ in values(calls)["grpc_server_started_total"]} == {"other"}
    assert values(calls)["grpc_server_started_total"][("other", "", "")] == 31


def test_a_quantile_is_prometheus_own() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    assert quantile(histogram.bounds, histogram.counts, 0.5) is None
    for value in (0.5, 1.5, 1.6, 3.0):
        histogram.add(value)
    # ranks 0.5 * 4 = 2: one below 1, two in (1, 2]: half of that bucket
    assert quantile(histogram.bounds, histogram.counts, 0.5) == pytest.approx(1.5)
    histogram.add(99)
    assert quantile(histogram.bounds, histogram.counts, 0.99) == 4.0
