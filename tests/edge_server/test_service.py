"""Conversations with a real server over loopback: what it answers, and how it refuses."""

from __future__ import annotations

import dataclasses

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge_server.admission import Admission
from splitcore.codec import fit
from splitcore.wire import oip

PLAIN = ["identity", "float16", *(f"uniform{bits}/{per}" for bits in range(2, 9) for per in ("tensor", "channel"))]
PLAIN += ["jpeg75", "jpeg95/rgb-triples"]
CODECS = [name + zstd for name in PLAIN for zstd in ("", "+zstd")]


async def test_unary_and_stream_answers_equal_the_torch_tail_for_every_codec(edge, served):
    latents = served.latents(3)
    frames = [served.frame(f"run/phone/{n}", latents, codec) for n, codec in enumerate(CODECS)]
    streamed = {reply.id: reply for reply in await edge.peer.ask(frames)}
    for frame, name in zip(frames, CODECS, strict=True):
        expected = served.scores(fit(name, served.spec).snap(latents))
        for reply in (streamed[frame.id], await edge.peer.infer(frame)):
            assert reply.error is None and reply.id == frame.id and reply.model == served.name
            np.testing.assert_allclose(reply.scores, expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(reply.labels, reply.scores.argmax(1))


async def test_labels_alone_come_back_when_the_request_asks_for_them_or_the_server_gives_no_more(start_edge, served):
    edge = await start_edge()
    reply = await edge.peer.infer(served.frame("a", labels_only=True))
    assert reply.scores is None and reply.label == served.scores(served.latents(1)).argmax()


async def test_a_server_of_labels_never_gives_scores(start_edge, served):
    edge = await start_edge(labels_only=True)
    assert (await edge.peer.infer(served.frame("a"))).scores is None
    metadata = oip.unpack_model_metadata(await edge.peer.call(oip.MODEL_METADATA, oip.pack_model_name(served.name)))
    assert [output.name for output in metadata.outputs] == ["label"]


async def test_metadata_name_the_model_its_latent_and_its_outputs(edge, served):
    metadata = oip.unpack_model_metadata(await edge.peer.call(oip.MODEL_METADATA, oip.pack_model_name(served.name, "1")))
    classes = len(served.artefact.manifest.classes)
    assert metadata.name == served.name and metadata.versions == ("1",)
    assert metadata.inputs == (oip.TensorMetadata("latent", "FP32", (-1, *served.spec.shape)),)
    assert metadata.outputs == (
        oip.TensorMetadata("scores", "FP32", (-1, classes)), oip.TensorMetadata("label", "INT64", (-1,)),
    )  # fmt: skip
    assert await edge.peer.call(oip.LIVE) == oip.pack_flag(oip.LIVE, True)
    assert await edge.peer.call(oip.READY) == oip.pack_flag(oip.READY, True)
    ready = await edge.peer.call(oip.MODEL_READY, oip.pack_model_name(served.name))
    assert ready == oip.pack_flag(oip.MODEL_READY, True)
    assert b"latentbed" in await edge.peer.call(oip.SERVER_METADATA)


async def test_every_call_says_the_servers_handshake(edge, served):
    expected = served.artefact.manifest.handshake
    unary = {oip.INFER: oip.pack_request(served.frame("a")), oip.MODEL_METADATA: oip.pack_model_name(served.name)}
    for method in set(oip.UNARY_METHODS) - {oip.LOAD, oip.UNLOAD}:
        call = edge.peer.channel.unary_unary(oip.path(method))(unary.get(method, b""))
        await call
        # the frame of an inference is on its way already
        said = await (call.trailing_metadata() if method == oip.INFER else call.initial_metadata())
        assert dict(said)[oip.ARTEFACT_METADATA] == expected
    stream = edge.peer.stream()
    # before the first frame is sent, so that a client can compare first
    assert dict(await stream.initial_metadata())[oip.ARTEFACT_METADATA] == expected
    await stream.done_writing()


async def test_the_same_artefact_on_both_ends_is_let_in(edge, served):
    metadata = ((oip.ARTEFACT_METADATA, served.artefact.manifest.handshake),)
    assert (await edge.peer.infer(served.frame("a"), metadata=metadata)).error is None
    [reply] = await edge.peer.ask([served.frame("a")], metadata=metadata)
    assert reply.error is None


async def test_another_artefact_is_refused_with_both_names_by_status_and_in_band(edge, served):
    metadata = ((oip.ARTEFACT_METADATA, "other@" + "0" * 64),)
    for method, message in (
        (oip.INFER, oip.pack_request(served.frame("a"))),
        (oip.MODEL_METADATA, oip.pack_model_name(served.name)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await edge.peer.call(method, message, metadata=metadata)
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "other@0000" in refused.value.details() and served.artefact.manifest.handshake in refused.value.details()
    replies = await edge.peer.ask([served.frame("a"), served.frame("b")], metadata=metadata)
    assert [reply.id for reply in replies] == ["a", "b"]
    for reply in replies:
        assert reply.error.startswith("FAILED_PRECONDITION: ")
        assert "other@0000" in reply.error and served.artefact.manifest.handshake in reply.error
    assert edge.logged() == []


def bad_frames(served) -> dict[str, tuple[str, bytes]]:
    """By what is wrong: (the status, the message). All carry the id `bad` but those that cannot be read."""
    good = served.frame("bad")
    short = dataclasses.replace(good, payloads=(good.payloads[0][:-4],), codec="uniform8/channel")
    quantised = served.frame("bad", codec="uniform8/channel+zstd")
    nan = dataclasses.replace(good, payloads=(np.full(served.spec.shape, np.nan, np.float32).tobytes(),))
    huge = dataclasses.replace(good, payloads=(np.full(served.spec.shape, 3e38, np.float32).tobytes(),))
    pack = oip.pack_request
    return {
        "the model": ("NOT_FOUND", pack(dataclasses.replace(good, model="another"))),
        "the version": ("NOT_FOUND", pack(dataclasses.replace(good, version="7"))),
        "the shape": ("INVALID_ARGUMENT", pack(dataclasses.replace(good, shape=(int(np.prod(served.spec.shape)),)))),
        "the codec": ("INVALID_ARGUMENT", pack(dataclasses.replace(good, codec="jpeg"))),
        "the payload's size": ("INVALID_ARGUMENT", pack(short)),
        "the payload": ("INVALID_ARGUMENT", pack(dataclasses.replace(quantised, payloads=(b"\x28\xb5\x2f\xfdgarbage",)))),
        "a NaN in the latent": ("INVALID_ARGUMENT", pack(nan)),
        "scores that overflow": ("INTERNAL", pack(huge)),
    }


async def test_a_bad_frame_is_answered_in_band_with_its_id_and_the_stream_goes_on(edge, served):
    call = edge.peer.stream()
    for n, (status, message) in enumerate(bad_frames(served).values()):
        for frame_id, sent in (("bad", message), (f"good{n}", oip.pack_request(served.frame(f"good{n}")))):
            await call.write(sent)
            reply = oip.unpack_stream_reply(await call.read())
            assert reply.id == frame_id
            assert (reply.error or "OK: ").split(": ")[0] == (status if frame_id == "bad" else "OK")
    await call.write(b"\xff\xff no message at all")
    assert oip.unpack_stream_reply(await call.read()).error.startswith("INVALID_ARGUMENT: ")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF and await call.code() == grpc.StatusCode.OK


async def test_a_bad_frame_ends_a_unary_call_with_its_status_and_the_reason(edge, served):
    for wrong, (status, message) in bad_frames(served).items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await edge.peer.call(oip.INFER, message)
        assert refused.value.code().name == status, wrong
        assert "expected" in refused.value.details(), wrong
    assert (await edge.peer.infer(served.frame("good"))).error is None


async def test_one_spoilt_payload_does_not_spoil_the_batch_that_it_is_in(edge, served):
    edge.server.batcher.hold()
    bad = bad_frames(served)
    call = edge.peer.stream()
    for message in (
        oip.pack_request(served.frame("a", served.latents(2, seed=1), "uniform8/channel+zstd")),
        bad["the payload"][1],
        oip.pack_request(served.frame("b", served.latents(1, seed=2))),
        bad["scores that overflow"][1],
        oip.pack_request(served.frame("c", served.latents(2, seed=3), "float16")),
    ):
        await call.write(message)
    while edge.server.batcher.pending[0] < 5:
        await edge.peer.call(oip.LIVE)
    edge.server.batcher.release()
    await call.done_writing()
    replies = [oip.unpack_stream_reply(message) async for message in call]
    scores = {reply.id: reply.scores for reply in replies if reply.error is None}
    assert sorted(reply.error.split(":")[0] for reply in replies if reply.error) == ["INTERNAL", "INVALID_ARGUMENT"]
    assert edge.server.metrics.executions == 1
    for frame_id, latents, codec in (
        ("a", served.latents(2, seed=1), "uniform8/channel"),
        ("b", served.latents(1, seed=2), "identity"),
        ("c", served.latents(2, seed=3), "float16"),
    ):
        expected = served.scores(fit(codec, served.spec).snap(latents))
        np.testing.assert_allclose(scores[frame_id], expected, rtol=1e-4, atol=1e-4)


async def test_a_refusal_does_not_wait_behind_frames_that_are_queued(edge, served):
    edge.server.batcher.hold()
    call = edge.peer.stream()
    await call.write(oip.pack_request(served.frame("queued")))
    await call.write(oip.pack_request(served.frame("refused", model="another")))
    assert oip.unpack_stream_reply(await call.read()).id == "refused"
    edge.server.batcher.release()
    assert oip.unpack_stream_reply(await call.read()).id == "queued"
    await call.done_writing()


async def test_health_is_serving_once_the_tail_is_warm(edge):
    stub = health_pb2_grpc.HealthStub(edge.peer.channel)
    for name in ("", oip.SERVICE):
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_codecs_that_are_kept_are_at_most_those_that_exist(served):
    admission = Admission(served.artefact, "digits@1")
    for name in (*CODECS, *CODECS):
        admission.codec(name)
    for wrong in ("uniform9/tensor", "identity ", "x" * 1000):
        with pytest.raises(Exception, match="unknown codec"):
            admission.codec(wrong)
    assert len(admission._codecs) == len(CODECS)
