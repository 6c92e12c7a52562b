"""A link's numbers by what was measured through it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitcore.errors import ScenarioError
from splitcore.link import LinkProfile, shaped
from splitcore.wire import oip
from testbed.nodes import Process
from testbed.plan.predict import framed_bytes
from testbed.plan.probe import Probe, as_link, floor_ms, measured_link, rate_kbps


@pytest.fixture(scope="module")
def edge(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process = Process(
        "edge_server",
        tmp_path_factory.mktemp("edge"),
        ["--artefact", str(digits_artefact), "--device", "cpu", "--tail", "eager"],
    )
    try:
        yield str(process.wait_ready()["grpc"])
    finally:
        process.stop()


def test_round_trips_give_delay_and_jitter_and_padding_the_rate() -> None:
    link = as_link([51.0, 58.0, 60.0, 52.0, 70.0], rate_kbps(125_000, 100), floor_ms=1.0)
    assert (link.delay_ms, link.jitter_ms) == (25, 7)
    assert link.rate_up_kbps == link.rate_down_kbps == 10_000
    assert as_link([0.5, 0.6, 0.7], 1e6, floor_ms=0.9).delay_ms == 0
    with pytest.raises(ScenarioError, match="too unsteady"):
        rate_kbps(1000, -0.1)


def test_a_padded_call_is_as_large_as_it_was_asked_for() -> None:
    for size in (1, 127, 128, 100_000):
        assert 0 < len(oip.pack_padding(bytes(size))) - size <= 4


@pytest.mark.long
async def test_a_shaped_link_is_found_again_through_a_live_edge(edge: str) -> None:
    # slow, so that what the shaper does is far more than what a busy machine adds
    slow = LinkProfile(rate_up_kbps=1000, rate_down_kbps=4000, delay_ms=40)
    async with shaped(edge, slow, seed=3) as relay:
        found = await asyncio.to_thread(measured_link, relay.address, 0.0)
    assert found.delay_ms >= 40
    assert 0.5 * 1000 < found.rate_up_kbps < 1.2 * 1000


async def test_a_message_is_on_its_connection_what_the_framing_says(edge: str) -> None:
    free = LinkProfile(rate_up_kbps=1e8, rate_down_kbps=1e8, delay_ms=0)
    size, calls = 100_000, 20

    def ask(target: str) -> None:
        probe = Probe(target)
        for _ in range(calls):
            probe.call_ms(size)
        probe.close()

    async with shaped(edge, free, seed=3) as relay:
        await asyncio.to_thread(ask, relay.address)
        sent = relay.bytes_up / calls
    expected = framed_bytes(len(oip.pack_padding(bytes(size))))
    # headers of the calls and the connection's own frames come besides: some hundred bytes
    assert expected <= sent < expected + 400


def test_an_address_that_nobody_answers_is_refused_in_words(edge: str) -> None:
    with pytest.raises(ScenarioError, match="through a server's address"):
        measured_link("nowhere", 0.0)
    assert floor_ms(edge) > 0
