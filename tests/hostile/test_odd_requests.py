"""Requests that are odd on purpose, one by one: what each is told, at the edge and through the relay."""

from __future__ import annotations

import dataclasses
import gzip
import io
import struct
import zlib
from collections.abc import Iterator

import grpc
import http2
import numpy as np
import pytest
import zstandard
from mutation import poisoned
from PIL import Image
from siege import MIB, Besieged, Good, asked

from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.channel import sync_channel

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(params=["edge", "relay"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    node: Besieged = request.getfixturevalue(request.param)
    with node.stands():
        yield node.grpc


def told(address: str, message: bytes) -> str:
    """The in-band error of a message on a stream."""
    with sync_channel(address) as channel:
        [reply] = asked(channel, [message], timeout=60)
    return oip.unpack_stream_reply(reply).error or ""


def request(good: Good, **changes: object) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest.FromString(oip.pack_request(good.frame()))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_latent_that_is_no_number_is_refused_and_says_so(value: float, address: str, good: Good) -> None:
    assert "finite" in told(address, poisoned(value, good.spec.elements, good.spec.shape, "odd/phone/1"))
    good.is_served(address)


SHAPES = [[], [0], [-1], [2**63 - 1], [1, 2**62, 4], [2**32, 2**32], [1, -1, -1], [1] * 9, [1] * 5000, [4097, 1], [-(2**63), 2]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_that_cannot_be_are_refused(shape: list[int], address: str, good: Good) -> None:
    message = request(good)
    message.inputs[0].shape[:] = shape
    assert "INVALID_ARGUMENT" in told(address, message.SerializeToString())


def test_a_shape_in_words_that_cannot_be_is_refused(address: str, good: Good) -> None:
    for text in ("0", "-1,2", "9" * 400, "1,2,3,4,5,6,7,8,9", "1e9", "٣", "", "99999999,99999999"):
        frame = good.frame("uniform4/channel")
        message = pb.ModelInferRequest.FromString(oip.pack_request(frame))
        message.parameters["lb_shape"].string_param = text
        assert "INVALID_ARGUMENT" in told(address, message.SerializeToString()), text


def test_thousands_of_parameters_and_outputs_are_taken_or_refused(address: str, good: Good) -> None:
    many = request(good)
    for number in range(3000):
        many.parameters[f"p{number}"].int64_param = number
    told(address, many.SerializeToString())
    outputs = request(good)
    for number in range(3000):
        outputs.outputs.add(name=f"o{number}")
    told(address, outputs.SerializeToString())
    many.parameters["big"].string_param = "x" * MIB
    assert "INVALID_ARGUMENT" in told(address, many.SerializeToString())
    good.is_served(address)


def test_ids_and_names_of_any_character_are_echoed_or_refused(address: str, good: Good) -> None:
    for text in (
        "\x00",
        "\x1b[2J\x1b]0;title\x07",
        "a\r\nb",
        "é" * 256,
        "x" * 513,
        "../../etc/passwd",
        "run/phone/1\n{}",
        "{run}%s%n",
    ):
        frame = dataclasses.replace(good.frame(), id=text)
        with sync_channel(address) as channel:
            [message] = asked(channel, [oip.pack_request(frame)], timeout=60)
        reply = oip.unpack_stream_reply(message)
        assert (reply.id, reply.error) == (text, None) or "INVALID_ARGUMENT" in (reply.error or "")
        named = dataclasses.replace(good.frame(), model=text)
        assert "NOT_FOUND" in told(address, oip.pack_request(named))


def test_text_that_is_no_utf8_is_refused(address: str) -> None:
    for number in (1, 2, 3):  # model, version, id
        assert "INVALID_ARGUMENT" in told(address, bytes([number << 3 | 2, 2, 0xC0, 0xAF]))


def test_two_latents_under_one_id_are_both_answered_while_an_attack_holds_them(relay: Besieged, good: Good) -> None:
    threat = {"norm": "linf", "eps": 0.5, "budget": 6}
    for attack, order in (("noise", "keep"), ("square", "overtake")):
        relay.put(
            "/behaviour",
            {"kind": "attack", "run": f"two-{order}", "attack": {"kind": attack}, "threat": threat, "order": order},
        )
        frames = [
            dataclasses.replace(good.frame(codec), id="two/phone/1", attempt=n + 1)
            for n, codec in enumerate(("uniform4/channel", "identity", "float16"))
        ]
        with sync_channel(relay.grpc) as channel:
            assert len(asked(channel, [oip.pack_request(frame) for frame in frames], timeout=60)) == 3
    relay.put("/behaviour", {"kind": "pass"})
    good.is_served(relay.grpc)


# -- what unpacks to far more than it is ---------------------------------------------------------------------------------------


def compressed(address: str, encoding: str, body: bytes) -> bytes:
    """What a node says to a call whose message is compressed, as bytes of HTTP/2."""
    with http2.connect(address, 30) as connection:
        head = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.block(oip.path(oip.INFER), grpc_encoding=encoding))
        message = http2.grpc_message(body, compressed=1)
        pieces = [message[at : at + 16384] for at in range(0, len(message), 16384)]
        data = b"".join(http2.frame(http2.DATA, http2.END_STREAM * (n == len(pieces) - 1), 1, p) for n, p in enumerate(pieces))
        connection.sendall(http2.PREFACE + http2.settings() + head + data)
        return http2.heard(connection, quiet_s=3)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [17, 1024])
def test_a_compressed_message_that_unpacks_to_more_than_the_bound_is_refused(
    encoding: str, size: int, edge: Besieged, relay: Besieged, good: Good
) -> None:
    plain = bytes(size * MIB)
    bomb = gzip.compress(plain, 9) if encoding == "gzip" else zlib.compress(plain, 9)
    del plain
    assert len(bomb) < 2 * MIB
    for node in (edge, relay):
        with node.stands(grows_mib=32):
            said = compressed(node.grpc, encoding, bomb)
            assert b"grpc-status" in said or any(
                kind in (http2.RST_STREAM, http2.GOAWAY) for kind, *_ in http2.frames_of(said)
            ), said
        good.is_served(node.grpc)


def bombs(good: Good) -> Iterator[tuple[str, bytes]]:
    """(codec, payload) that claim or hold far more than a latent."""
    zeros = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(256 * MIB))
    yield "uniform8/channel+zstd", zeros
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * MIB))
    yield "uniform8/channel+zstd", unsized
    yield "float16+zstd", b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**62) + bytes(8)
    for codec in ("jpeg90", "jpeg20/rgb-triples"):
        picture = io.BytesIO()
        Image.new("L", (20000, 20000)).save(picture, "JPEG", quality=1)
        yield codec, picture.getvalue()
        png = io.BytesIO()
        Image.new("L", (20000, 20000)).save(png, "PNG")
        yield codec, png.getvalue()
        # a header that says 65500 x 65500 and has nothing behind it
        yield codec, picture.getvalue()[:200].replace(struct.pack(">HH", 20000, 20000), struct.pack(">HH", 65500, 65500))
    yield "entropy/00000000", b"\xff" * 64
    yield "uniform4/channel", bytes(8 * MIB)


def test_payloads_that_hold_or_claim_far_more_than_a_latent_are_refused_in_little_memory(
    edge: Besieged, relay: Besieged, good: Good
) -> None:
    for node in (edge, relay):
        for codec, payload in bombs(good):
            frame = dataclasses.replace(good.frame(), payloads=(payload,), codec=codec)
            with node.stands(grows_mib=40):
                assert "INVALID_ARGUMENT" in told(node.grpc, oip.pack_request(frame)), codec
        good.is_served(node.grpc)


def test_a_message_above_the_bound_is_refused_and_others_of_the_connection_go_on(
    edge: Besieged, relay: Besieged, good: Good
) -> None:
    for node in (edge, relay):
        with node.stands(grows_mib=80), sync_channel(node.grpc, 256 * MIB) as channel:
            infer = channel.unary_unary(oip.path(oip.INFER))
            for size in (17, 128):
                with pytest.raises(grpc.RpcError) as refused:
                    infer(bytes(size * MIB), timeout=60)
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, refused.value.details()
            assert infer(oip.pack_request(good.frame()), timeout=60)


def test_scores_of_good_rows_do_not_depend_on_the_bad_ones_beside_them(edge: Besieged, good: Good) -> None:
    """One batch of both: each is answered for itself."""
    frames = [good.frame(rows=1 + number % 4) for number in range(40)]
    messages = [oip.pack_request(frame) for frame in frames]
    bad = [poisoned(float("nan"), good.spec.elements, good.spec.shape, f"bad/phone/{number}") for number in range(40)]
    mixed = [message for pair in zip(messages, bad, strict=True) for message in pair]
    with sync_channel(edge.grpc) as channel:
        replies = {reply.id: reply for reply in map(oip.unpack_stream_reply, asked(channel, mixed))}
    alone = {}
    with sync_channel(edge.grpc) as channel:
        for frame, message in zip(frames, messages, strict=True):
            alone[frame.id] = oip.unpack_stream_reply(asked(channel, [message])[0])
    for frame in frames:
        ours, theirs = replies[frame.id].scores, alone[frame.id].scores
        assert ours is not None and theirs is not None
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    assert all(replies[f"bad/phone/{number}"].error for number in range(40))
