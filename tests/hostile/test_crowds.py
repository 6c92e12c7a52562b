"""Crowds of connections and streams that say nothing: the good client is served, memory is bounded, and comes back."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator

import grpc
import http2
import pytest
from siege import MIB, Besieged, Good, eventually

from splitcore.wire.channel import MAX_CALLS, MAX_SERVER_CALLS

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
CROWD = int(os.environ.get("LATENTBED_CROWD", "1500"))
"""connections; the full form has 10,000"""
KINDS = {
    "silent": b"",
    "idle": http2.PREFACE + http2.settings(),
    "with a stream": http2.PREFACE + http2.settings() + http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.block()),
}
MAX_KIB = {"silent": 32, "idle": 48, "with a stream": 160}
"""of memory a connection, at the node that has it; ten times the kernel's smallest would be 40"""


@pytest.fixture(autouse=True, scope="module")
def _descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def crowd(address: str, count: int, said: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that say this and no more; those that are turned away are not counted."""
    with contextlib.ExitStack() as closing:
        there = []
        for _ in range(count):
            with contextlib.suppress(ConnectionError):
                connection = closing.enter_context(http2.connect(address, 30))
                connection.sendall(said)
                there.append(connection)
        yield there


def settles(node: Besieged) -> None:
    """Waits until what came has been taken: two looks in a row at the same process."""
    seen = [node.footprint()]

    def still() -> bool:
        time.sleep(0.3)
        seen.append(node.footprint())
        return seen[-1] == seen[-2]

    eventually(still)


def told(what: str, node: Besieged, count: int, grown: int, began: float) -> None:
    """A row for docs/results/hostile.md, seen with -s."""
    print(
        f"\n{node.process.package}: {count} connections, {what}: {grown / 1024 / count:.1f} KiB each, "
        f"{time.monotonic() - began:.1f} s"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["edge", "relay"])
def test_a_crowd_of_connections_keeps_no_good_client_out(
    name: str, kind: str, request: pytest.FixtureRequest, edge: Besieged, good: Good
) -> None:
    node: Besieged = request.getfixturevalue(name)
    good.is_served(node.grpc)
    count = min(CROWD, MAX_SERVER_CALLS - MAX_CALLS) if kind == "with a stream" else CROWD
    for again in range(2):
        before, began = node.footprint(), time.monotonic()
        with crowd(node.grpc, count, KINDS[kind]):
            good.is_served(node.grpc)
            settles(node)
            grown = node.footprint().resident_bytes - before.resident_bytes
            told(f"{kind}{', again' * again}", node, count, grown, began)
            assert grown < 24 * MIB + MAX_KIB[kind] * 1024 * count
            node.healthy()
        # what a closed connection held is there for the next ones
        assert eventually(lambda before=before: node.footprint().descriptors <= before.descriptors + 12)
        good.is_served(node.grpc)
    assert grown < 24 * MIB + MAX_KIB[kind] * 1024 * count // 4, "the second crowd took as much again"
    assert eventually(lambda: edge.footprint().descriptors < 200)
    good.is_served(node.grpc)


def test_one_client_cannot_have_all_calls(edge: Besieged, good: Good) -> None:
    """A connection has MAX_CALLS streams, and further ones wait: hundreds more are left for others."""
    opened = b"".join(http2.frame(http2.HEADERS, http2.END_HEADERS, 2 * n + 1, http2.block()) for n in range(MAX_CALLS))
    with crowd(edge.grpc, 3, http2.PREFACE + http2.settings() + opened):
        for _ in range(5):
            good.is_served(edge.grpc)


def test_when_all_calls_are_taken_a_client_is_told_so_and_served_when_they_end(edge: Besieged, good: Good) -> None:
    opened = b"".join(http2.frame(http2.HEADERS, http2.END_HEADERS, 2 * n + 1, http2.block()) for n in range(MAX_CALLS))

    def refused() -> bool:
        try:
            good.is_served(edge.grpc, stream=False)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return bool(error.details())
        return False

    with edge.stands(grows_mib=256):
        with contextlib.ExitStack() as closing:
            for number in range(3 * MAX_SERVER_CALLS // MAX_CALLS):
                [connection] = closing.enter_context(crowd(edge.grpc, 1, http2.PREFACE + http2.settings() + opened))
                http2.heard(connection, quiet_s=0.1)
                if number >= MAX_SERVER_CALLS // MAX_CALLS - 1 and refused():
                    break
            assert eventually(refused)
            edge.healthy()

        def served() -> bool:
            with contextlib.suppress(grpc.RpcError):
                good.is_served(edge.grpc)
                return True
            return False

        assert eventually(served)


@pytest.mark.parametrize("name", ["edge", "relay"])
def test_connections_that_never_speak_are_closed(name: str, request: pytest.FixtureRequest) -> None:
    node: Besieged = request.getfixturevalue(name)
    if CROWD < 10_000:
        pytest.skip("waits for the handshake's time-out: in the full form")
    with crowd(node.grpc, 20, b"") as silent:
        for connection in silent:
            connection.settimeout(60)
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):
                    pass
