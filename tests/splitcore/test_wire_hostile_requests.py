"""Requests from whoever reaches the port: a frame or WireError, in little memory, with the id where it can be read."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from splitcore.errors import WireError
from splitcore.frame import Frame
from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb

ID = "run/phone/3"


def request(**changes: object) -> pb.ModelInferRequest:
    """A good request of two latents float32[2, 3]."""
    message = pb.ModelInferRequest(model_name="m", id=ID, raw_input_contents=[bytes(48)])
    message.inputs.add(name="latent", datatype="FP32", shape=[2, 2, 3])
    message.parameters["lb_attempt"].int64_param = 1
    return message


def coded(raw: bytes, rows: int = 1) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(id=ID, raw_input_contents=[raw])
    message.inputs.add(name="latent", datatype="BYTES", shape=[rows])
    message.parameters["lb_codec"].string_param = "uniform8/tensor"
    message.parameters["lb_shape"].string_param = "2,3"
    return message


def unpack_or_refuse(message: bytes) -> None:
    try:
        frame = oip.unpack_request(message)
    except WireError as refusal:
        assert len(str(refusal)) < 1000 and len(refusal.frame_id) <= oip.MAX_ID
        return
    assert 1 <= frame.rows <= oip.MAX_ROWS and len(frame.id) <= oip.MAX_ID
    assert 1 <= len(frame.shape) < oip.MAX_DIMENSIONS + 1 and all(n >= 1 for n in frame.shape)
    assert 1 <= frame.attempt <= oip.MAX_ATTEMPT and frame.origin in ("client", "query")
    assert frame.timeout_us is None or frame.timeout_us > 0
    assert sum(map(len, frame.payloads)) <= len(message)


@given(message=st.binary(max_size=300))
@example(b"")
@settings(max_examples=250, deadline=None)
def test_random_bytes_are_refused(message: bytes) -> None:
    unpack_or_refuse(message)


VALID = [
    request().SerializeToString(),
    coded(struct.pack("<I", 6) + bytes(6)).SerializeToString(),
    oip.pack_request(Frame(id=ID, payloads=(b"abc",) * 3, codec="float16+zstd", shape=(9, 9), attempt=4, origin="query",
                           timeout_us=5, labels_only=True)),
]  # fmt: skip


@given(valid=st.sampled_from(VALID), data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_mutated_request_is_refused_or_is_another_valid_frame(valid: bytes, data: st.DataObject) -> None:
    message = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message)))
        match data.draw(st.sampled_from(["byte", "cut", "insert", "repeat"])):
            case "byte" if at < len(message):
                message[at] = data.draw(st.integers(0, 255))
            case "cut":
                del message[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                message[at:at] = data.draw(st.binary(max_size=8))
            case "repeat":
                message[at:at] = message[: data.draw(st.integers(0, len(message)))]
    unpack_or_refuse(bytes(message))


INT64 = st.integers(-(2**63), 2**63 - 1)


@given(
    datatype=st.sampled_from(["FP32", "BYTES"]),
    shape=st.lists(INT64 | st.sampled_from([-1, 0, 1, 2, 3, 6, 12, 4096, 4097, 2**31, 2**32]), max_size=12),
    raw=st.binary(max_size=64),
    said=st.sampled_from(["2,3", "", "0", "-1", "1,", ",", "9" * 9, "1," * 9 + "1", "２", "1e3", " 1", "99999999,99999999"]),
)
@settings(max_examples=250, deadline=None)
def test_any_shape_is_refused_or_filled_exactly(datatype: str, shape: list[int], raw: bytes, said: str) -> None:
    message = pb.ModelInferRequest(id=ID, raw_input_contents=[raw])
    message.inputs.add(datatype=datatype, shape=shape)
    message.parameters["lb_shape"].string_param = said
    unpack_or_refuse(message.SerializeToString())


def refused(message: pb.ModelInferRequest, match: str) -> None:
    with pytest.raises(WireError, match=match) as refusal:
        oip.unpack_request(message.SerializeToString())
    assert refusal.value.frame_id == ID, "a refusal names the frame, so that its sender hears of it"


@pytest.mark.parametrize(
    "shape",
    [[], [0, 2, 3], [-2, 2, 3], [2, -2, -3], [4097, 2, 3], [2, 3, 3], [2, 2**62, 4], [2**63 - 1, 1], [2], [12], [2, 0],
     [2, 1, 1, 1, 1, 1, 1, 1, 6], [1] * 1000],
    ids=lambda shape: str(shape)[:30],
)  # fmt: skip
def test_a_shape_that_the_bytes_do_not_fill_is_refused(shape: list[int]) -> None:
    message = request()
    message.inputs[0].shape[:] = shape
    refused(message, "expected")


@pytest.mark.parametrize("rows", [0, -1, 4097, 2**31, 2**62])
def test_a_count_of_rows_outside_the_bounds_is_refused(rows: int) -> None:
    message = coded(b"")
    message.inputs[0].shape[:] = [rows]
    refused(message, "1 to 4096 latents")


@pytest.mark.parametrize(
    ("raw", "rows"),
    [
        (b"", 1),
        (b"\0\0\0", 1),
        (struct.pack("<I", 7) + bytes(6), 1),
        (struct.pack("<I", 2**32 - 1) + bytes(6), 1),
        (struct.pack("<I", 6) + bytes(7), 1),
        (struct.pack("<I", 6) + bytes(6), 2),
        (struct.pack("<I", 0) * 4097, 4096),
    ],
)
def test_lengths_that_lie_are_refused(raw: bytes, rows: int) -> None:
    refused(coded(raw, rows), "expected")


def test_other_layouts_of_the_tensor_are_refused() -> None:
    two = request()
    two.inputs.add(name="latent", datatype="FP32", shape=[1, 1])
    refused(two, "one input tensor, got 2")
    none = request()
    del none.inputs[:]
    refused(none, "one input tensor, got 0")
    both = request()
    both.inputs[0].contents.fp32_contents.extend([0.0] * 12)
    refused(both, "or in typed contents, got both")
    empty = request()
    empty.inputs[0].contents.SetInParent()
    refused(empty, "or in typed contents, got both")
    missing = request()
    del missing.raw_input_contents[:]
    refused(missing, "one entry in raw_input_contents, or typed contents, got 0")
    double = request()
    double.raw_input_contents.append(bytes(48))
    refused(double, "one entry in raw_input_contents, or typed contents, got 2")
    few = request()
    del few.raw_input_contents[:]
    few.inputs[0].contents.fp32_contents.extend([0.0] * 11)
    refused(few, "in 48 bytes of float32, got 44 bytes")
    elements = request()
    del elements.raw_input_contents[:]
    elements.inputs[0].datatype = "BYTES"
    elements.parameters["lb_shape"].string_param = "6"
    elements.inputs[0].contents.bytes_contents.extend([b"a", b"b", b"c"])
    refused(elements, "expected 2 elements in bytes_contents, got 3")
    other = request()
    other.inputs[0].datatype = "FP64"
    refused(other, "FP32 or BYTES")


@pytest.mark.parametrize(
    ("key", "choice", "value"),
    [
        ("timeout", "string_param", "100"),
        ("timeout", "bool_param", True),
        ("timeout", "double_param", 1.5),
        ("lb_attempt", "string_param", "1"),
        ("lb_attempt", "int64_param", 0),
        ("lb_attempt", "int64_param", -1),
        ("lb_attempt", "uint64_param", 2**64 - 1),
        ("lb_origin", "string_param", "server"),
        ("lb_origin", "int64_param", 1),
        ("lb_codec", "int64_param", 8),
        ("lb_shape", "int64_param", 6),
        ("lb_shape", "string_param", "2,3,"),
        ("lb_shape", "string_param", "2,0"),
        ("lb_shape", "string_param", "1," * 8 + "1"),
    ],
)
def test_a_parameter_of_the_wrong_type_or_value_is_refused(key: str, choice: str, value: object) -> None:
    message = coded(struct.pack("<I", 6) + bytes(6))
    setattr(message.parameters[key], choice, value)
    refused(message, key)


def test_a_parameter_without_a_value_is_refused() -> None:
    message = coded(struct.pack("<I", 6) + bytes(6))
    message.parameters["timeout"].SetInParent()
    refused(message, "timeout")


@pytest.mark.parametrize("timeout", [0, -1, -(2**63)])
def test_a_timeout_that_is_not_positive_means_no_deadline(timeout: int) -> None:
    message = request()
    message.parameters["timeout"].int64_param = timeout
    assert oip.unpack_request(message.SerializeToString()).timeout_us is None


def test_a_timeout_may_be_unsigned_as_some_clients_send_it() -> None:
    message = request()
    message.parameters["timeout"].uint64_param = 1500
    assert oip.unpack_request(message.SerializeToString()).timeout_us == 1500


def test_parameters_that_are_not_ours_are_passed_over() -> None:
    message = request()
    for i in range(100):
        message.parameters[f"triton_{i}"].double_param = i
    assert oip.unpack_request(message.SerializeToString()).rows == 2


def test_an_id_above_the_bound_is_refused() -> None:
    message = request()
    message.id = "x" * oip.MAX_ID
    assert oip.unpack_request(message.SerializeToString()).id == "x" * oip.MAX_ID
    message.id += "x"
    with pytest.raises(WireError, match="at most 512"):
        oip.unpack_request(message.SerializeToString())


# Two or a few bytes each, which protobuf would make objects of a hundred bytes from.
HEAVY = {
    "inputs": b"\x2a\0",
    "outputs": b"\x32\0",
    "parameters": b"\x22\0",
    "raw contents": b"\x3a\0",
    "unknown fields": b"\x50\1",
    "inputs with a shape": b"\x2a\x02\x18\x01",
}


@pytest.mark.parametrize("what", HEAVY)
def test_a_message_of_millions_of_tiny_fields_is_refused_unparsed(what: str) -> None:
    unit = HEAVY[what]
    message = unit * ((16 << 20) // len(unit))
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="at most"):
            oip.unpack_request(message)
        with pytest.raises(WireError):
            oip.replace_payloads(message, [b""])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_the_heaviest_messages_take_a_bounded_amount_of_memory_in_a_process_of_their_own() -> None:
    # protobuf's own memory is seen by the operating system alone
    code = """
import resource, sys
from splitcore.errors import WireError
from splitcore.wire import oip
def field(n, raw):
    size, out = len(raw), bytearray([n << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128); size >>= 7
    return bytes(out) + bytes([size]) + raw
room = 16 << 20
heavy = [unit * (room // len(unit)) for unit in (b"\\x2a\\0", b"\\x32\\0", b"\\x22\\0", b"\\x3a\\0")]
heavy += [field(5, field(3, b"\\1" * room)), field(5, b"\\x22\\0" * (room // 2)), field(5, field(5, b"\\x42\\0" * (room // 2)))]
heavy += [field(2, h) for h in (b"\\x2a\\0" * (room // 2), b"\\x32\\0" * (room // 2))]
heavy += [field(2, b"\\x2a\\0" * 30_000) * 250]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for message in heavy:
    for unpack in (oip.unpack_request, oip.unpack_reply, oip.unpack_stream_reply, oip.unpack_model_metadata,
                   oip.unpack_model_name):
        try:
            unpack(message)
        except WireError:
            continue
        sys.exit(f"{unpack.__name__} took a message that begins {message[:8].hex()}")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    taken = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert taken < 64 << 20, f"took {taken >> 20} MiB"


def test_a_large_honest_request_passes_the_bounds() -> None:
    payload = bytes(256 << 10)
    packed = oip.pack_request(Frame(id=ID, payloads=(payload,) * 60, codec="float16", shape=(128, 32, 32)))
    assert oip.unpack_request(packed).rows == 60
    packed = oip.pack_request(Frame(id=ID, payloads=(payload,) * 60, shape=(64, 32, 32)))
    assert oip.unpack_request(oip.replace_payloads(packed, [b"\1" * len(payload)] * 60)).payloads[59] == b"\1" * (256 << 10)
    packed = oip.pack_request(Frame(id=ID, payloads=(b"x",) * oip.MAX_ROWS, codec="uniform8/tensor", shape=(1,)))
    assert oip.unpack_request(packed).rows == oip.MAX_ROWS
