"""A server of several models: which tail answers, what a batch holds, whose queue is full, what is said of each."""

from __future__ import annotations

import json
import shutil
import signal

import grpc
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge_server.node import EdgeConfig, EdgeServer
from edge_server.queue import BatchSettings
from splitcore.artefact import MANIFEST
from splitcore.errors import ArtefactError
from splitcore.journal import read
from splitcore.wire import oip

from .conftest import Edge, Peer, Process, Served


@pytest.fixture(scope="module")
def wide(digits_cuts):
    return Served(digits_cuts[0])


@pytest.fixture(scope="module")
def narrow(digits_cuts):
    return Served(digits_cuts[1])


@pytest.fixture
async def start_both(digits_cuts, tmp_path):
    """A server of both cuts in this process, the wide one first."""
    started = []

    async def start(**settings):
        artefact, *others = digits_cuts
        state = tmp_path / "edge"
        config = EdgeConfig(
            artefact=artefact, others=tuple(others), state=state, device="cpu", threads=1, grace_s=0.2, tail="eager", **settings
        )
        server = EdgeServer(config)
        await server.start()
        started.append(Edge(server, Peer(server.address), state / "server.jsonl"))
        return started[-1]

    yield start
    for edge in started:
        await edge.peer.channel.close()
        await edge.server.drain()


def named(served, frame_id, rows=1, codec="identity", **fields):
    return served.frame(frame_id, served.latents(rows), codec, **({"model": served.name} | fields))


async def held(edge, frames):
    """A stream on which `frames` were written, and they all wait in the held batcher."""
    edge.server.batcher.hold()
    call = edge.peer.stream()
    for frame in frames:
        await call.write(oip.pack_request(frame))
    while edge.server.batcher.pending[0] < len(frames):
        await edge.peer.call(oip.LIVE)
    return call


async def test_every_frame_is_answered_by_the_tail_that_it_names_on_one_stream(start_both, wide, narrow):
    edge = await start_both()
    frames = [named((wide, narrow)[n % 2], f"r/phone/{n}", 1 + n % 3, "uniform8/channel") for n in range(12)]
    replies = {reply.id: reply for reply in await edge.peer.ask(frames)}
    assert len(replies) == 12
    for frame in frames:
        served = wide if frame.model == wide.name else narrow
        reply = replies[frame.id]
        assert reply.error is None and reply.model == served.name
        codec = edge.server.service.models.find(served.name, "").admission.codec(frame.codec)
        np.testing.assert_allclose(reply.scores, served.scores(codec.decode(frame.payloads)), rtol=1e-4, atol=1e-4)
    assert {row["id"]: row["model"] for row in read(edge.log)} == {frame.id: frame.model for frame in frames}


async def test_a_frame_that_names_no_model_is_the_first_ones(start_both, wide):
    edge = await start_both()
    [reply] = await edge.peer.ask([wide.frame("unnamed")])
    assert reply.error is None and reply.model == wide.name
    assert [row["model"] for row in read(edge.log)] == [wide.name]


async def test_a_batch_never_mixes_models_and_models_take_turns(start_both, wide, narrow):
    edge = await start_both(batching=BatchSettings(max_batch_size=4))
    # ten of the one come before two of the other, which wait for one batch and not for three
    frames = [*(named(wide, f"w{n}") for n in range(10)), *(named(narrow, f"n{n}") for n in range(2))]
    call = await held(edge, frames)
    edge.server.batcher.release()
    await call.done_writing()
    assert len([message async for message in call]) == 12
    batches: dict[int, list[str]] = {}
    for row in read(edge.log):
        batches.setdefault(row["t_ns"], []).append(row["model"])
    assert list(batches.values()) == [[wide.name] * 4, [narrow.name] * 2, [wide.name] * 4, [wide.name] * 2]


async def test_a_full_queue_of_one_model_refuses_nothing_of_the_other(start_both, wide, narrow):
    edge = await start_both(batching=BatchSettings(max_queue_size=3))
    call = await held(edge, [named(wide, "a", 3)])
    await call.write(oip.pack_request(named(wide, "b")))
    refused = oip.unpack_stream_reply(await call.read())
    assert refused.id == "b" and refused.error.startswith("RESOURCE_EXHAUSTED: ")
    await call.write(oip.pack_request(named(narrow, "c", 3)))
    while edge.server.pending(narrow.name) != (1, 3):
        await edge.peer.call(oip.LIVE)
    edge.server.batcher.release()
    await call.done_writing()
    assert {oip.unpack_stream_reply(await call.read()).id for _ in range(2)} == {"a", "c"}


async def test_a_third_model_is_refused_in_words_and_the_stream_goes_on(start_both, wide, narrow):
    edge = await start_both()
    third = named(narrow, "third", model="another")
    [refused, good] = await edge.peer.ask([third, named(narrow, "good")])
    text = (
        f"NOT_FOUND: Request for unknown model: expected {wide.name!r} version '1' or {narrow.name!r} version '1', "
        "got 'another' version ''"
    )
    assert refused.id == "third" and refused.error == text
    assert good.id == "good" and good.error is None
    for method, message in ((oip.INFER, oip.pack_request(third)), (oip.MODEL_METADATA, oip.pack_model_name("another"))):
        with pytest.raises(grpc.aio.AioRpcError) as status:
            await edge.peer.call(method, message)
        assert status.value.code() == grpc.StatusCode.NOT_FOUND and wide.name in status.value.details()
    # a latent of the one model that is sent as the other's
    [wrong] = await edge.peer.ask([named(narrow, "wrong", model=wide.name)])
    assert wrong.error.startswith("INVALID_ARGUMENT: expected latents of shape")
    assert [row["id"] for row in read(edge.log)] == ["good"]


async def test_every_model_describes_itself_and_every_call_begins_with_all_handshakes(start_both, wide, narrow):
    edge = await start_both()
    handshakes = [served.artefact.manifest.handshake for served in (wide, narrow)]
    for served in (wide, narrow):
        call = edge.peer.channel.unary_unary(oip.path(oip.MODEL_METADATA))(
            oip.pack_model_name(served.name), metadata=((oip.ARTEFACT_METADATA, served.artefact.manifest.handshake),)
        )
        said = [value for key, value in await call.initial_metadata() if key == oip.ARTEFACT_METADATA]
        assert said == handshakes
        metadata = oip.unpack_model_metadata(await call)
        assert metadata.name == served.name and metadata.inputs[0].shape == (-1, *served.spec.shape)
        ready = await edge.peer.call(oip.MODEL_READY, oip.pack_model_name(served.name))
        assert ready == oip.pack_flag(oip.MODEL_READY, True)


async def test_a_client_that_holds_both_is_let_in_and_one_that_holds_a_third_is_told_what_is_served(start_both, wide, narrow):
    edge = await start_both()
    both = [(oip.ARTEFACT_METADATA, served.artefact.manifest.handshake) for served in (wide, narrow)]
    assert [reply.error for reply in await edge.peer.ask([named(wide, "a"), named(narrow, "b")], metadata=both)] == [None] * 2
    third = (oip.ARTEFACT_METADATA, "third@" + "0" * 64)
    for reply in await edge.peer.ask([named(wide, "c"), named(narrow, "d")], metadata=[*both, third]):
        assert reply.error.startswith("FAILED_PRECONDITION: the edge server holds artefact ") and "third@000" in reply.error
    # of the same name, but another: named beside the one that it is not
    other = (oip.ARTEFACT_METADATA, f"{narrow.name}@" + "0" * 64)
    [reply] = await edge.peer.ask([named(narrow, "e")], metadata=[other])
    assert narrow.artefact.manifest.handshake in reply.error and wide.name not in reply.error


async def test_a_frame_that_asks_for_the_servers_time_gets_it_and_others_do_not(start_both, narrow):
    edge = await start_both()
    timed, plain = await edge.peer.ask([named(narrow, "timed", timed=True), named(narrow, "plain")])
    assert timed.edge_ms > 0
    assert plain.edge_ms is None and plain.parameters == {}


def test_two_artefacts_of_one_name_are_refused_in_words(digits_cuts, tmp_path, start_process):
    wide, _ = digits_cuts
    again = tmp_path / "again"
    shutil.copytree(wide, again)
    manifest = json.loads((again / MANIFEST).read_text())
    (again / MANIFEST).write_text(json.dumps(manifest | {"accuracy": 0.5}))
    with pytest.raises(
        RuntimeError, match=r"expected artefacts of different names, got 'digits-wide' version 1 from .*wide and from"
    ):
        Process(wide, tmp_path / "edge", "--artefact", str(again))


async def test_the_same_folder_twice_is_refused_too(digits_cuts, tmp_path):
    server = EdgeServer(
        EdgeConfig(artefact=digits_cuts[0], others=(digits_cuts[0],), state=tmp_path, device="cpu", tail="eager")
    )
    with pytest.raises(ArtefactError, match="expected artefacts of different names"):
        await server.start()


async def test_the_control_plane_and_the_metrics_tell_the_models_apart(digits_cuts, tmp_path, wide, narrow):
    process = Process(digits_cuts[0], tmp_path / "edge", "--artefact", str(digits_cuts[1]))
    try:
        peer = Peer(process.grpc)
        await peer.ask([named(wide, "r/a/1", 5), named(narrow, "r/a/2", 2), named(narrow, "r/a/3", model="another")])
        await peer.channel.close()
        async with httpx.AsyncClient(base_url=f"http://{process.control}") as http:
            models = (await http.get("/models")).json()["models"]
            assert [model["name"] for model in models] == [wide.name, narrow.name]
            assert [tuple(model["latent_shape"]) for model in models] == [wide.spec.shape, narrow.spec.shape]
            families = text_string_to_metric_families((await http.get("/metrics")).text)
            samples = [sample for family in families for sample in family.samples]
            rows = [json.loads(line) for line in (await http.get("/log", params={"run": "r"})).text.splitlines()]
    finally:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.output
    computed = {sample.labels["model"]: sample.value for sample in samples if sample.name == "nv_inference_count_total"}
    assert computed == {wide.name: 5, narrow.name: 2}
    # what is for none of them is counted with the first
    failed = [sample for sample in samples if sample.name == "nv_inference_request_failure_total" and sample.value]
    assert [(sample.labels["model"], sample.labels["detail"], sample.value) for sample in failed] == [(wide.name, "INVALID", 1)]
    assert [(row["id"], row["model"]) for row in rows] == [("r/a/1", wide.name), ("r/a/2", narrow.name)]
