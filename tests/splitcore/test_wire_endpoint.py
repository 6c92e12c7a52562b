"""A foreign endpoint's messages as frames and replies: raw and typed, several inputs, any datatype, names of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from foreign_server import CLASSES, SHAPE, Foreign, served

from splitcore.codec.verbatim import verbatim
from splitcore.errors import HandshakeError, WireError
from splitcore.frame import Frame
from splitcore.latent import LatentSpec
from splitcore.wire import oip, tensors
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.channel import sync_channel
from splitcore.wire.described import EndpointConfig
from splitcore.wire.endpoint import Endpoint
from splitcore.wire.look import look

META = oip.ModelMetadata(
    "shop",
    ("1",),
    "linear",
    (oip.TensorMetadata("picture", "FP32", (-1, *SHAPE)), oip.TensorMetadata("gain", "FP32", (-1, 1))),
    (oip.TensorMetadata("likelihood", "FP32", (-1, CLASSES)), oip.TensorMetadata("class", "INT64", (-1, 1))),
)


def endpoint(**config: Any) -> Endpoint:
    return Endpoint(EndpointConfig(model="shop", **{"input": "picture", **config}), META)


def request(pictures: np.ndarray[Any, Any], *, typed: bool = False, **fields: Any) -> bytes:
    """What a stock client sends: two inputs, a parameter of its own, a wanted output."""
    k = len(pictures)
    message = pb.ModelInferRequest(model_name="shop", **fields)
    message.parameters["colour"].string_param = "red"
    message.parameters["timeout"].int64_param = 7000
    first = message.inputs.add(name="picture", datatype="FP32", shape=pictures.shape)
    first.parameters["content_type"].string_param = "np"
    second = message.inputs.add(name="gain", datatype="FP32", shape=(k, 1))
    message.outputs.add(name="likelihood")
    gains = np.arange(1, k + 1, dtype="<f4")
    if typed:
        first.contents.fp32_contents.extend(pictures.ravel().tolist())
        second.contents.fp32_contents.extend(gains.tolist())
    else:
        message.raw_input_contents.extend([pictures.astype("<f4").tobytes(), gains.tobytes()])
    return message.SerializeToString()


def some(k: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(k).standard_normal((k, *SHAPE)).astype(np.float32)


def inputs_of(message: bytes) -> dict[str, np.ndarray[Any, Any]]:
    asked = tensors.request_of(message)
    raws = tensors.entries(asked.inputs, asked.raw_input_contents, lambda text: WireError(text))
    return {t.name: tensors.numbers(t, raw, lambda text: WireError(text)) for t, raw in zip(asked.inputs, raws, strict=True)}


@pytest.mark.parametrize("typed", [False, True])
def test_a_query_carries_what_the_clients_frame_carried_but_the_rows(typed: bool) -> None:
    ours, pictures = endpoint(), some(1)
    frame = ours.unpack_request(request(pictures, typed=typed, id="7"))
    assert (frame.id, frame.codec, frame.shape, frame.rows, frame.timeout_us) == ("7", "identity", SHAPE, 1, 7000)
    assert not frame.numbered
    assert np.frombuffer(frame.payloads[0], "<f4").reshape(SHAPE) == pytest.approx(pictures[0])
    asked = some(3)
    query = ours.pack_request(
        Frame(
            id="run/query-a/0",
            payloads=tuple(row.tobytes() for row in asked),
            shape=SHAPE,
            origin="query",
            template=frame.template,
        )
    )
    sent = tensors.request_of(query)
    assert sent.id == "run/query-a/0"
    assert dict(sent.parameters) == {"colour": pb.InferParameter(string_param="red")}
    assert sent.inputs[0].parameters["content_type"].string_param == "np"
    assert [output.name for output in sent.outputs] == ["likelihood"]
    assert bool(sent.raw_input_contents) is not typed
    got = inputs_of(query)
    assert got["picture"] == pytest.approx(asked)
    assert got["gain"].tolist() == [[1.0]] * 3


@pytest.mark.parametrize("typed", [False, True])
def test_the_rows_of_a_frame_part_with_what_belongs_to_each(typed: bool) -> None:
    ours, pictures = endpoint(), some(3)
    whole = ours.unpack_request(request(pictures, typed=typed))
    parts = ours.split(whole)
    assert [part.id for part in parts] == ["#0", "#1", "#2"]
    for row, part in enumerate(parts):
        got = inputs_of(ours.pack_request(part))
        assert got["picture"][0] == pytest.approx(pictures[row])
        assert got["gain"].tolist() == [[row + 1.0]]


@pytest.mark.parametrize("typed", [False, True])
def test_a_message_with_other_latents_is_the_same_otherwise(typed: bool) -> None:
    ours, other = endpoint(), some(2)
    before = request(some(2), typed=typed, id="mine", model_version="3")
    after = ours.replace_payloads(before, [row.tobytes() for row in other])
    # a map of parameters has no order on the wire
    expected = request(other, typed=typed, id="mine", model_version="3")
    assert tensors.request_of(after) == tensors.request_of(expected)
    with pytest.raises(WireError, match="expected 256 bytes"):
        ours.replace_payloads(before, [b"1234"])


def reply(array: np.ndarray[Any, Any], datatype: str, name: str = "out", *, typed: str = "") -> bytes:
    response = pb.ModelInferResponse(model_name="shop", id="4")
    output = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
    if typed:
        getattr(output.contents, typed).extend(array.ravel().tolist())
    else:
        response.raw_output_contents.append(array.tobytes())
    return response.SerializeToString()


def test_answers_are_found_out_by_what_they_are_like() -> None:
    ours = endpoint()
    logits = np.array([[1.0, 3.0], [4.0, 2.0]])
    for datatype, dtype, field in (("FP32", "<f4", "fp32_contents"), ("FP64", "<f8", "fp64_contents"), ("FP16", "<f2", "")):
        for typed in ("", field):
            scores = ours.unpack_reply(reply(logits.astype(dtype), datatype, typed=typed)).scores
            assert scores is not None and scores.tolist() == logits.tolist()
    squeezed = ours.unpack_reply(reply(logits.astype("<f4")[:, :, None, None], "FP32")).scores
    assert squeezed is not None and squeezed.shape == (2, 2)
    for dtype, datatype, typed in (("<i8", "INT64", ""), ("<i4", "INT32", "int_contents"), ("u1", "UINT8", "uint_contents")):
        for shape in ((2,), (2, 1)):
            labels = ours.unpack_reply(reply(np.array([3, 1], dtype).reshape(shape), datatype, typed=typed)).labels
            assert labels is not None and labels.tolist() == [3, 1]


def test_names_of_classes_are_numbers_that_stay_the_same() -> None:
    ours = endpoint()
    response = pb.ModelInferResponse(model_name="shop", id="4")
    response.outputs.add(name="out", datatype="BYTES", shape=[3])
    response.raw_output_contents.append(oip.join_bytes_elements([b"cat", b"dog", b"cat"]))
    labels = ours.unpack_reply(response.SerializeToString()).labels
    assert labels is not None and labels[0] == labels[2] != labels[1] and labels.min() >= 0


def test_the_operator_may_say_which_output_and_what_it_is() -> None:
    quantised = np.array([[3, 200, 1]], "u1")
    with pytest.raises(WireError, match="--output and --reads"):
        endpoint().unpack_reply(reply(quantised, "UINT8"))
    scores = endpoint(reads="scores").unpack_reply(reply(quantised, "UINT8")).scores
    assert scores is not None and scores.tolist() == [[3, 200, 1]]
    with pytest.raises(WireError, match="scores or labels"):
        endpoint(output="class").unpack_reply(reply(quantised.astype("<f4"), "FP32", "likelihood"))


def test_what_is_nan_or_of_another_size_is_refused() -> None:
    with pytest.raises(WireError, match="NaN"):
        endpoint().unpack_reply(reply(np.full((1, 3), np.nan, "<f4"), "FP32"))
    message = pb.ModelInferResponse.FromString(reply(np.zeros((1, 3), "<f4"), "FP32"))
    message.outputs[0].shape[:] = [1, 1 << 40]
    with pytest.raises(WireError, match="got 12"):
        endpoint().unpack_reply(message.SerializeToString())
    bad = pb.ModelInferRequest.FromString(request(some(1)))
    bad.inputs[0].shape[:] = [0, *SHAPE]
    with pytest.raises(WireError):
        endpoint().unpack_request(bad.SerializeToString())


def test_metadata_that_does_not_fit_says_what_to_say() -> None:
    with pytest.raises(HandshakeError, match=r"one input.*picture, gain.*--input"):
        Endpoint(EndpointConfig(model="shop"), META)
    with pytest.raises(HandshakeError, match=r"'image'.*picture, gain"):
        Endpoint(EndpointConfig(model="shop", input="image"), META)
    with pytest.raises(HandshakeError, match="likelihood, class"):
        endpoint(output="logits")


@pytest.mark.parametrize(("name", "lowest", "highest"), [("uint8", 0, 255), ("int8", -128, 127)])
def test_whole_numbers_are_a_grid(name: str, lowest: int, highest: int) -> None:
    codec = verbatim(name, LatentSpec((3,), (-1.0,) * 3, (1.0,) * 3, 1.0))
    points = np.array([[-1000.0, 3.4, 1000.0]], np.float32)
    snapped = codec.snap(points)
    assert snapped.tolist() == [[lowest, 3, highest]]
    assert (codec.decode(codec.encode(points)) == snapped).all()
    centre = np.array([5.0, 5.0, 5.0], np.float32)
    assert codec.snap_towards(np.array([[3.2, 6.9, 5.5]], np.float32), centre).tolist() == [[4, 6, 5]]


@pytest.mark.parametrize("dialect", ["triton", "mlserver", "unary"])
def test_a_server_is_asked_what_it_has(dialect: Any) -> None:
    with served(Foreign(dialect=dialect)) as foreign, sync_channel(foreign.target) as channel:
        found = look(channel, EndpointConfig(model="shop", input="picture"))
        assert (found.dialect, found.classes, found.batched, found.max_rows) == (dialect, CLASSES, True, oip.MAX_ROWS)
        assert found.correlates == (dialect != "mlserver")
        with pytest.raises(HandshakeError, match="UNAVAILABLE"):
            nowhere = sync_channel("127.0.0.1:1")
            look(nowhere, EndpointConfig(model="shop"), patience_s=0.0)
