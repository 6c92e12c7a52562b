"""The link against its closed forms, and the relay against real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splitcore.link import (
    PROFILES,
    Line,
    Link,
    LinkInTime,
    LinkProfile,
    Step,
    Steps,
    profile_of,
    schedule_of,
    shaped,
)
from splitcore.link.line import SEGMENT_BYTES
from splitcore.link.relay import PIECE_BYTES

FAST = LinkProfile(rate_up_kbps=1e8, rate_down_kbps=1e8, delay_ms=0)


def line(seed: int = 0, rate_kbps: float = 8_000, **profile: float) -> Line:
    """A megabyte a second unless told otherwise."""
    link = LinkProfile(**({"rate_up_kbps": rate_kbps, "rate_down_kbps": rate_kbps, "delay_ms": 0.0} | profile))
    return Line(link, rate_kbps, np.random.default_rng(seed))


def test_a_piece_takes_its_serialisation_and_the_delay() -> None:
    assert line(delay_ms=30).arrival_s(5.0, 1000) == pytest.approx(5.0 + 0.001 + 0.030)


def test_pieces_queue_behind_one_another_and_an_idle_line_is_free_again() -> None:
    slow = line(delay_ms=10)
    assert slow.arrival_s(0.0, 2000) == pytest.approx(0.012)
    assert slow.arrival_s(0.0, 3000) == pytest.approx(0.015)
    assert slow.arrival_s(0.004, 1000) == pytest.approx(0.016)
    assert slow.arrival_s(1.0, 1000) == pytest.approx(1.011)


@given(sizes=st.lists(st.integers(1, 50_000), min_size=1, max_size=50))
def test_a_busy_line_carries_exactly_its_rate(sizes: list[int]) -> None:
    busy = line(delay_ms=7)
    last_s = [busy.arrival_s(0.0, size) for size in sizes][-1]
    assert last_s == pytest.approx(sum(sizes) / 1e6 + 0.007)


@given(
    seed=st.integers(0, 1000),
    gaps=st.lists(st.floats(0, 0.05), min_size=1, max_size=60),
    loss=st.floats(0, 0.5),
    jitter_ms=st.floats(0, 50),
)
def test_nothing_overtakes_and_nothing_is_early(seed: int, gaps: list[float], loss: float, jitter_ms: float) -> None:
    shaky = line(seed, delay_ms=5, jitter_ms=jitter_ms, loss=loss)
    now_s = last_s = 0.0
    for gap in gaps:
        now_s += gap
        arrival_s = shaky.arrival_s(now_s, 1448)
        assert arrival_s >= max(last_s, now_s + 0.001448 + 0.005 - 1e-12)
        last_s = arrival_s


def test_jitter_is_uniform_from_nothing_to_its_width() -> None:
    shaky = line(3, delay_ms=1, jitter_ms=20)
    late_s = np.array([shaky.arrival_s(float(t), 1000) - t - 0.002 for t in range(4000)])
    assert late_s.min() >= -1e-9
    assert late_s.max() <= 0.020 + 1e-9
    assert late_s.mean() == pytest.approx(0.010, rel=0.05)
    assert late_s.std() == pytest.approx(0.020 / 12**0.5, rel=0.05)


@pytest.mark.parametrize("segments", [1, 5])
def test_a_loss_costs_whole_probes_as_often_as_the_closed_form_says(segments: int) -> None:
    p, n = 0.1, 6000
    lossy = line(4, delay_ms=25, loss=p)
    size = segments * SEGMENT_BYTES
    late_s = np.array([lossy.arrival_s(10.0 * t, size) - 10 * t - size / 1e6 - 0.025 for t in range(n)])
    rounds = late_s / 0.100  # 2 SRTT = 4 x 25 ms
    np.testing.assert_allclose(rounds, np.rint(rounds), atol=1e-6)
    for r in (1, 2):
        # a segment needs r rounds or more with probability p^r
        expected = 1 - (1 - p**r) ** segments
        got = (np.rint(rounds) >= r).mean()
        assert got == pytest.approx(expected, abs=4 * (expected * (1 - expected) / n) ** 0.5)


def test_a_loss_delays_everything_behind_it() -> None:
    lossy = line(0, delay_ms=25, loss=0.5)
    arrivals_s = [lossy.arrival_s(0.001 * n, 100) for n in range(30)]
    assert arrivals_s == sorted(arrivals_s)
    assert len(set(arrivals_s)) < len(arrivals_s)


def test_a_probe_costs_ten_milliseconds_at_least() -> None:
    assert PROFILES["lan"].probe_ms == 10
    assert PROFILES["lte"].probe_ms == 4 * (25 + 4)


def test_one_seed_gives_one_link() -> None:
    def arrivals(seed: int) -> list[float]:
        lossy = line(seed, delay_ms=3, jitter_ms=9, loss=0.2)
        return [lossy.arrival_s(0.01 * n, 500) for n in range(50)]

    assert arrivals(1) == arrivals(1) != arrivals(2)


def test_a_scenario_names_a_profile_or_writes_one_and_unknown_keys_are_refused() -> None:
    adapter: TypeAdapter[Link] = TypeAdapter(Link)
    assert profile_of(adapter.validate_python("wifi")) == PROFILES["wifi"]
    own = {"rate_up_kbps": 5, "rate_down_kbps": 6, "delay_ms": 7}
    assert profile_of(adapter.validate_python(own)) == LinkProfile(rate_up_kbps=5, rate_down_kbps=6, delay_ms=7)
    for key, value in (("colour", 1), ("loss", 0.9), ("delay_ms", float("nan")), ("rate_up_kbps", 0), ("jitter_ms", -1)):
        with pytest.raises(ValidationError):
            adapter.validate_python(own | {key: value})
    with pytest.raises(ValidationError):
        adapter.validate_python("smoke")


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@contextlib.asynccontextmanager
async def tcp(handler: Handler) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def test_the_relay_moves_bytes_intact_both_ways_and_counts_them() -> None:
    sent = np.random.default_rng(0).bytes(700_001)
    profile = LinkProfile(rate_up_kbps=400_000, rate_down_kbps=400_000, delay_ms=1, jitter_ms=2, loss=0.01)
    async with tcp(echo) as target, shaped(target, profile, 3) as relay:
        reader, writer = await connect(relay.address)

        async def write() -> None:
            writer.write(sent)
            await writer.drain()
            writer.write_eof()

        got, _ = await asyncio.gather(reader.read(-1), write())
        writer.close()
        assert got == sent
        assert (relay.bytes_up, relay.bytes_down) == (len(sent), len(sent))


async def test_several_connections_share_the_link_without_mixing_their_bytes() -> None:
    async with tcp(echo) as target, shaped(target, PROFILES["lan"], 0) as relay:

        async def talk(n: int) -> None:
            reader, writer = await connect(relay.address)
            for k in range(20):
                message = bytes([n]) * (100 + k)
                writer.write(message)
                assert await reader.readexactly(len(message)) == message
            writer.close()

        await asyncio.gather(*(talk(n) for n in range(6)))


async def test_a_message_takes_at_least_what_the_link_takes() -> None:
    profile = LinkProfile(rate_up_kbps=8_000, rate_down_kbps=80_000, delay_ms=20)
    async with tcp(echo) as target, shaped(target, profile, 0) as relay:
        reader, writer = await connect(relay.address)
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        writer.write(bytes(50_000))
        await reader.readexactly(50_000)
        assert loop.time() - start_s >= 0.050 + 2 * 0.020 - 0.001
        writer.close()


async def test_a_receiver_that_does_not_read_stops_the_sender_and_not_the_memory() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    over = asyncio.Event()

    async with tcp(deaf) as target, shaped(target, FAST, 0) as relay:
        sender = socket.create_connection(tuple(relay.address.split(":")), timeout=5)
        sender.setblocking(False)
        loop = asyncio.get_running_loop()
        taken = 0
        with contextlib.suppress(TimeoutError):
            while taken < 200 << 20:
                async with asyncio.timeout(0.5):
                    await loop.sock_sendall(sender, bytes(1 << 20))
                taken += 1 << 20
        # two sockets' buffers, and what one line holds
        assert taken < 64 << 20
        sender.close()
        over.set()


@pytest.mark.parametrize("who", ["near", "far"])
async def test_a_reset_of_one_side_ends_the_connection_and_not_the_relay(who: str) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(1 << 16)
        if data == b"reset":
            writer.transport.abort()
        else:
            writer.write(data)

    async with tcp(reset) as target, shaped(target, FAST, 0) as relay:
        for _ in range(3):
            reader, writer = await connect(relay.address)
            if who == "far":
                writer.write(b"reset")
                with contextlib.suppress(ConnectionError):
                    assert await reader.read(-1) == b""
            else:
                writer.write(bytes(PIECE_BYTES * 8))
                writer.transport.abort()
        reader, writer = await connect(relay.address)
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()


async def test_a_target_that_is_not_there_closes_the_connection_and_may_come_later() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    async with shaped(f"127.0.0.1:{port}", FAST, 0) as relay:
        reader, _writer = await connect(relay.address)
        assert await reader.read(-1) == b""
        server = await asyncio.start_server(echo, "127.0.0.1", port)
        reader, writer = await connect(relay.address)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        server.close()


def test_a_line_that_changes_lets_nothing_overtake_and_keeps_what_is_on_its_way() -> None:
    changing = line(rate_kbps=8, delay_ms=100)
    assert changing.arrival_s(0.0, 100) == pytest.approx(0.2)
    changing.become(LinkProfile(rate_up_kbps=8_000, rate_down_kbps=8_000, delay_ms=1), 8_000)
    # entered when the line was busy until 0.1 s with what came before, and that one arrives at 0.2 s
    assert changing.arrival_s(0.05, 1000) == pytest.approx(0.2)
    assert changing.arrival_s(1.0, 1000) == pytest.approx(1.002)


def test_steps_are_checked_and_resolved_by_name_or_numbers() -> None:
    adapter: TypeAdapter[LinkInTime] = TypeAdapter(LinkInTime)
    cell = {"rate_up_kbps": 5, "rate_down_kbps": 6, "delay_ms": 7}
    steps = {"kind": "steps", "steps": [{"at_s": 0, "link": "wifi"}, {"at_s": 2.5, "link": cell}]}
    assert schedule_of(adapter.validate_python(steps)) == ((0, PROFILES["wifi"]), (2.5, LinkProfile(**cell)))
    assert schedule_of(adapter.validate_python("lan")) == ((0, PROFILES["lan"]),)
    for wrong in ([], [{"at_s": 1, "link": "wifi"}], [{"at_s": 0, "link": "wifi"}] * 2, [{"at_s": 0, "link": "wafi"}]):
        with pytest.raises(ValidationError):
            adapter.validate_python({"kind": "steps", "steps": wrong})


async def test_bytes_through_a_relay_that_changes_arrive_whole_and_in_order() -> None:
    profile = {"rate_up_kbps": 400_000, "rate_down_kbps": 400_000, "jitter_ms": 2}
    steps = Steps(steps=tuple(Step(at_s=n / 50, link=LinkProfile(**profile, delay_ms=(3, 0)[n % 2])) for n in range(10)))
    data = np.random.default_rng(0).bytes(4_000_000)
    async with tcp(echo) as target, shaped(target, steps, 3) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(relay.address.rpartition(":")[2]))
        received = asyncio.create_task(reader.readexactly(len(data)))
        writer.write(data)
        assert await received == data
        writer.close()
