"""The control plane against strangers: tokens, foreign sites, bodies, garbage on the socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from fastapi import Path as InPath
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from splitcore.control import MAX_BODY_BYTES, MAX_CONNECTIONS, control_app, journal_response, load_token, serving

TOKEN = "a token of this test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LIMITS = httpx.Limits(max_keepalive_connections=0)
"""a kept connection may just be closed by the server when the next request is on its way"""
JSON = {**BEARER, "Content-Type": "application/json"}


class Behaviour(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["pass", "hold"]
    budget: Annotated[int, Field(ge=0, le=10_000)] = 0
    note: Annotated[str, Field(max_length=50)] = ""


def make_app(journal: Path = Path("/nonexistent"), names: frozenset[str] = frozenset()) -> FastAPI:
    """A small node: something to read, something to change, a journal."""
    app, with_token = control_app("a node", token=TOKEN, names=names)
    state = {"behaviour": Behaviour(kind="pass")}

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/behaviour")
    async def behaviour() -> Behaviour:
        return state["behaviour"]

    @app.put("/behaviour", dependencies=[with_token])
    async def change(behaviour: Behaviour) -> Behaviour:
        state["behaviour"] = behaviour
        return behaviour

    @app.get("/passes/{run}", responses={404: {"description": "no such run"}})
    async def one(run: Annotated[str, InPath(pattern=r"^[a-z0-9]{1,20}$")]) -> dict[str, str]:
        if run != "known":
            raise HTTPException(404, "no such run")
        return {"run": run}

    @app.get("/log")
    async def log() -> Any:
        return journal_response(journal)

    return app


@contextlib.asynccontextmanager
async def client_of(app: FastAPI, host: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    """A real server on a free port, and a client of it."""
    async with serving(app, host, 0) as port:
        base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30) as client:
            yield client


@pytest.fixture(scope="module")
def node() -> Iterator[httpx.Client]:
    """One node in a thread of its own for all tests that leave it as it was, and a client of it."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    ports: list[int] = []

    async def serve() -> None:
        async with serving(make_app(names=frozenset({"Edge_Server"})), "127.0.0.1", 0) as port:
            ports.append(port)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", trust_env=False, timeout=30, limits=LIMITS) as client:
        yield client
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def kind_of(node: httpx.Client) -> str:
    """The behaviour that the node has now; afterwards it is `pass` again."""
    kind = node.get("/behaviour").json()["kind"]
    node.put("/behaviour", json={"kind": "pass"}, headers=BEARER).raise_for_status()
    return str(kind)


def test_a_token_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "token"
    token = load_token(path)
    assert len(token) >= 32 and load_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_processes_that_race_for_the_token_all_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "token"
    code = "import sys; from pathlib import Path; from splitcore.control import load_token\n"
    code += "print('go', flush=True); sys.stdin.readline(); print(load_token(Path(sys.argv[1])))"
    racers = [
        subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "go\n"
    tokens = {racer.communicate("\n", timeout=60)[0] for racer in racers}
    assert len(tokens) == 1 and tokens == {path.read_text()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "\n", "short", " " * 40])
def test_a_token_that_can_be_guessed_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(ValueError, match="expected a token of 16 characters or more"):
        load_token(tmp_path / "token")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": "Bearer " + "\xff" * 20},
        {"Authorization": "Bearer " + "x" * 10_000},
        {"X-Token": TOKEN},
    ],
    ids=lambda headers: str(headers)[:40],
)
def test_a_change_without_the_token_is_refused(node: httpx.Client, headers: dict[str, str]) -> None:
    answer = node.put("/behaviour", json={"kind": "hold"}, headers=raw(headers))
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text
    assert kind_of(node) == "pass"


def test_a_change_with_the_token_is_made_and_reading_needs_none(node: httpx.Client) -> None:
    assert node.put("/behaviour", json={"kind": "hold"}, headers=BEARER).status_code == 200
    assert kind_of(node) == "hold"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "LOCALHOST", "localhost:8000", "127.0.0.1:1", "[::1]", "[::1]:9000", "edge_server:8080",
     "Edge_Server"],
)  # fmt: skip
def test_the_nodes_own_names_are_answered(node: httpx.Client, host: str) -> None:
    assert node.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "127.0.0.1.evil.example", "evil.example:80", "localhost.", "127.0.0.2", "[::2]", "::1", "[::1",
     "localhost:port", "localhost:99999999", "user@localhost", "localhost/evil", "localhost evil", "127.0.0\t.1",
     "localhost,evil", "\xbd.example", "null", "[localhost]:1"],
)  # fmt: skip
def test_a_foreign_host_is_refused_as_a_rebound_name_would_be(node: httpx.Client, host: str) -> None:
    for method in ("GET", "PUT"):
        answer = node.request(method, "/behaviour", json={"kind": "hold"}, headers=raw({"Host": host, **BEARER}))
        # h11 itself refuses what is no header at all
        assert answer.status_code in (421, 400)
    assert kind_of(node) == "pass"


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


async def test_no_host_or_two_hosts_are_refused() -> None:
    async with serving(make_app(), "127.0.0.1", 0) as port:
        for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n", "Host: evil.example\r\nHost: localhost\r\n"):
            assert b" 421 " in await talk(port, f"GET /healthz HTTP/1.0\r\n{hosts}\r\n") or hosts
            assert b" 200 " not in await talk(port, f"GET /healthz HTTP/1.1\r\n{hosts}\r\n")


async def talk(port: int, request: str | bytes) -> bytes:
    """Sends raw bytes, says that no more come, and gives what came back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.encode() if isinstance(request, str) else request)
        await writer.drain()
        with contextlib.suppress(OSError):  # the node has hung up already
            writer.write_eof()
        return await asyncio.wait_for(reader.read(1 << 16), 30)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://localhost", 200),
        ("https://[::1]:3", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
        ("localhost", 403),
        ("http://localhost.evil.example", 403),
        ("http://localhost@evil.example", 403),
        ("http://evil.example/http://localhost", 403),
        ("http://localhost http://evil.example", 403),
    ],
)
def test_a_foreign_origin_is_refused_even_with_the_token(node: httpx.Client, origin: str, status: int) -> None:
    headers = {**BEARER, "Origin": origin}
    assert node.put("/behaviour", json={"kind": "hold"}, headers=headers).status_code == status
    assert kind_of(node) == ("hold" if status == 200 else "pass")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 on this host")
async def test_ipv6_loopback_serves_as_well() -> None:
    async with client_of(make_app(), "::1") as client:
        assert (await client.get("/healthz")).status_code == 200


async def chunks(size: int, chunk: int = 1 << 16) -> AsyncIterator[bytes]:
    for _ in range(size // chunk):
        yield b" " * chunk


async def test_a_body_above_the_bound_is_refused_whether_it_says_its_length_or_not() -> None:
    async with client_of(make_app()) as client:
        for send in ({"content": b" " * (MAX_BODY_BYTES + 1)}, {"content": chunks(2 * MAX_BODY_BYTES)}):
            answer = await client.put("/behaviour", headers=BEARER, **send)
            assert answer.status_code == 413 and str(MAX_BODY_BYTES) in answer.text
        # a route that never reads its body is no way around, nor is one that streams its answer
        for path in ("/healthz", "/log"):
            answer = await client.request("GET", path, content=chunks(2 * MAX_BODY_BYTES))
            assert answer.status_code == 413
        fits = json.dumps({"kind": "hold"}).encode()
        answer = await client.put("/behaviour", content=fits + b" " * (MAX_BODY_BYTES - len(fits)), headers=JSON)
        assert answer.status_code == 200


async def test_a_body_that_never_ends_is_cut_off() -> None:
    async with serving(make_app(), "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PUT /behaviour HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        block = b"10000\r\n" + b" " * 65536 + b"\r\n"
        answer = asyncio.create_task(reader.readline())
        for _ in range(100):
            if answer.done():
                break
            writer.write(block)
            await asyncio.wait_for(writer.drain(), 30)
        assert b" 413 " in await asyncio.wait_for(answer, 30)
        writer.close()


async def test_a_journal_is_answered_line_by_line_and_an_absent_one_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    async with client_of(make_app(path)) as client:
        absent = await client.get("/log")
        assert absent.status_code == 200 and absent.content == b""
        path.write_bytes(b'{"i":0}\n' * 100_000)
        answer = await client.get("/log")
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        assert answer.content == path.read_bytes()


async def test_the_port_answers_as_soon_as_it_is_known() -> None:
    for _ in range(3):
        async with serving(make_app(), "127.0.0.1", 0) as port:
            # no other task has run since the port was given: the listener alone must take the connection
            with socket.create_connection(("127.0.0.1", port), timeout=30):
                pass


async def test_a_taken_port_says_what_to_do() -> None:
    async with serving(make_app(), "127.0.0.1", 0) as port:
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*choose another --control"):
            async with serving(make_app(), "127.0.0.1", port):
                pass


@given(garbage=st.lists(
    st.binary(max_size=200)
    | st.sampled_from([b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 9000, b"A" * 70_000,
                       b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\0\x01", b"PUT /behaviour HTTP/1.1\r\n",
                       b"Content-Length: -1\r\n\r\n", b"Content-Length: 99999999999999999999\r\n\r\n", b"Host: localhost\r\n",
                       b"Transfer-Encoding: chunked\r\n\r\n", b"ffffffffffffffff\r\n", b"Upgrade: websocket\r\n",
                       b"Connection: Upgrade\r\n\r\n", b"Expect: 100-continue\r\n", b"X: " + b"y" * 60_000 + b"\r\n"]),
    min_size=1, max_size=8))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_garbage_on_the_socket_leaves_the_node_answering(node: httpx.Client, garbage: list[bytes]) -> None:
    port = node.base_url.port
    assert port is not None
    said = asyncio.run(talk(port, b"".join(garbage)))
    assert b" 500 " not in said
    assert node.get("/healthz").status_code == 200


async def test_connections_that_never_finish_a_request_do_not_shut_others_out() -> None:
    """As many as may be open at once: silent, in mid-header, in mid-body, in mid-header of a second request."""
    begun = [
        b"",
        b"GET /healthz HT",
        b"PUT /behaviour HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\n",
    ]
    async with serving(make_app(), "127.0.0.1", 0, patience_s=0.5) as port:
        idle = []
        for i in range(MAX_CONNECTIONS + 10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun[i % len(begun)])
            idle.append((reader, writer))

        async def hung_up(reader: asyncio.StreamReader) -> None:
            with contextlib.suppress(ConnectionError):
                while await reader.read(1 << 12):
                    pass

        await asyncio.wait_for(asyncio.gather(*(hung_up(reader) for reader, _ in idle)), 60)
        good = await talk(port, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b" 200 " in good
        for _, writer in idle:
            writer.close()


async def test_a_slow_answer_is_not_cut_off_by_the_patience_for_requests() -> None:
    app = make_app()

    @app.get("/slow")
    async def slow() -> dict[str, bool]:
        await asyncio.sleep(0.6)
        return {"ok": True}

    async with (
        serving(app, "127.0.0.1", 0, patience_s=0.2) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):
        for _ in range(2):
            assert (await client.get("/slow")).json() == {"ok": True}


async def test_a_request_in_several_pieces_is_answered() -> None:
    async with serving(make_app(), "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in (b"GET /hea", b"lthz HTTP/1.1\r\nHo", b"st: localhost\r\n", b"\r\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 30)
        writer.close()


async def test_serving_ends_while_a_client_is_still_connected() -> None:
    async with serving(make_app(), "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await reader.readline()
    assert await asyncio.wait_for(reader.read(), 30)
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


def test_root_or_not_the_token_is_never_world_readable(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_token(tmp_path / "token")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
