"""Requests on the wire: the protocol's own bytes, written by hand, and every frame there and back."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitcore.codec import fit
from splitcore.errors import WireError
from splitcore.frame import Frame
from splitcore.latent import LatentSpec
from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb

# protobuf by hand: https://protobuf.dev/programming-guides/encoding/


def varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes | str | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    raw = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def parameter(key: str, choice: int, value: int | str) -> bytes:
    """An entry of ModelInferRequest.parameters (4); InferParameter: bool 1, int64 2, string 3, double 4, uint64 5."""
    return field(4, field(1, key) + field(2, field(choice, value)))


def tensor(name: str, datatype: str, *shape: int) -> bytes:
    """An entry of ModelInferRequest.inputs (5): name 1, datatype 2, shape 3 (packed)."""
    return field(5, field(1, name) + field(2, datatype) + field(3, b"".join(map(varint, shape))))


def element(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def test_a_request_written_by_hand_from_the_protocols_field_numbers_is_read() -> None:
    message = (
        field(1, "digits") + field(2, "7") + field(3, "run/phone/3")
        + parameter("lb_codec", 3, "uniform4/channel") + parameter("lb_shape", 3, "2,1,3")
        + parameter("lb_attempt", 2, 2) + parameter("lb_origin", 3, "query") + parameter("timeout", 2, 150_000)
        + parameter("priority", 5, 1) + parameter("somebody_elses", 1, 1)
        + tensor("latent", "BYTES", 2) + field(6, field(1, "label"))
        + field(7, element(b"\x12\x34\x56") + element(b"\xff\0\x01"))
    )  # fmt: skip
    assert oip.unpack_request(message) == Frame(
        id="run/phone/3", payloads=(b"\x12\x34\x56", b"\xff\0\x01"), codec="uniform4/channel", shape=(2, 1, 3), attempt=2,
        origin="query", model="digits", version="7", timeout_us=150_000, labels_only=True, priority=1,
    )  # fmt: skip


def test_a_plain_request_of_any_client_of_the_protocol_is_read() -> None:
    values = np.arange(12, dtype="<f4")
    message = field(1, "m") + tensor("x", "FP32", 2, 3, 2) + field(7, values.tobytes())
    frame = oip.unpack_request(message)
    assert (frame.id, frame.codec, frame.shape, frame.rows, frame.attempt) == ("", "identity", (3, 2), 2, 1)
    assert frame.origin == "client" and frame.timeout_us is None and not frame.labels_only
    assert b"".join(frame.payloads) == values.tobytes() and len(frame.payloads[0]) == 24


def test_an_identity_frame_is_packed_as_a_float32_tensor_with_the_protocols_field_numbers() -> None:
    payload = np.arange(6, dtype="<f4").tobytes()
    packed = oip.pack_request(Frame(id="r/c/1", payloads=(payload, payload), shape=(2, 3), model="m"))
    # the order of fields is protobuf's own: by number
    assert packed == (
        field(1, "m") + field(3, "r/c/1") + parameter("lb_attempt", 2, 1)
        + tensor("latent", "FP32", 2, 2, 3) + field(7, payload * 2)
    )  # fmt: skip


def test_a_coded_frame_is_packed_as_a_bytes_tensor_one_element_a_latent() -> None:
    packed = oip.pack_request(Frame(id="r/c/1", payloads=(b"ab", b"c"), codec="float16+zstd", shape=(1,)))
    assert packed.endswith(tensor("latent", "BYTES", 2) + field(7, element(b"ab") + element(b"c")))
    head = packed.removesuffix(tensor("latent", "BYTES", 2) + field(7, element(b"ab") + element(b"c")))
    # a map's entries come in any order
    entries = [parameter("lb_codec", 3, "float16+zstd"), parameter("lb_shape", 3, "1"), parameter("lb_attempt", 2, 1)]
    assert all(entry in head for entry in entries) and len(head) == len(field(3, "r/c/1") + b"".join(entries))


WORDS = st.text("abcXYZ019_.:+-", min_size=1, max_size=12)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    spec = LatentSpec(shape, (-1.0,) * shape[0], (1.0,) * shape[0], 1.0)
    kinds = ["identity", "float16", "uniform3/tensor", "uniform8/channel"]
    codec = fit(draw(st.sampled_from(kinds)) + draw(st.sampled_from(["", "+zstd"])), spec)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    latents = rng.uniform(-1, 1, (draw(st.integers(1, 64)), *shape)).astype(np.float32)
    return Frame(
        id=draw(st.builds("{}/{}/{}".format, WORDS, WORDS, st.integers(0, 10**12 - 1)) | st.text(max_size=100)),
        payloads=tuple(codec.encode(latents)),
        codec=codec.name,
        shape=shape,
        attempt=draw(st.integers(1, oip.MAX_ATTEMPT)),
        origin=draw(st.sampled_from(["client", "query"])),
        model=draw(st.text(max_size=20)),
        version=draw(st.text(max_size=8)),
        timeout_us=draw(st.none() | st.integers(1, 2**63 - 1)),
        labels_only=draw(labels_only := st.shared(st.booleans(), key="labels only")),
        outputs=draw(labels_only.flatmap(lambda only: st.just(()) if only else st.sampled_from([(), ("scores",), ("a", "b")]))),
        tensor=draw(st.text(max_size=8)),
        priority=draw(st.integers(0, 2**64 - 1)),
        mark_final=draw(st.booleans()),
    )


@given(frame=frames())
@settings(deadline=None)
def test_a_frame_comes_back_from_the_wire_as_it_was(frame: Frame) -> None:
    assert oip.unpack_request(oip.pack_request(frame)) == frame


@given(frame=frames(), data=st.data())
@settings(deadline=None)
def test_other_latents_in_a_request_leave_everything_else_as_it_was(frame: Frame, data: st.DataObject) -> None:
    unknown = field(90, "a later version's field") + field(9, 4)
    message = oip.pack_request(frame) + unknown + parameter("somebody_elses", 3, "kept")
    others = data.draw(st.permutations(frame.payloads))
    replaced = oip.replace_payloads(message, others)
    got, before = oip.unpack_request(replaced), oip.unpack_request(message)
    assert got.payloads == tuple(others)
    assert {**vars_of(got), "payloads": None} == {**vars_of(before), "payloads": None}
    assert field(90, "a later version's field") in replaced and field(9, 4) in replaced
    assert parameter("somebody_elses", 3, "kept") in replaced


@pytest.mark.parametrize("rows", [1, 4096])
def test_a_tensor_in_typed_contents_is_read_and_replaced_as_one_in_raw_contents_is(rows: int) -> None:
    values = np.arange(rows * 24, dtype="<f4")
    plain = pb.ModelInferRequest(id="r/c/1")
    contents = plain.inputs.add(name="latent", datatype="FP32", shape=[rows, 24]).contents
    contents.fp32_contents.extend(values.tolist())
    coded = pb.ModelInferRequest(id="r/c/2")
    coded.parameters["lb_shape"].string_param = "24"
    elements = [bytes(96), b"", *(b"z" * 95 for _ in range(rows))][:rows]
    coded.inputs.add(name="latent", datatype="BYTES", shape=[rows]).contents.bytes_contents.extend(elements)
    read = oip.unpack_request(plain.SerializeToString())
    assert (read.rows, read.shape, b"".join(read.payloads)) == (rows, (24,), values.tobytes())
    assert oip.unpack_request(coded.SerializeToString()).payloads == tuple(elements)
    others = [bytes(96)] * rows
    for message in (plain, coded):
        replaced = pb.ModelInferRequest.FromString(oip.replace_payloads(message.SerializeToString(), others))
        assert not replaced.raw_input_contents and replaced.id == message.id
        assert oip.unpack_request(replaced.SerializeToString()).payloads == tuple(others)


def vars_of(frame: Frame) -> dict[str, object]:
    return {name: getattr(frame, name) for name in Frame.__slots__}


def test_latents_that_do_not_fit_the_request_do_not_replace_its_own() -> None:
    payload = bytes(24)
    plain = oip.pack_request(Frame(id="r/c/1", payloads=(payload,) * 2, shape=(2, 3)))
    coded = oip.pack_request(Frame(id="r/c/1", payloads=(b"ab",) * 2, codec="float16", shape=(1,)))
    for message, others in ((plain, [payload]), (plain, [payload, b"short"]), (coded, [b"ab"]), (coded, [b"ab"] * 3)):
        with pytest.raises(WireError) as refusal:
            oip.replace_payloads(message, others)
        assert refusal.value.frame_id == "r/c/1"
    for message in (b"", field(3, "r/c/1"), tensor("x", "FP32", 1, 1), b"\xff"):
        with pytest.raises(WireError):
            oip.replace_payloads(message, [payload])


def test_the_stub_loads_beside_another_one_that_owns_the_package_inference() -> None:
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
pool = descriptor_pool.Default()
import splitcore.wire.oip
theirs = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package="inference", syntax="proto3")
theirs.message_type.add(name="ModelInferRequest").field.add(name="model_name", number=1, type=9, label=1)
for name in ("ServerLiveRequest", "ModelInferResponse", "InferParameter"):
    theirs.message_type.add(name=name)
theirs.service.add(name="GRPCInferenceService")
pool.Add(theirs) if hasattr(pool, "Add") else pool.AddSerializedFile(theirs.SerializeToString())
assert pool.FindMessageTypeByName("inference.ModelInferRequest").file.name == "grpc_service.proto"
assert splitcore.wire.oip.pb.ModelInferRequest.DESCRIPTOR.file.package == "latentbed.oip"
assert splitcore.wire.oip.path("ModelInfer") == "/inference.GRPCInferenceService/ModelInfer"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_metadata_and_flags_are_the_protocols_bytes() -> None:
    assert oip.pack_flag(oip.LIVE, True) == oip.pack_flag(oip.READY, True) == field(1, 1)
    assert oip.pack_flag(oip.MODEL_READY, True) == field(1, 1) and oip.pack_flag(oip.READY, False) == b""
    assert oip.pack_model_name("m", "3") == field(1, "m") + field(2, "3")
    assert oip.unpack_model_name(field(1, "m")) == ("m", "")
    assert oip.pack_server_metadata("s", "v", ["a", "b"]) == field(1, "s") + field(2, "v") + field(3, "a") + field(3, "b")
    described = (
        field(1, "m") + field(2, "1") + field(2, "2") + field(3, "pytorch")
        + field(4, field(1, "latent") + field(2, "BYTES") + field(3, varint(-1)))
        + field(5, field(1, "scores") + field(2, "FP32") + field(3, varint(-1) + varint(10)))
    )  # fmt: skip
    metadata = oip.ModelMetadata(
        "m", ("1", "2"), "pytorch", (oip.TensorMetadata("latent", "BYTES", (-1,)),),
        (oip.TensorMetadata("scores", "FP32", (-1, 10)),),
    )  # fmt: skip
    assert oip.unpack_model_metadata(described) == metadata
    assert oip.pack_model_metadata(metadata) == described


def test_a_large_raw_tensor_is_read_where_it_lies_and_nothing_else_of_the_request_is_lost() -> None:
    values = np.random.default_rng(0).random((2, 3, 4000), np.float32)
    before = field(1, "digits") + field(3, "run/phone/3") + parameter("lb_attempt", 2, 2)
    after = tensor("latent", "FP32", 2, 3, 4000) + field(6, field(1, "label"))
    raw = field(oip.RAW_INPUTS, values.tobytes())
    for message in (before + after + raw, before + raw + after, raw + before + after):
        frame = oip.unpack_request(message)
        assert (frame.id, frame.model, frame.attempt, frame.labels_only) == ("run/phone/3", "digits", 2, True)
        assert frame.shape == (3, 4000) and b"".join(frame.payloads) == values.tobytes()
        assert all(isinstance(part, memoryview) and part.obj is message for part in frame.payloads), "no copy"


@pytest.mark.parametrize("tag", [varint(oip.RAW_INPUTS << 3 | 2), bytes([oip.RAW_INPUTS << 3 | 2 | 0x80, 0])])
def test_a_large_raw_tensor_is_found_under_a_tag_that_is_longer_than_it_need_be_and_two_are_refused(tag: bytes) -> None:
    content = bytes(4 * 3 * 8000)
    raw = tag + varint(len(content)) + content
    request = tensor("latent", "FP32", 1, 3, 8000)
    assert b"".join(oip.unpack_request(request + raw).payloads) == content
    with pytest.raises(WireError, match="expected one entry in raw_input_contents, or typed contents, got 2"):
        oip.unpack_request(request + raw + field(oip.RAW_INPUTS, content))
    with pytest.raises(WireError, match=r"bytes that are none|expected a protobuf message"):
        oip.unpack_request(request + field(6, b"\xff" * 10) + raw)


def test_large_encoded_latents_are_bytes_of_their_own() -> None:
    payloads = [bytes([n]) * 40_000 for n in range(3)]
    message = (
        parameter("lb_codec", 3, "uniform8/channel") + parameter("lb_shape", 3, "1,200,200") + tensor("latent", "BYTES", 3)
        + field(oip.RAW_INPUTS, b"".join(map(element, payloads)))
    )  # fmt: skip
    assert list(oip.unpack_request(message).payloads) == payloads
