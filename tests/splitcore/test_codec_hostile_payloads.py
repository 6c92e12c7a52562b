"""Payloads from whoever reaches the port: CodecError or a valid latent, in little memory, never a hang."""

from __future__ import annotations

import os
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from splitcore.codec import Codec, fit
from splitcore.codec.entropy import Entropy
from splitcore.codec.prior import Prior
from splitcore.errors import CodecError
from splitcore.latent import MAX_ELEMENTS, LatentSpec

PRIOR = Prior.of([np.array([1.0, 8, 1]), np.ones(9), np.array([0.5, 20, 0, 3])], (-1, -4, 0), (1.0, 0.5, 2.0))
SPEC = LatentSpec((3, 5, 3), (-1.0, 0.0, -7.0), (1.0, 2.5, 9.0), 1.0, PRIOR)
CODECS = [
    fit(name + zstd, SPEC)
    for name in ("identity", "float16", "uniform2/tensor", "uniform3/channel", "uniform5/tensor", "uniform8/channel",
                 "uniform1/tensor", "uniform4/channel/sample", "uniform7/tensor/sample", "jpeg90", "jpeg20",
                 "jpeg95/rgb-triples", "jpeg20/rgb-triples")
    for zstd in ("", "+zstd")
] + [fit(Entropy(), SPEC)]  # fmt: skip
LATENTS = np.random.default_rng(0).uniform(-8, 10, (1, *SPEC.shape)).astype(np.float32)


def decode_or_refuse(codec: Codec, payload: bytes) -> None:
    try:
        latents = codec.decode([payload])
    except CodecError as refusal:
        assert len(str(refusal)) < 500
        return
    assert latents.shape == (1, *SPEC.shape) and latents.dtype == np.float32
    assert np.isfinite(latents).all() and (latents >= codec.lo).all() and (latents <= codec.hi).all()


@given(codec=st.sampled_from(CODECS), payload=st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused_or_give_a_valid_latent(codec: Codec, payload: bytes) -> None:
    decode_or_refuse(codec, payload)


@given(codec=st.sampled_from(CODECS), data=st.data())
@settings(max_examples=200, deadline=None)
def test_random_bytes_of_the_right_length_are_refused_or_give_a_valid_latent(codec: Codec, data: st.DataObject) -> None:
    plain = fit(codec.name.removesuffix("+zstd"), SPEC)
    size = len(plain.encode(LATENTS)[0])
    payload = data.draw(st.binary(min_size=size, max_size=size))
    decode_or_refuse(codec, zstandard.compress(payload) if codec is not plain and "zstd" in codec.name else payload)


@given(codec=st.sampled_from(CODECS), data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_payload_with_flipped_bits_is_refused_or_gives_a_valid_latent(codec: Codec, data: st.DataObject) -> None:
    payload = bytearray(codec.encode(LATENTS)[0])
    for bit in data.draw(st.lists(st.integers(0, len(payload) * 8 - 1), min_size=1, max_size=6)):
        payload[bit // 8] ^= 1 << bit % 8
    decode_or_refuse(codec, bytes(payload))


MUTATIONS = int(os.environ.get("LATENTBED_MUTATIONS", "150"))
"""payloads a codec; 10,000 take about a minute for all"""


def mutated(payload: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes set, cut, repeated or put in, numbers blown up: one to three such changes."""
    changed = bytearray(payload)
    for _ in range(int(rng.integers(1, 4))):
        at, other = (int(place) for place in rng.integers(0, max(len(changed), 1), 2))
        match rng.integers(0, 7):
            case 0 if changed:
                changed[at] ^= 1 << int(rng.integers(8))
            case 1 if changed:
                changed[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, 0xD9, 0xC0]))
            case 2:
                del changed[at : at + int(rng.integers(1, 9))]
            case 3:
                changed[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 4:
                changed[at:at] = changed[other : other + 16]
            case 5:
                changed[at : at + 4] = b"\xff\xff\xff\xff"
            case _:
                changed[at : at + 4] = rng.bytes(4)
    return bytes(changed)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_mutated_payloads_are_refused_or_give_a_valid_latent_and_take_no_memory(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    [payload] = codec.encode(LATENTS)
    for _ in range(50):  # what is made once
        decode_or_refuse(codec, mutated(payload, rng))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(MUTATIONS):
            decode_or_refuse(codec, mutated(payload, rng))
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 64 << 10 and peak - before < 1 << 20


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_payload_that_was_cut_or_extended_is_refused(codec: Codec) -> None:
    [payload] = codec.encode(LATENTS)
    for wrong in (b"", payload[:1], payload[:-1], payload + b"\0", payload * 2, payload[1:]):
        if codec.name in ("jpeg90", "jpeg20") and wrong[:4] == payload[:4]:
            decode_or_refuse(codec, wrong)  # JPEG fills up what is missing and skips what is too much
            continue
        with pytest.raises(CodecError):
            codec.decode([wrong])
        with pytest.raises(CodecError):
            codec.decode([payload, wrong, payload])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "dtype"), [("identity", "<f4"), ("float16", "<f2")])
def test_floats_that_are_not_finite_are_refused(name: str, dtype: str, value: float) -> None:
    plain = np.zeros(SPEC.elements, dtype)
    plain[-1] = value
    for codec, payload in (
        (fit(name, SPEC), plain.tobytes()),
        (fit(f"{name}+zstd", SPEC), zstandard.compress(plain.tobytes())),
    ):
        with pytest.raises(CodecError, match="finite"):
            codec.decode([bytes(payload)])


@pytest.mark.parametrize("name", ["uniform2/tensor", "uniform3/tensor", "uniform5/tensor", "uniform7/tensor"])
def test_bits_after_the_last_code_are_zero_or_the_payload_is_refused(name: str) -> None:
    codec = fit(name, SPEC)
    payload = bytearray(codec.encode(LATENTS)[0])
    for bit in range(-SPEC.elements * int(name[7]) % 8):
        payload[-1] ^= 1 << bit
        with pytest.raises(CodecError, match="must be zero"):
            codec.decode([bytes(payload)])
        payload[-1] ^= 1 << bit


@pytest.mark.parametrize(
    ("lo", "hi"),
    [(np.nan, 1), (0, np.nan), (-np.inf, 0), (0, np.inf), (1, 1), (1, 0), (0, 1.1e6), (-1.1e6, 0), (0, 3e38), (-3e38, 3e38)],
)
def test_a_range_that_nobody_measures_is_refused(lo: float, hi: float) -> None:
    codec = fit("uniform8/channel/sample", SPEC)
    payload = bytearray(codec.encode(LATENTS)[0])
    payload[4:8], payload[16:20] = struct.pack("<f", lo), struct.pack("<f", hi)  # of the second channel of three
    with pytest.raises(CodecError, match="expected ranges"):
        codec.decode([bytes(payload)])
    with pytest.raises(CodecError, match="expected ranges"):
        codec.as_sent(bytes(payload))


@pytest.mark.parametrize("lo", [0.0, 1.0, -1.0, 3e5])
@pytest.mark.parametrize("width", [1e-45, 1e-38, 1e-36, 1e-30, 1e-7, 1e-3])
def test_a_range_too_narrow_to_step_through_is_refused_and_any_other_is_a_grid(lo: float, width: float) -> None:
    codec = fit("uniform8/tensor/sample", SPEC)
    payload = np.array([lo, np.float32(lo) + np.float32(width)], "<f4").tobytes() + bytes(range(SPEC.elements))
    decode_or_refuse(codec, payload)
    if width / 255 < max(abs(lo) * 2**-20, 2**-126):
        with pytest.raises(CodecError, match="expected ranges"):
            codec.as_sent(payload)
        return
    again = codec.as_sent(payload)
    snapped = again.snap(LATENTS)
    assert np.isfinite(snapped).all() and (again.decode(again.encode(snapped)) == snapped).all()


def zstd_frame(declared: int | None, blocks: bytes, *, window_log: int = 10, dictionary: int | None = None) -> bytes:
    """A frame by hand (RFC 8878, 3.1.1.1): 8 bytes of content size or none, a window descriptor, then `blocks`."""
    descriptor = (0b11 << 6 if declared is not None else 0) | (0b11 if dictionary is not None else 0)
    header = b"\x28\xb5\x2f\xfd" + bytes([descriptor, (window_log - 10) << 3])
    header += b"" if dictionary is None else struct.pack("<I", dictionary)
    return header + (b"" if declared is None else struct.pack("<Q", declared)) + blocks


def repeated(times: int, *, last: bool = True) -> bytes:
    """A block that stands for `times` zeros in four bytes (block type RLE, at most 128 KiB)."""
    return struct.pack("<I", times << 3 | 0b01 << 1 | last)[:3] + b"\0"


SIZE = SPEC.elements * 4
MORE = repeated(128 << 10, last=False) * 2000  # 8 KB that stand for 250 MiB
BOMBS = {
    "declares ten gigabytes": zstd_frame(10 << 30, MORE + repeated(1)),
    "declares 2^63 bytes": zstd_frame(1 << 63, repeated(SIZE)),
    "declares 2^64 - 1 bytes": zstd_frame((1 << 64) - 1, repeated(SIZE)),
    "declares 2^64 - 2 bytes": zstd_frame((1 << 64) - 2, repeated(SIZE)),
    "declares nothing": zstd_frame(None, MORE + repeated(1)),
    "declares nothing and has the right size": zstd_frame(None, repeated(SIZE)),
    "declares the right size and holds 250 MiB": zstd_frame(SIZE, MORE + repeated(1)),
    "declares the right size and holds one byte more": zstd_frame(SIZE, repeated(SIZE + 1)),
    "declares the right size and holds less": zstd_frame(SIZE, repeated(SIZE - 1)),
    "never ends": zstd_frame(SIZE, repeated(SIZE, last=False)),
    "is a million empty blocks": zstd_frame(SIZE, repeated(0, last=False)[:3] * 1_000_000 + repeated(SIZE)),
    "wants a dictionary": zstd_frame(SIZE, repeated(SIZE), dictionary=7),
    "is a skippable frame": b"\x50\x2a\x4d\x18" + struct.pack("<I", SIZE) + b"\0" * SIZE,
    "is a skippable frame of 4 GiB": b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + b"\0" * SIZE,
    "is a skippable frame before a good one": b"\x50\x2a\x4d\x18\0\0\0\0" + zstd_frame(SIZE, repeated(SIZE)),
    "is two frames of half the size": zstd_frame(SIZE // 2, repeated(SIZE // 2)) * 2,
    "is a good frame and an empty one": zstd_frame(SIZE, repeated(SIZE)) + zstd_frame(0, repeated(0)),
    "has no blocks": zstd_frame(SIZE, b""),
    "uses the reserved block type": zstd_frame(SIZE, b"\x07\0\0"),
}


def test_the_frames_made_by_hand_are_what_they_should_be() -> None:
    codec = fit("identity+zstd", SPEC)
    assert not codec.decode([zstd_frame(SIZE, repeated(SIZE))]).any()


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_zstd_frame_is_refused_without_memory_when_it(bomb: str) -> None:
    codec = fit("identity+zstd", SPEC)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            codec.decode([BOMBS[bomb]])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("window_log", [27, 31, 41])
def test_a_zstd_frame_with_a_huge_window_takes_no_window(window_log: int) -> None:
    # the whole frame is at hand and its size is known, so the window that it asks for is never allocated
    decode_or_refuse(fit("identity+zstd", SPEC), zstd_frame(SIZE, repeated(SIZE), window_log=window_log))


def test_many_small_bombs_in_one_request_are_refused_by_what_they_add_up_to() -> None:
    # each is honest: 4 MiB of zeros in 160 bytes; a request may carry thousands of them
    big = LatentSpec((1, 1024, 1024), (-1.0,), (1.0,), 1.0)
    codec = fit("identity+zstd", big)
    [payload] = codec.encode(np.zeros((1, *big.shape), np.float32))
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="several requests"):
            codec.decode([payload] * (MAX_ELEMENTS // big.elements + 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(payload) < 1000 and peak < 1 << 20
