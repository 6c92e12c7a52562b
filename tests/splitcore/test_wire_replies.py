"""Answers on the wire, in both dialects of streaming: Triton's message around a response, and MLServer's bare response.

What confuses the two is in Triton's and MLServer's own field numbers: the model's name of a bare response stands where
Triton has the error, and the model's version where Triton has the response.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitcore.errors import WireError
from splitcore.frame import Reply
from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb

ID = "run/phone/3"


@st.composite
def replies(draw: st.DrawFn, *, least: int = 0) -> Reply:
    k = draw(st.integers(1, 8))
    floats = st.floats(allow_nan=False, width=32)
    scores = draw(st.none() | hnp.arrays(np.float32, st.tuples(st.just(k), st.integers(1, 10)), elements=floats))
    labels = draw(st.none() | hnp.arrays(np.int64, (k,)))
    value = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9) | st.floats(allow_nan=False)
    return Reply(
        id=draw(st.text(min_size=least, max_size=40)),
        scores=scores,
        labels=labels,
        model=draw(st.text(max_size=12)),
        version=draw(st.text(max_size=12) | st.sampled_from(["1", "01", "8f0c", "0a8b", "\n\0", "(1"])),
        parameters=draw(st.dictionaries(st.text(max_size=9), value, max_size=3)),
    )


def same(got: Reply, expected: Reply) -> bool:
    for ours, theirs in ((got.scores, expected.scores), (got.labels, expected.labels)):
        if (ours is None) != (theirs is None):
            return False
        if ours is not None and theirs is not None and (ours.dtype != theirs.dtype or ours.tobytes() != theirs.tobytes()):
            return False
    names = ("id", "error", "model", "version", "parameters")
    return all(getattr(got, name) == getattr(expected, name) for name in names)


@given(reply=replies())
@settings(deadline=None)
def test_a_unary_answer_comes_back_as_it_was(reply: Reply) -> None:
    assert same(oip.unpack_reply(oip.pack_reply(reply)), reply)


@given(reply=replies())
@settings(deadline=None)
def test_a_streamed_answer_in_tritons_dialect_comes_back_as_it_was(reply: Reply) -> None:
    assert same(oip.unpack_stream_reply(oip.pack_stream_reply(reply)), reply)


@given(reply=replies(least=1))
@settings(deadline=None)
def test_a_streamed_answer_in_mlservers_dialect_is_the_bare_response_whatever_its_name_and_version(reply: Reply) -> None:
    assert same(oip.unpack_stream_reply(oip.pack_reply(reply)), reply)


@pytest.mark.parametrize("version", ["", "1", "v1", "01", "00", "8f0c", "0.1.0", "2024-01-01", "\n\0", "\x1a\x02hi"])
@pytest.mark.parametrize("scores", [None, np.ones((1, 3), np.float32)], ids=["no scores", "scores"])
def test_a_bare_responses_model_is_not_taken_for_an_error(version: str, scores: np.ndarray | None) -> None:
    # '01' parses as a Triton response with an unknown field, 'v1' does not parse at all, '' is left out
    reply = Reply(id=ID, scores=scores, model="digits", version=version)
    got = oip.unpack_stream_reply(oip.pack_reply(reply))
    assert (got.id, got.error, got.model, got.version) == (ID, None, "digits", version)


@given(id=st.text(max_size=oip.MAX_ID), text=st.text(min_size=1, max_size=2000))
@settings(deadline=None)
def test_an_in_band_error_repeats_the_id_of_its_request(id: str, text: str) -> None:
    got = oip.unpack_stream_reply(oip.pack_stream_reply(Reply(id=id, error=text)))
    assert (got.id, got.error, got.scores, got.labels) == (id, text, None, None)


def test_an_error_without_a_response_as_some_servers_send_it_is_understood() -> None:
    message = pb.ModelStreamInferResponse(error_message="UNAVAILABLE: queue full").SerializeToString()
    assert oip.unpack_stream_reply(message) == Reply(id="", error="UNAVAILABLE: queue full")
    assert oip.unpack_stream_reply(b"") == Reply(id="")


def test_outputs_of_a_foreign_server_are_found_by_type_the_first_of_each() -> None:
    response = pb.ModelInferResponse(id=ID)
    for name, datatype, shape, raw in (
        ("text", "BYTES", [1], b"\1\0\0\0x"),
        ("logits", "FP32", [2, 2], np.array([0, 1, 1, 0], "<f4").tobytes()),
        ("embedding", "FP32", [2, 3], bytes(24)),
        ("argmax", "INT64", [2, 1], np.array([1, 0], "<i8").tobytes()),
        ("top5", "INT64", [2, 5], bytes(80)),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)
    got = oip.unpack_reply(response.SerializeToString())
    assert got.scores is not None and got.scores.tolist() == [[0, 1], [1, 0]]
    assert got.labels is not None and got.labels.tolist() == [1, 0]
    assert got.label == 1


def response(datatype: str, shape: list[int], raw: bytes) -> bytes:
    message = pb.ModelInferResponse(id=ID, raw_output_contents=[raw])
    message.outputs.add(name="scores", datatype=datatype, shape=shape)
    return message.SerializeToString()


@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
@pytest.mark.parametrize(
    "shape", [[-1, 4], [2, -1], [2, 5], [0, 4], [2**62, 4], [2**32, 2**32], [0, 2**62], [-2, -4], [5000, 4]], ids=str
)
def test_an_output_whose_shape_does_not_fit_its_bytes_is_refused(datatype: str, shape: list[int]) -> None:
    for raw in (bytes(32), b"", bytes(64)):
        with pytest.raises(WireError, match="expected output") as refusal:
            oip.unpack_reply(response(datatype, shape, raw))
        assert refusal.value.frame_id == ID


def test_more_outputs_than_raw_contents_or_fewer_are_refused() -> None:
    message = pb.ModelInferResponse(id=ID)
    message.outputs.add(name="scores", datatype="FP32", shape=[1, 1]).contents.fp32_contents.append(1)
    with pytest.raises(WireError, match="raw contents for 1 outputs, got 0"):
        oip.unpack_reply(message.SerializeToString())
    message.raw_output_contents.extend([bytes(4)] * 2)
    with pytest.raises(WireError, match="raw contents for 1 outputs, got 2"):
        oip.unpack_reply(message.SerializeToString())


def test_scores_that_are_no_numbers_are_refused_and_infinite_ones_are_not() -> None:
    with pytest.raises(WireError, match="NaN"):
        oip.unpack_reply(response("FP32", [1, 2], np.array([0, np.nan], "<f4").tobytes()))
    masked = oip.unpack_reply(response("FP32", [1, 2], np.array([0, -np.inf], "<f4").tobytes()))
    assert masked.label == 0


@given(message=st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_an_answer_or_a_wire_error(message: bytes) -> None:
    for unpack in (oip.unpack_reply, oip.unpack_stream_reply, oip.unpack_model_metadata, oip.unpack_model_name):
        try:
            unpack(message)
        except WireError as refusal:
            assert len(str(refusal)) < 1000


@given(reply=replies(), streamed=st.booleans(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_mutated_answer_is_an_answer_or_a_wire_error(reply: Reply, streamed: bool, data: st.DataObject) -> None:
    message = bytearray(oip.pack_stream_reply(reply) if streamed else oip.pack_reply(reply))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message)))
        message[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        got = oip.unpack_stream_reply(bytes(message))
    except WireError:
        return
    assert got.scores is None or (got.scores.ndim == 2 and not np.isnan(got.scores).any())


def test_a_large_answer_passes_the_bounds() -> None:
    reply = Reply(id=ID, scores=np.zeros((oip.MAX_ROWS, 100), np.float32), labels=np.zeros(oip.MAX_ROWS, np.int64))
    assert same(oip.unpack_stream_reply(oip.pack_stream_reply(reply)), reply)
    assert same(oip.unpack_stream_reply(oip.pack_reply(reply)), reply)


def test_a_reply_without_any_output_has_no_label() -> None:
    with pytest.raises(WireError, match="UNAVAILABLE: gone") as refusal:
        _ = Reply(id=ID, error="UNAVAILABLE: gone").label
    assert refusal.value.frame_id == ID
