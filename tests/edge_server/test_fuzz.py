"""Random and mutated bytes into ModelStreamInfer of a real process: each is answered, and a good client goes on."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitcore.wire import oip
from splitcore.wire.channel import sync_channel


@pytest.fixture(scope="module")
def channel(process):
    with sync_channel(process.grpc) as channel:
        yield channel


@st.composite
def mutations(draw, seeds: list[bytes]) -> bytes:
    """One of `seeds` with some bytes overwritten, taken out, put in or doubled."""
    message = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(message)))
        piece = draw(st.binary(max_size=12))
        match draw(st.sampled_from(["overwrite", "insert", "delete", "double"])):
            case "overwrite":
                message[at : at + len(piece)] = piece
            case "insert":
                message[at:at] = piece
            case "delete":
                del message[at : at + len(piece)]
            case "double":
                message += message[at : at + 64]
    return bytes(message)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_bytes_are_answered_one_by_one_and_the_good_frame_after_them_too(data, channel, process, served):
    codecs = ("identity", "uniform4/channel", "float16+zstd")
    seeds = [oip.pack_request(served.frame("run/fuzz/1", served.latents(2), codec, timeout_us=10**9)) for codec in codecs]
    hostile = data.draw(st.lists(st.one_of(st.binary(max_size=200), mutations(seeds)), max_size=30))
    good = served.frame("run/good/1", served.latents(3))
    stream = channel.stream_stream(oip.path(oip.STREAM))
    replies = [oip.unpack_stream_reply(m) for m in stream(iter([*hostile, oip.pack_request(good)]), timeout=60)]
    assert len(replies) == len(hostile) + 1
    [answer] = [reply for reply in replies if reply.id == good.id and reply.error is None and len(reply.labels) == 3]
    np.testing.assert_allclose(answer.scores, served.scores(served.latents(3)), rtol=1e-4, atol=1e-4)
    for reply in replies:
        assert reply.error is not None or np.isfinite(reply.scores if reply.scores is not None else 0).all()
    assert process.running


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(oip.UNARY_METHODS), message=st.binary(max_size=300))
def test_hostile_bytes_to_a_unary_method_get_an_answer_or_a_reason(method, message, channel, process):
    try:
        channel.unary_unary(oip.path(method))(message, timeout=60)
    except grpc.RpcError as error:
        known = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAUTHENTICATED)
        assert error.code() in known
        assert error.details()
    assert process.running


def test_a_message_above_the_bound_is_refused_and_the_server_goes_on(channel, served):
    infer = channel.unary_unary(oip.path(oip.INFER))
    with pytest.raises(grpc.RpcError) as refused:
        infer(bytes(17 << 20), timeout=60)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert infer(oip.pack_request(served.frame("after")), timeout=60)


def test_a_zstandard_bomb_is_refused_unopened(channel, served):
    import dataclasses

    import zstandard

    bomb = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(256 << 20))
    frame = served.frame("bomb", codec="uniform8/channel+zstd")
    for payload in (bomb, bomb[: served.spec.elements]):
        message = oip.pack_request(dataclasses.replace(frame, payloads=(payload,)))
        [reply] = channel.stream_stream(oip.path(oip.STREAM))(iter([message]), timeout=60)
        assert oip.unpack_stream_reply(reply).error.startswith("INVALID_ARGUMENT: ")
