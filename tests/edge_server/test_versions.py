"""Several versions of a model, and models that come, change and go while frames stream."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from adversary.oracle import LiveOracle
from edge_server.node import EdgeConfig, EdgeServer
from edge_server.queue import BatchSettings
from edge_server.repository import VersionPolicy, split_version
from splitcore.artefact import MANIFEST
from splitcore.errors import ArtefactError
from splitcore.journal import read
from splitcore.wire import catalogue, oip

from .conftest import Edge, Peer, Served

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def place(source: Path, repository: Path, version: int, accuracy: float | None = None) -> Path:
    """The artefact as a version in a repository, another one where another accuracy is said."""
    manifest = json.loads((source / MANIFEST).read_text())
    folder = repository / manifest["name"] / str(version)
    shutil.copytree(source, folder)
    if accuracy is not None:
        (folder / MANIFEST).write_text(json.dumps(manifest | {"accuracy": accuracy}))
    return folder


@pytest.fixture
def repository(digits_cuts, tmp_path) -> Path:
    """digits-wide in versions 2 and 10, digits-narrow in version 1."""
    wide, narrow = digits_cuts
    folder = tmp_path / "models"
    place(wide, folder, 2)
    place(wide, folder, 10, 0.125)
    place(narrow, folder, 1)
    return folder


@pytest.fixture
async def start(tmp_path):
    started = []

    async def start(**settings):
        state = tmp_path / "edge"
        server = EdgeServer(EdgeConfig(state=state, device="cpu", threads=1, grace_s=0.2, **settings))
        await server.start()
        started.append(Edge(server, Peer(server.address), state / "server.jsonl"))
        return started[-1]

    yield start
    for edge in started:
        await edge.peer.channel.close()
        await edge.server.drain()


def token_of(edge: Edge) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {(edge.log.parent / 'token').read_text().strip()}"),)


async def change(edge: Edge, method: str, name: str) -> None:
    # field 2, model_name, of either request
    message = b"\x12" + bytes([len(name)]) + name.encode()
    await edge.peer.call(method, message, metadata=token_of(edge))


async def index(edge: Edge) -> dict[tuple[str, str], tuple[str, str]]:
    answer = catalogue.unpack_answer(oip.INDEX, await edge.peer.call(oip.INDEX))
    return {(row["name"], row["version"]): (row["state"], row["reason"]) for row in answer["models"]}


async def test_a_repository_serves_every_version_and_the_newest_by_default(start, repository, digits_cuts):
    edge = await start(repositories=(repository,))
    wide, newest = Served(digits_cuts[0]), Served(repository / "digits-wide" / "10")
    frames = [wide.frame(f"v{version}", model="digits-wide", version=version) for version in ("", "2", "10")]
    replies = {reply.id: reply for reply in await edge.peer.ask([*frames, wide.frame("v9", model="digits-wide", version="9")])}
    assert {key: reply.version for key, reply in replies.items() if not reply.error} == {"v": "10", "v2": "2", "v10": "10"}
    assert replies["v9"].error.startswith("NOT_FOUND: ") and "'digits-wide' version '2' or '10'" in replies["v9"].error
    metadata = oip.unpack_model_metadata(await edge.peer.call(oip.MODEL_METADATA, oip.pack_model_name("digits-wide")))
    assert metadata.versions == ("2", "10")
    assert set(await index(edge)) == {("digits-wide", "2"), ("digits-wide", "10"), ("digits-narrow", "1")}
    # the log, the metrics and the control plane tell them apart
    assert {row["id"]: (row["model"], row["version"]) for row in read(edge.log)} == {
        "v": ("digits-wide", "10"), "v2": ("digits-wide", "2"), "v10": ("digits-wide", "10"),
    }  # fmt: skip
    async with httpx.AsyncClient(base_url=f"http://{edge.server.control}") as http:
        models = (await http.get("/models")).json()["models"]
        said = {(model["name"], model["version"], model["handshake"]) for model in models}
        assert ("digits-wide", "10", newest.artefact.manifest.handshake) in said and len(said) == 3
        families = text_string_to_metric_families((await http.get("/metrics")).text)
        counts = {
            (sample.labels["model"], sample.labels["version"]): sample.value
            for family in families
            for sample in family.samples
            if sample.name == "nv_inference_count_total"
        }
    assert counts == {("digits-wide", "10"): 2, ("digits-wide", "2"): 1, ("digits-narrow", "1"): 0}


async def test_a_client_that_names_no_version_gets_the_one_whose_artefact_it_holds(start, repository):
    edge = await start(repositories=(repository,))
    old, new = (Served(repository / "digits-wide" / version) for version in ("2", "10"))
    for holder, version in ((old, "2"), (new, "10")):
        metadata = ((oip.ARTEFACT_METADATA, holder.artefact.manifest.handshake),)
        unnamed, named = holder.frame("a", model="digits-wide"), holder.frame("b", model="digits-wide", version=version)
        assert [reply.version for reply in await edge.peer.ask([unnamed, named], metadata=metadata)] == [version] * 2
        other = holder.frame("c", model="digits-wide", version="2" if version == "10" else "10")
        [reply] = await edge.peer.ask([other], metadata=metadata)
        assert reply.error.startswith(f"FAILED_PRECONDITION: expected frames for version '{version}' of model digits-wide")


async def test_an_adversarys_queries_go_to_the_version_whose_artefact_it_holds_as_the_phones_frames_do(start, repository):
    edge = await start(repositories=(repository,))
    loop = asyncio.get_running_loop()
    for version in ("2", "10"):
        held = Served(repository / "digits-wide" / version)
        oracle = LiveOracle(edge.server.address, handshake=held.artefact.manifest.handshake)
        answered: asyncio.Future = loop.create_future()
        frame = held.frame(f"q/{version}", origin="query", model="digits-wide")
        oracle.ask(frame, lambda reply, to=answered: loop.call_soon_threadsafe(to.set_result, reply))
        assert (await answered).version == version
        await asyncio.to_thread(oracle.close)


async def test_a_version_policy_keeps_the_newest(start, repository):
    edge = await start(repositories=(repository,), version_policy="latest:1")
    assert set(await index(edge)) == {("digits-wide", "10"), ("digits-narrow", "1")}
    config = catalogue.unpack_answer(oip.CONFIG, await edge.peer.call(oip.CONFIG, oip.pack_model_name("digits-wide")))["config"]
    assert config["version_policy"] == {"latest": {"num_versions": 1}}


def test_what_is_no_version_or_policy_is_refused_in_words(tmp_path):
    for text in ("", "none", "latest:0", "latest:x", "all:2"):
        with pytest.raises(ValueError, match="expected a version policy"):
            VersionPolicy.parse(text)
    assert split_version(tmp_path / "digits@2") == (tmp_path / "digits", "2")
    assert split_version(tmp_path / "digits@x") == (tmp_path / "digits@x", "1")
    (tmp_path / "mine@3").mkdir()
    assert split_version(tmp_path / "mine@3") == (tmp_path / "mine@3", "1")


async def test_a_folder_under_another_models_name_is_refused_in_words(start, digits_cuts, tmp_path):
    shutil.copytree(digits_cuts[0], tmp_path / "models" / "other" / "1")
    with pytest.raises(ArtefactError, match=r"expected an artefact named 'other' in .*, got 'digits-wide'"):
        await start(repositories=(tmp_path / "models",))
    with pytest.raises(ArtefactError, match="expected a model to serve, found none"):
        await start(repositories=(tmp_path,))


async def stream_until(edge: Edge, served: Served, prefix: str, stop: asyncio.Event, answered: list) -> int:
    """Frames on one stream, eight under way, until `stop`; their answers go to `answered`. Gives how many were sent."""
    call = edge.peer.stream()
    room, sent = asyncio.Semaphore(8), 0

    async def collect() -> None:
        async for message in call:
            answered.append(oip.unpack_stream_reply(message))
            room.release()

    collecting = asyncio.create_task(collect())
    while not stop.is_set():
        await room.acquire()
        await call.write(oip.pack_request(served.frame(f"{prefix}/{sent}", served.latents(1), model=served.name)))
        sent += 1
    await call.done_writing()
    await collecting
    assert await call.code() == grpc.StatusCode.OK
    return sent


async def test_frames_stream_on_through_a_load_a_swap_and_an_unload_of_another_model(start, digits_cuts, tmp_path):
    wide, narrow = map(Served, digits_cuts)
    models = tmp_path / "models"
    place(digits_cuts[0], models, 1)
    edge = await start(repositories=(models,), batching=BatchSettings(max_batch_size=4))
    stop, answers = asyncio.Event(), []
    streaming = asyncio.create_task(stream_until(edge, wide, "wide", stop, answers))

    async def more(replies: int) -> None:
        target = len(answers) + replies
        while len(answers) < target:
            assert not streaming.done()
            await asyncio.sleep(0.001)

    await more(20)
    for round_ in range(3):
        # another model comes, is used, and goes
        if round_ == 0:
            place(digits_cuts[1], models, 1)
        await change(edge, oip.LOAD, "digits-narrow")
        assert (await edge.peer.infer(narrow.frame(f"narrow/{round_}", model=narrow.name))).model == narrow.name
        await more(10)
        # the model of the stream becomes another artefact under the same version
        folder = models / "digits-wide" / "1"
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(manifest | {"accuracy": round_ / 8}))
        before = edge.server.service.models.find("digits-wide", "")
        await change(edge, oip.LOAD, "digits-wide")
        assert edge.server.service.models.find("digits-wide", "") is not before
        await more(10)
        await change(edge, oip.UNLOAD, "digits-narrow")
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await edge.peer.infer(narrow.frame("late", model=narrow.name))
        assert gone.value.code() == grpc.StatusCode.UNAVAILABLE and "unloaded" in gone.value.details()
        await more(10)
    stop.set()
    sent = await streaming
    assert Counter(reply.id for reply in answers) == Counter(f"wide/{n}" for n in range(sent))
    expected = wide.scores(wide.latents(1))
    for reply in answers:
        assert reply.error is None, reply.error
        np.testing.assert_allclose(reply.scores, expected, rtol=1e-4, atol=1e-4)
    logged = Counter(row["id"] for row in read(edge.log))
    assert logged == Counter([reply.id for reply in answers] + [f"narrow/{n}" for n in range(3)])
    # the counters of a model go on from artefact to artefact
    counts = edge.server.service.models.counts("digits-wide", "1")
    assert counts.success == sent


async def test_what_was_accepted_is_answered_when_its_model_is_swapped_or_unloaded(start, repository):
    edge = await start(repositories=(repository,))
    wide, narrow = Served(repository / "digits-wide" / "2"), Served(repository / "digits-narrow" / "1")
    edge.server.batcher.hold()
    call = edge.peer.stream()
    for frame in (wide.frame("w2", model="digits-wide", version="2"), narrow.frame("n", model="digits-narrow")):
        await call.write(oip.pack_request(frame))
    while edge.server.batcher.pending[0] < 2:
        await edge.peer.call(oip.LIVE)
    await change(edge, oip.UNLOAD, "digits-wide")
    await change(edge, oip.UNLOAD, "digits-narrow")
    states = await index(edge)
    assert {state for state, _ in states.values()} <= {"UNLOADING", "UNAVAILABLE"}
    assert states["digits-narrow", "1"] == ("UNLOADING", "unloaded")
    await call.write(oip.pack_request(narrow.frame("late", model="digits-narrow")))
    late = oip.unpack_stream_reply(await call.read())
    assert late.id == "late" and late.error.startswith(
        "UNAVAILABLE: model 'digits-narrow' version '' is not available: unloaded"
    )
    # it comes back while the old one still has a frame to compute
    await change(edge, oip.LOAD, "digits-narrow")
    await call.write(oip.pack_request(narrow.frame("again", model="digits-narrow")))
    while edge.server.batcher.pending[0] < 3:
        await edge.peer.call(oip.LIVE)
    edge.server.batcher.release()
    replies = {reply.id: reply for reply in [oip.unpack_stream_reply(await call.read()) for _ in range(3)]}
    assert set(replies) == {"w2", "n", "again"} and not any(reply.error for reply in replies.values())
    await call.done_writing()
    while "UNLOADING" in {state for state, _ in (await index(edge)).values()}:
        await edge.peer.call(oip.LIVE)
    assert (await index(edge))["digits-narrow", "1"] == ("READY", "")
    # nothing of those that left is kept
    served = edge.server.service.models
    while set(served._by_key) != {model.key for model in served} or set(edge.server.batcher._queues) - set(served._by_key):
        await edge.peer.call(oip.LIVE)


async def test_an_artefact_that_does_not_load_leaves_the_old_one_serving_and_says_why(start, repository, digits_cuts):
    edge = await start(repositories=(repository,))
    wide = Served(digits_cuts[0])
    broken = repository / "digits-wide" / "11"
    shutil.copytree(digits_cuts[0], broken)
    (broken / "tail.safetensors").write_bytes(b"no tail")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await change(edge, oip.LOAD, "digits-wide")
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "failed to load 'digits-wide'" in refused.value.details() and "expected sha256" in refused.value.details()
    state, reason = (await index(edge))["digits-wide", "11"]
    assert state == "UNAVAILABLE" and "expected sha256" in reason
    assert (await edge.peer.infer(wide.frame("a", model="digits-wide"))).version == "10"
    # a version that is gone from the folder leaves with the next load
    shutil.rmtree(broken)
    shutil.rmtree(repository / "digits-wide" / "10")
    await change(edge, oip.LOAD, "digits-wide")
    assert (await edge.peer.infer(wide.frame("b", model="digits-wide"))).version == "2"


async def test_a_phone_of_the_old_artefact_is_told_on_its_open_stream_when_the_model_is_swapped(start, repository):
    edge = await start(repositories=(repository,))
    narrow = Served(repository / "digits-narrow" / "1")
    call = edge.peer.stream(metadata=((oip.ARTEFACT_METADATA, narrow.artefact.manifest.handshake),))
    await call.write(oip.pack_request(narrow.frame("before", model=narrow.name)))
    assert oip.unpack_stream_reply(await call.read()).error is None
    manifest = json.loads((repository / "digits-narrow" / "1" / MANIFEST).read_text())
    (repository / "digits-narrow" / "1" / MANIFEST).write_text(json.dumps(manifest | {"accuracy": 0.25}))
    await change(edge, oip.LOAD, "digits-narrow")
    await call.write(oip.pack_request(narrow.frame("after", model=narrow.name)))
    after = oip.unpack_stream_reply(await call.read())
    assert after.error.startswith("FAILED_PRECONDITION: the edge server holds artefact digits-narrow@")
    await call.done_writing()


async def test_health_knows_every_model_and_follows_it(start, repository):
    edge = await start(repositories=(repository,))
    health = health_pb2_grpc.HealthStub(edge.peer.channel)

    async def status(name: str) -> int:
        return (await health.Check(health_pb2.HealthCheckRequest(service=name))).status

    for name in ("", oip.SERVICE, "digits-wide", "digits-narrow"):
        assert await status(name) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await status("another")
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="digits-narrow"))
    assert (await watch.read()).status == SERVING
    await change(edge, oip.UNLOAD, "digits-narrow")
    assert (await watch.read()).status == NOT_SERVING
    await change(edge, oip.LOAD, "digits-narrow")
    assert (await watch.read()).status == SERVING
    assert await status("") == SERVING
    watch.cancel()
