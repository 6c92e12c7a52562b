"""The server as its own process: how it starts, drains, is killed and comes back."""

from __future__ import annotations

import asyncio
import signal

import grpc
import httpx
import pytest
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from edge_server.__main__ import main
from splitcore.journal import read
from splitcore.wire import oip

from .conftest import Peer

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_drain_answers_what_was_accepted_refuses_what_comes_and_ends_with_0(start_process, served):
    # nothing leaves the queue by itself within a minute: only the drain's flush can answer
    server = start_process("--max-queue-delay-microseconds", "60000000", "--grace-s", "30")
    peer = Peer(server.grpc)
    watch = health_pb2_grpc.HealthStub(peer.channel).Watch(health_pb2.HealthCheckRequest(service=oip.SERVICE))
    assert (await watch.read()).status == SERVING
    call = peer.stream()
    accepted = [f"run/phone/{n}" for n in range(5)]
    for frame_id in accepted:
        await call.write(oip.pack_request(served.frame(frame_id)))
    # refused in-band, so it tells that all before it were taken in
    await call.write(oip.pack_request(served.frame("mark", model="another")))
    assert oip.unpack_stream_reply(await call.read()).id == "mark"
    server.signal(signal.SIGTERM)
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()
    await call.write(oip.pack_request(served.frame("too late")))
    replies = {reply.id: reply for reply in [oip.unpack_stream_reply(await call.read()) for _ in range(6)]}
    assert replies["too late"].error.startswith("UNAVAILABLE: draining")
    assert all(replies[frame_id].error is None for frame_id in accepted)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF and await call.code() == grpc.StatusCode.OK
    assert server.wait() == 0, server.output
    assert [row["id"] for row in read(server.state / "server.jsonl")] == accepted
    await peer.channel.close()


async def test_under_load_every_frame_that_was_accepted_is_answered_and_later_ones_are_told(start_process, served):
    server = start_process("--drain-delay", "0.5", "--grace-s", "30", "--max-batch-size", "4")
    async with httpx.AsyncClient(base_url=f"http://{server.control}") as http:
        peers = [Peer(server.grpc) for _ in range(3)]
        ending, sent, answered, told = asyncio.Event(), set(), set(), set()

        async def phone(name: str, peer: Peer) -> None:
            call, slots = peer.stream(), asyncio.Semaphore(32)

            async def write() -> None:
                number = 0
                while not ending.is_set():
                    await slots.acquire()
                    frame_id = f"run/{name}/{number}"
                    sent.add(frame_id)
                    await call.write(oip.pack_request(served.frame(frame_id)))
                    number += 1
                await call.done_writing()

            writing = asyncio.create_task(write())
            while (message := await call.read()) is not grpc.aio.EOF:
                reply = oip.unpack_stream_reply(message)
                (told if reply.error else answered).add(reply.id)
                if reply.error:
                    assert reply.error.startswith("UNAVAILABLE: draining")
                    ending.set()
                slots.release()
            await writing
            assert await call.code() == grpc.StatusCode.OK

        phones = [asyncio.create_task(phone(str(n), peer)) for n, peer in enumerate(peers)]
        while len(answered) < 200:
            await http.get("/healthz")
        server.signal(signal.SIGTERM)
        while (await http.get("/readyz")).status_code == 200:
            assert not told, "before the server said that it is leaving"
        await asyncio.gather(*phones)
    assert server.wait() == 0, server.output
    assert answered | told == sent and not answered & told and told
    logged = {row["id"] for row in read(server.state / "server.jsonl")}
    assert logged == answered
    for peer in peers:
        await peer.channel.close()


async def test_a_killed_server_has_logged_every_answer_and_goes_on_in_the_same_log(start_process, served):
    answered = []
    for run in ("one", "two"):
        server = start_process()
        peer = Peer(server.grpc)
        call = peer.stream()
        for n in range(40):
            await call.write(oip.pack_request(served.frame(f"{run}/phone/{n}", served.latents(4))))
        for _ in range(20):
            answered.append(oip.unpack_stream_reply(await call.read()).id)
        if run == "two":
            async with httpx.AsyncClient(base_url=f"http://{server.control}") as http:
                rows = (await http.get("/log", params={"run": "one"})).text.splitlines()
            assert len(rows) >= 20 and all('"one/phone/' in row for row in rows)
        server.signal(signal.SIGKILL)
        server.wait()
        await peer.channel.close()
        logged = [row["id"] for row in read(server.state / "server.jsonl")]
        assert set(answered) <= set(logged) and len(logged) == len(set(logged))


def test_what_cannot_be_served_is_said_in_one_line_and_ends_with_1(tmp_path):
    app = typer.Typer()
    app.command()(main)
    ended = CliRunner().invoke(app, ["--artefact", str(tmp_path), "--state", str(tmp_path / "state")])
    assert ended.exit_code == 1
    assert "expected an artefact in" in ended.stderr and "Traceback" not in ended.stderr


async def test_a_taken_port_is_an_error_that_names_it(edge, start_edge):
    with pytest.raises(OSError, match=f"cannot listen on {edge.server.address}"):
        await start_edge(listen=edge.server.address)
    with pytest.raises(OSError, match=f"cannot listen on {edge.server.control}"):
        await start_edge(control=edge.server.control)
