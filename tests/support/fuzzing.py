"""What parses bytes in our code, each with seeds and with what must hold of every input: for coverage-guided fuzzing.

A check returns for any bytes at all, or raises AssertionError or whatever the code under test should not raise.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import http2
import numpy as np
import orjson
import zstandard
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from adversary.addons.recorder import Pass
from adversary.ledger import Ledger
from adversary.relay.addon import Forward
from adversary.relay.frames import H2Error
from adversary.relay.headers import Requests, context_free, pick
from adversary.relay.passage import Books
from adversary.relay.splice import ANSWER, ASK, Splice
from splitcore.artefact import Manifest
from splitcore.codec import Codec, fit, parse
from splitcore.codec.entropy import Entropy
from splitcore.codec.prior import Prior
from splitcore.errors import CodecError, WireError
from splitcore.frame import Frame, FrameId, Reply
from splitcore.journal import rows_of
from splitcore.latent import LatentSpec
from splitcore.telemetry.collector import Collector
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import envelope, json_tensors, oip
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.bounds import MAX_LOOSE_BYTES, fields
from splitcore.wire.channel import split_address

ID = "run/phone/3"
PRIOR = Prior.of([np.array([1.0, 8, 1]), np.ones(9), np.array([0.5, 20, 0, 3])], (-1, -4, 0), (1.0, 0.5, 2.0))
SPEC = LatentSpec((3, 5, 3), (-1.0, 0.0, -7.0), (1.0, 2.5, 9.0), 1.0, PRIOR)
LATENTS = np.random.default_rng(0).uniform(-8, 10, (1, *SPEC.shape)).astype(np.float32)
PLAIN = (
    "identity",
    "float16",
    "uniform2/tensor",
    "uniform3/channel",
    "uniform5/tensor",
    "uniform8/channel",
    "uniform1/tensor",
    "uniform4/channel/sample",
    "uniform7/tensor/sample",
    "jpeg90",
    "jpeg20",
    "jpeg95/rgb-triples",
)
CODECS: list[Codec] = [*(fit(name + zstd, SPEC) for name in PLAIN for zstd in ("", "+zstd")), fit(Entropy(), SPEC)]


@dataclass(frozen=True)
class Target:
    """One parser."""

    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    max_bytes: int = 4096


def codec(data: bytes) -> None:
    """The first byte chooses the codec, the rest is the payload."""
    chosen = CODECS[data[0] % len(CODECS)] if data else CODECS[0]
    payload = data[1:]
    with contextlib.suppress(CodecError):
        latents = chosen.decode([payload])
        assert latents.shape == (1, *SPEC.shape) and latents.dtype == np.float32
        assert np.isfinite(latents).all() and (latents >= chosen.lo).all() and (latents <= chosen.hi).all()
        again = chosen.as_sent(payload)
        snapped = again.snap(latents)
        assert np.isfinite(snapped).all()
        if again.settles:
            assert (again.decode(again.encode(snapped)) == snapped).all()


def codec_name(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        name = data.decode(errors="replace")
        config = parse(name)
        if not isinstance(config, Entropy):
            assert fit(config, SPEC).name == name


def frame_id(data: bytes) -> None:
    text = data.decode(errors="replace")
    try:
        parsed = FrameId.parse(text)
    except WireError as refusal:
        assert len(str(refusal)) < 1000
        return
    assert str(parsed) == text and FrameId.parse(str(parsed)) == parsed


def request(message: bytes) -> None:
    try:
        frame = oip.unpack_request(message)
    except WireError as refusal:
        assert len(str(refusal)) < 1000 and len(refusal.frame_id) <= oip.MAX_ID
        return
    assert 1 <= frame.rows <= oip.MAX_ROWS and len(frame.id) <= oip.MAX_ID
    assert 1 <= len(frame.shape) <= oip.MAX_DIMENSIONS and all(n >= 1 for n in frame.shape)
    assert 1 <= frame.attempt <= oip.MAX_ATTEMPT and frame.origin in ("client", "query")
    assert frame.timeout_us is None or frame.timeout_us > 0
    assert sum(map(len, frame.payloads)) <= len(message)
    # what we understood we can say ourselves, and a relay that puts the same latents in changes nothing
    plain = 4 * math.prod(frame.shape)
    if frame.codec != "identity" or all(len(payload) == plain for payload in frame.payloads):
        assert _essence(oip.unpack_request(oip.pack_request(frame))) == _essence(frame)
    assert oip.unpack_request(oip.replace_payloads(message, frame.payloads)) == frame


def _essence(frame: Frame) -> tuple[object, ...]:
    """What every message of ours says, however its tensor and its outputs were written."""
    return frame.id, frame.payloads, frame.codec, frame.shape, frame.attempt, frame.origin, frame.model, frame.timeout_us


def _sane(reply: Reply) -> None:
    if reply.scores is not None:
        assert reply.scores.ndim == 2 and not np.isnan(reply.scores).any()
    assert reply.labels is None or reply.labels.ndim == 1
    with contextlib.suppress(WireError):
        assert isinstance(reply.label, int)
    assert reply.edge_ms is None or math.isfinite(reply.edge_ms)


def reply(message: bytes) -> None:
    for unpack in (oip.unpack_reply, oip.unpack_stream_reply):
        with contextlib.suppress(WireError):
            _sane(unpack(message))


def metadata(message: bytes) -> None:
    with contextlib.suppress(WireError):
        described = oip.unpack_model_metadata(message)
        assert oip.unpack_model_metadata(oip.pack_model_metadata(described)) == described
    with contextlib.suppress(WireError):
        name, version = oip.unpack_model_name(message)
        assert oip.unpack_model_name(oip.pack_model_name(name, version)) == (name, version)


def bounds(message: bytes) -> None:
    """What protobuf reads we read as well, save groups; the parts lie in the message, in order."""
    try:
        parts = list(fields(message))
    except WireError:
        if len(message) < MAX_LOOSE_BYTES and message:
            # group tags (3 and 4) and numbers above ten bytes are all that protobuf may know and we do not
            with contextlib.suppress(DecodeError):
                pb.ModelReadyRequest.FromString(message)
                tags = {byte & 7 for byte in message}
                assert tags & {3, 4} or message.count(0x80) or max(message) >= 0x80
        return
    at = 0
    for number, start, end in parts:
        assert at < start <= end <= len(message) and number >= 0
        at = end


def manifest(data: bytes) -> None:
    try:
        read = Manifest.model_validate_json(data)
    except ValidationError:
        return
    with contextlib.suppress(CodecError):
        fit(read.codec, read.latent.spec)
    assert len(read.digest) == 64 and Manifest.model_validate_json(read.model_dump_json()).digest == read.digest


def journal(data: bytes) -> None:
    assert all(isinstance(row, dict) for row in rows_of(data.splitlines(keepends=True)))


_collectors: list[Collector] = []


def telemetry(data: bytes) -> None:
    if not _collectors:
        _collectors.append(Collector(Path(tempfile.mkdtemp()) / "spans.jsonl"))
    row = _collectors[0]._take(data)
    # what is taken goes to the journal as JSON
    assert row is None or orjson.loads(orjson.dumps(row)) == row


def rest(data: bytes) -> None:
    """The first two bytes say how much is JSON, as the header does."""
    body = data[2:]
    with contextlib.suppress(WireError):
        said = int.from_bytes(data[:2]) if data[:1] != b"\xff" else None
        message, binary = json_tensors.read_request(body, said, "m", "1")
        assert isinstance(binary("scores"), bool)
        request(message)


def sealed(message: bytes) -> None:
    with contextlib.suppress(WireError):
        found = envelope.unpack_envelope(message)
        if found is not None:
            assert envelope.unpack_envelope(envelope.pack_envelope(found)) == found
    with contextlib.suppress(WireError):
        envelope.unpack_hello(message)


def header_block(block: bytes) -> None:
    requests = Requests()
    for requests.free in (False, True):
        with contextlib.suppress(H2Error):
            assert sum(map(len, requests.call(block))) <= 16 * len(block) + 64
    if context_free(block):
        with contextlib.suppress(H2Error):
            pick(block, (b":path",))


class _Rewriter(Pass):
    """Every frame goes on a little longer."""

    holds = True

    def request(self, frame: Frame, message: bytes) -> Forward:
        return Forward(message + oip.pack_padding(b"longer"), "passed", 0)


_ledgers: list[Ledger] = []
ROOM = 1 << 20


def splice(data: bytes) -> None:
    """Pieces of two connections: a byte for the side and the addon, two for the length, then that of what this side sends."""
    if not _ledgers:
        _ledgers.append(Ledger(Path("/dev/null")))
    books = Books(_ledgers[0], Telemetry("fuzz", None), ROOM)
    addon = _Rewriter() if data[:1] and data[0] & 2 else Pass()
    pair = Splice(lambda: addon, books, lambda: None)
    sent = 0
    with contextlib.suppress(H2Error):
        pair.receive(ASK, http2.PREFACE + http2.settings())
        pair.receive(ANSWER, http2.settings() + http2.frame(http2.SETTINGS, http2.ACK))
        at = 0
        while at + 3 <= len(data):
            side, size = data[at] & 1, int.from_bytes(data[at + 1 : at + 3])
            piece = data[at + 3 : at + 3 + size]
            at, sent = at + 3 + size, sent + len(piece)
            pair.receive(ANSWER if side else ASK, piece)
            pair.settle()
    pair.close("the end")
    pair.settle()
    # whatever came, nothing is kept of it, and no more goes on than came with our padding and our own frames
    assert books.room == ROOM and not pair.streams and not any(lane.keeping for lane in pair.lanes)
    assert sum(len(piece) for lane in pair.lanes for piece in lane.out) < 200 + 64 * (sent + 64)


def address(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        host, port = split_address(data.decode(errors="replace"))
        assert host and 0 <= port <= 65535


def _requests() -> tuple[bytes, ...]:
    frames = [Frame(id=ID, payloads=tuple(c.encode(LATENTS)), codec=c.name, shape=SPEC.shape) for c in (CODECS[0], CODECS[5])]
    frames.append(
        Frame(
            id=ID,
            payloads=(b"abc",) * 3,
            codec="float16+zstd",
            shape=(9, 9),
            attempt=4,
            origin="query",
            timeout_us=5,
            labels_only=True,
            model="m",
            version="1",
            timed=True,
        )
    )
    return tuple(map(oip.pack_request, frames))


def _replies() -> tuple[bytes, ...]:
    scores = Reply(id=ID, scores=np.eye(2, dtype=np.float32), labels=np.arange(2), model="m", parameters={"lb_edge_us": 5})
    error = Reply(id=ID, error="INVALID_ARGUMENT: no", parameters={"a": "b", "c": True, "d": 0.5})
    return tuple(pack(reply) for pack in (oip.pack_reply, oip.pack_stream_reply) for reply in (scores, error))


def _metadata() -> tuple[bytes, ...]:
    tensor = oip.TensorMetadata("latent", "FP32", (-1, 3, 4))
    return oip.pack_model_metadata(oip.ModelMetadata("m", ("1",), "p", (tensor,), (tensor,))), oip.pack_model_name("m", "1")


def _manifest() -> bytes:
    latent = {
        "shape": [3, 5, 3],
        "lo": SPEC.lo,
        "hi": SPEC.hi,
        "std": 1.0,
        "prior": {"offset": PRIOR.offset, "cdf": PRIOR.cdf, "step": PRIOR.step},
    }
    plain = {
        "name": "m",
        "approach": "sc",
        "cut": "c",
        "input_shape": [1, 8, 8],
        "preprocessing": "none",
        "latent": latent,
        "codec": {"kind": "uniform", "bits": 4},
        "classes": ["a", "b"],
        "tail": {"net": "n", "arguments": {"width": 3}},
        "dataset": "d",
        "accuracy": 0.5,
        "files": {"head.onnx": "0" * 64},
        "made_with": {"torch": "2"},
    }
    return json.dumps(plain).encode()


_SPANS = (
    {"kind": "span", "node": "edge", "frame": ID, "attempt": 1, "t": {"received": 5}, "dropped": 3},
    {"kind": "node", "node": "edge", "offset_ns": 4, "uncertainty_ns": 9},
    {"kind": "bye", "node": "edge", "sent": 4, "dropped": 0},
)


def _spliced() -> tuple[bytes, ...]:
    ask = http2.conversation(_requests())[4:]
    answers = http2.answer(tuple(map(oip.pack_stream_reply, [Reply(id=ID, labels=np.arange(1))])))[2:]

    def of(side: int, pieces: list[bytes]) -> bytes:
        return b"".join(bytes([side]) + len(piece).to_bytes(2) + piece for piece in pieces)

    whole = of(2, [b"".join(ask)]) + of(3, [b"".join(answers)])
    return of(0, ask) + of(1, answers), of(2, ask) + of(3, answers), whole


def _bodies() -> tuple[bytes, ...]:
    tensor = {"name": "latent", "shape": [1, 2, 3], "datatype": "FP32"}
    plain = json.dumps(
        {"id": ID, "inputs": [{**tensor, "data": [[[1, 2.5, 3], [4, 5, 6]]]}], "outputs": [{"name": "label"}]}
    ).encode()
    binary = json.dumps(
        {"inputs": [{**tensor, "parameters": {"binary_data_size": 24}}], "parameters": {"binary_data_output": True}}
    ).encode()
    return b"\xff\xff" + plain, len(binary).to_bytes(2) + binary + bytes(24)


def _envelopes() -> tuple[bytes, ...]:
    salt = b"s" * 16
    found = envelope.Envelope(ID, 1, "m", "1", 3, b"sealed bytes", salt)
    return envelope.pack_envelope(found), envelope.pack_hello(salt)


TARGETS = {
    "request": Target(request, _requests()),
    "reply": Target(reply, _replies()),
    "metadata": Target(metadata, _metadata()),
    "bounds": Target(bounds, (*_requests(), *_replies())),
    "codec": Target(codec, tuple(bytes([i]) + c.encode(LATENTS)[0] for i, c in enumerate(CODECS)), 2048),
    "codec-name": Target(codec_name, tuple(c.name.encode() for c in CODECS), 80),
    "frame-id": Target(frame_id, (ID.encode(), b"a/b/0", b"r.1:+/phone-2/999999999999"), 400),
    "manifest": Target(manifest, (_manifest(),)),
    "journal": Target(journal, (b'{"a":1}\n{"b":[2]}\n{"torn', b"[]\n\n{}\n")),
    "telemetry": Target(telemetry, tuple(map(orjson.dumps, _SPANS)), 1024),
    "rest": Target(rest, _bodies()),
    "sealed": Target(sealed, _envelopes()),
    "header-block": Target(
        header_block, (http2.block(), http2.block("/a/b", x_y="z"), b"\x82\x86\x84\x41\x8a\x08\x9d\x5c\x0b")
    ),
    "splice": Target(splice, _spliced()),
    "address": Target(address, (b"127.0.0.1:80", b"[::1]:0", b"host.name:65535"), 200),
    "zstd-frame": Target(
        lambda data: codec(bytes([5]) + b"\x28\xb5\x2f\xfd" + data),
        (zstandard.compress(bytes(45))[4:], b"\xe0" + struct.pack("<Q", 23) + bytes(12)),
        400,
    ),
}
