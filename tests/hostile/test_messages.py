"""Mutated requests on streams and in calls, to the edge and through the relay in each behaviour: each is answered."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from mutation import MUTATIONS, hostile
from siege import Besieged, Good, asked

from splitcore.wire import oip
from splitcore.wire.channel import sync_channel

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
A_STREAM = 250
"""messages of one stream"""
REASONS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,  # what changes the repository wants the token
}
BEHAVIOURS: dict[str, dict[str, Any]] = {
    "pass": {"kind": "pass"},
    "record": {"kind": "record", "run": "hostile-record"},
    "overtake": {
        "kind": "attack",
        "run": "hostile-overtake",
        "attack": {"kind": "square"},
        "threat": {"norm": "linf", "eps": 0.5, "budget": 6, "deadline_ms": 2000},
    },
    "keep": {
        "kind": "attack",
        "run": "hostile-keep",
        "attack": {"kind": "noise"},
        "threat": {"norm": "l2", "eps": 0.5},
        "order": "keep",
    },
}


def batches(messages: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(itertools.islice(messages, A_STREAM)):
        yield batch


def flood_a_stream(address: str, good: Good, messages: Iterator[bytes], *, exact: bool = True) -> None:
    """Each message gets one answer: labels, or a reason. The good client is served between and after."""
    with sync_channel(address) as channel:
        for number, batch in enumerate(batches(messages)):
            replies = [oip.unpack_stream_reply(message) for message in asked(channel, batch)]
            assert len(replies) == len(batch)
            for reply in replies:
                assert reply.error or (reply.scores is not None and np.isfinite(reply.scores).all()) or reply.labels is not None
            if number % 20 == 0:
                good.is_served(address, exact=exact)
    good.is_served(address, exact=exact)


def test_the_edge_answers_every_message_of_a_stream(edge: Besieged, good: Good) -> None:
    flood_a_stream(edge.grpc, good, hostile(good.seeds(), 250, seed=1))
    with edge.stands():
        flood_a_stream(edge.grpc, good, hostile(good.seeds(), MUTATIONS * 4 // 10, seed=2))


def flood_calls(address: str, messages: list[bytes], methods: tuple[str, ...]) -> None:
    """An answer, or a status with a reason."""
    with sync_channel(address) as channel, ThreadPoolExecutor(8) as pool:
        calls = [channel.unary_unary(oip.path(method)) for method in methods]

        def one(number: int) -> None:
            try:
                calls[number % len(calls)](messages[number], timeout=60)
            except grpc.RpcError as error:
                assert error.code() in REASONS, (error.code(), error.details(), messages[number].hex()[:400])
                assert error.details()

        list(pool.map(one, range(len(messages))))


def test_the_edge_answers_every_call(edge: Besieged, good: Good) -> None:
    flood_calls(edge.grpc, list(hostile(good.seeds(), 100, seed=3)), oip.UNARY_METHODS)
    with edge.stands():
        flood_calls(edge.grpc, list(hostile(good.seeds(), MUTATIONS // 10, seed=4)), (oip.INFER, *oip.UNARY_METHODS))
    good.is_served(edge.grpc)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_relay_passes_every_message_to_an_answer(behaviour: str, relay: Besieged, edge: Besieged, good: Good) -> None:
    relay.put("/behaviour", BEHAVIOURS[behaviour])
    # an attack turns the good client's answers as well, which is what it is for
    exact = behaviour in ("pass", "record")
    try:
        flood_a_stream(relay.grpc, good, hostile(good.seeds(), 250, seed=5), exact=exact)
        flood_calls(relay.grpc, list(hostile(good.seeds(), 50, seed=6)), oip.UNARY_METHODS)
        share = MUTATIONS // 10
        with relay.stands(grows_mib=64), edge.stands():
            flood_a_stream(relay.grpc, good, hostile(good.seeds(), share, seed=7), exact=exact)
            flood_calls(relay.grpc, list(hostile(good.seeds(), share // 5, seed=8)), (oip.INFER, *oip.UNARY_METHODS))
    finally:
        relay.put("/behaviour", {"kind": "pass"})
    good.is_served(relay.grpc)
    assert "Traceback" not in relay.said() + edge.said()
