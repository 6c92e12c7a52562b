"""The control planes of the three nodes, as processes: bent HTTP/1 and JSON, crowds, bodies that unpack to gigabytes."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import http2
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from mutation import MUTATIONS, mutated
from schemathesis.specs.openapi.checks import allow_header_conformance, positive_data_acceptance
from siege import MIB, Besieged, eventually

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
NODES = ("edge", "relay", "phone")
FATAL = ("/exit", "load")
"""routes that end a node or take its models away, which is what they are for"""
BODIES: dict[str, Any] = {
    "/behaviour": {"kind": "attack", "run": "bent", "attack": {"kind": "noise"}, "threat": {"norm": "linf", "eps": 0.5}},
    "/passes": {"run": "bent", "codec": "identity", "count": 1},
}


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Iterator[Besieged]:
    besieged: Besieged = request.getfixturevalue(request.param)
    yield besieged
    if request.param == "relay":
        besieged.put("/behaviour", {"kind": "pass"})


def schema_of(node: Besieged) -> dict[str, Any]:
    document: dict[str, Any] = httpx.get(f"http://{node.control}/openapi.json", trust_env=False, timeout=60).json()
    return document


def requests(node: Besieged) -> list[bytes]:
    """A good request for every route there is, as bytes."""
    made = []
    for path, operations in schema_of(node)["paths"].items():
        for method in operations:
            if any(word in path for word in FATAL):
                continue
            body = b"" if method == "get" else json.dumps(BODIES.get(path, {"a": [1, "b", None]})).encode()
            target = path.replace("{run}", "bent").replace("{", "").replace("}", "") + ("?run=bent" if "ledger" in path else "")
            head = [
                f"{method.upper()} {target} HTTP/1.1",
                "Host: localhost",
                f"Authorization: {node.token['Authorization']}",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
            ]
            made.append("\r\n".join([*head, "", ""]).encode() + body)
            chunked = [line for line in head if "Length" not in line] + ["Transfer-Encoding: chunked"]
            if body:
                made.append("\r\n".join([*chunked, "", ""]).encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    return made


def thrown(address: str, data: bytes) -> bytes:
    with contextlib.suppress(ConnectionError), http2.connect(address) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return http2.heard(connection, quiet_s=0.3)
    return b""


def at_rest(node: Besieged) -> None:
    """Some bent order may be a good one: an adversary that attacks has threads and connections for it."""
    if node.process.package == "adversary":
        url = f"http://{node.control}/behaviour"
        httpx.put(url, json={"kind": "pass"}, headers=node.token, trust_env=False, timeout=60).raise_for_status()


@pytest.mark.parametrize("node", NODES, indirect=True)
def test_bent_requests_get_a_status_below_500_or_their_connection_closed(node: Besieged) -> None:
    rng = random.Random(41)
    seeds = requests(node)

    def some(count: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            pieces = [mutated(rng.choice(seeds), rng, seeds) for _ in range(count)]
            for piece, said in zip(pieces, pool.map(lambda piece: thrown(node.control, piece), pieces), strict=True):
                assert not said.startswith((b"HTTP/1.1 500", b"HTTP/1.1 502")), (piece[:2000], said[:2000])

    some(60)
    at_rest(node)
    with node.stands():
        some(max(100, MUTATIONS // 30))
        at_rest(node)
        node.healthy()
    assert "Traceback" not in node.said()


@pytest.mark.parametrize("node", NODES, indirect=True)
def test_what_each_plane_promises_of_itself_holds_for_requests_made_to_break_it(node: Besieged) -> None:
    """Schemathesis, against the process, with the token."""
    schema = schemathesis.openapi.from_url(f"http://{node.control}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        if any(word in operation.path for word in FATAL):
            continue

        @given(case=operation.as_strategy())
        @settings(max_examples=max(8, MUTATIONS // 500), deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def holds(case: schemathesis.Case[Any]) -> None:
            excluded = [allow_header_conformance, positive_data_acceptance]
            case.call_and_validate(headers=node.token, excluded_checks=excluded, timeout=60)

        holds()
    node.healthy()


ODD = [
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"9" * 100_000,
    b"-" + b"9" * 5000,
    b"1e999999",
    b"NaN",
    b'"\\ud800"',
    b'{"kind": NaN}',
    b"\xff\xfe{\0",
    b'{"kind":"pass","kind":"attack"}',
    b"null",
    b"",
    b"\0" * 1000,
    b'{"' + b"k" * 900_000 + b'":1}',
    b"{" + b",".join(b'"k%d":%d' % (n, n) for n in range(60_000)) + b"}",
]


@pytest.mark.parametrize("node", NODES, indirect=True)
def test_bodies_that_are_odd_json_are_refused(node: Besieged) -> None:
    changing = [
        (method, path) for path, operations in schema_of(node)["paths"].items() for method in operations if method != "get"
    ]
    with (
        node.stands(),
        httpx.Client(base_url=f"http://{node.control}", headers=node.token, trust_env=False, timeout=60) as client,
    ):
        for method, path in changing:
            for body in ODD:
                if body in (b"", b"null") and path.startswith("/v2/repository/"):
                    continue  # nothing to say is all right there
                reply = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
                assert 400 <= reply.status_code < 500, (method, path, body[:80], reply.status_code, reply.text[:500])
                assert len(reply.content) < MIB
    node.healthy()


@pytest.mark.parametrize("node", NODES, indirect=True)
def test_bodies_that_unpack_to_a_gigabyte_take_no_memory(node: Besieged) -> None:
    bomb = gzip.compress(bytes(900 * MIB), 9)
    assert len(bomb) < MIB
    changing = [
        (method, path) for path, operations in schema_of(node)["paths"].items() for method in operations if method != "get"
    ]
    changing.append(("post", "/v2/models/any/infer"))
    with httpx.Client(base_url=f"http://{node.control}", headers=node.token, trust_env=False, timeout=60) as client:
        for method, path in changing:
            with node.stands(grows_mib=32):
                reply = client.request(method, path, content=bomb, headers={"Content-Encoding": "gzip"})
                assert 400 <= reply.status_code < 500
                assert peak_mib(node) < before_mib(node) + 128
    node.healthy()


def well(node: Besieged) -> bool:
    return httpx.get(f"http://{node.control}/healthz", timeout=60, trust_env=False).status_code == 200


def peak_mib(node: Besieged) -> float:
    return _status(node, "VmHWM")


def before_mib(node: Besieged) -> float:
    return _status(node, "VmRSS")


def _status(node: Besieged, name: str) -> float:
    with open(f"/proc/{node.process.popen.pid}/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


@pytest.mark.parametrize("node", NODES, indirect=True)
def test_a_crowd_that_says_nothing_keeps_nobody_out(node: Besieged) -> None:
    """Hundreds of sockets, silent, or with half a request, or that never read: a good request is answered at once."""
    half = b"PUT /behaviour HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
    unread = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
    for said in (b"", half, unread):
        with node.stands(grows_mib=32):
            crowd = []
            for number in range(100 if said is unread else 400):
                with contextlib.suppress(OSError):
                    connection = http2.connect(node.control)
                    crowd.append(connection)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                    connection.sendall(said)
                if number % 100 == 99 and said is not unread:
                    node.healthy()
            # of all these the node keeps its limit, and what is on its way
            assert eventually(lambda: node.footprint().descriptors < 64 + 64 + 40)
            assert eventually(lambda: well(node))  # whoever asks thousands of times is answered first, and others 503 meanwhile
            for connection in crowd:
                connection.close()


@pytest.mark.parametrize("node", NODES, indirect=True)
def test_a_request_that_drips_in_is_cut_off(node: Besieged) -> None:
    with http2.connect(node.control) as slow:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 60:
                slow.sendall(b"X")
                time.sleep(0.2)
        assert time.monotonic() < began + 60, "expected to be cut off"
    node.healthy()
