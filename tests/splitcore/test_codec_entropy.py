"""The entropy coder: its bitstream against a slow twin and by hand, its rate against the model's, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from splitcore.artefact import Latent
from splitcore.codec import fit
from splitcore.codec.entropy import Entropy, EntropyCodec
from splitcore.codec.lanes import ends, fewest, join, lanes_for, most
from splitcore.codec.prior import MAX_SYMBOLS, Prior, integer_frequencies
from splitcore.codec.rans import Rans
from splitcore.errors import CodecError
from splitcore.latent import F32, MAX_ELEMENTS, LatentSpec


def codec_of(shape: tuple[int, ...], prior: Prior) -> EntropyCodec:
    codec = fit(Entropy(), LatentSpec(shape, (-1.0,) * shape[0], (1.0,) * shape[0], 1.0, prior))
    assert isinstance(codec, EntropyCodec)
    return codec


def laplace(shape: tuple[int, ...], scale: float, k: int, seed: int = 0) -> F32:
    rng = np.random.default_rng(seed)
    widths = scale * rng.uniform(0.5, 2, (shape[0], *[1] * (len(shape) - 1)))
    return (rng.laplace(size=(k, *shape)) * widths).astype(np.float32)


def write_slowly(symbols: list[int], channels: list[int], prior: Prior, lanes: int) -> bytes:
    """The bitstream as rans.py and lanes.py say it, one symbol at a time."""
    n = len(symbols)
    streams: list[bytes] = []
    for lane in range(lanes):
        x, words = 0, b""
        for e in reversed(range(lane * n // lanes, (lane + 1) * n // lanes)):
            cdf, place = prior.cdf[channels[e]], symbols[e] - prior.offset[channels[e]]
            if not 0 <= place < len(cdf) - 2:
                place = len(cdf) - 2
            c, f = 256 * cdf[place], 256 * (cdf[place + 1] - cdf[place])
            if x >= f << 40:
                words += struct.pack("<I", x % 2**32)
                x >>= 32
            x = x // f * 2**24 + x % f + c
        streams.append((words + struct.pack("<Q", x)).rstrip(b"\0"))
    held = [range(prior.offset[c], prior.offset[c] + len(prior.cdf[c]) - 2) for c in channels]
    escapes = [symbol for symbol, table in zip(symbols, held, strict=True) if symbol not in table]
    head = struct.pack(f"<{lanes + 1}H", lanes, *map(len, streams))
    return head + b"".join(streams) + struct.pack(f"<{len(escapes)}h", *escapes)


def with_coder(codec: EntropyCodec, coder: Rans) -> EntropyCodec:
    """The same codec, that codes with `coder` alone."""
    again = copy.copy(codec)
    again._coder = coder
    return again


def by_numpy(codec: EntropyCodec) -> EntropyCodec:
    assert codec.latent.prior is not None
    channel = np.arange(codec.latent.channels).repeat(codec.latent.elements // codec.latent.channels)
    return with_coder(codec, Rans(codec.latent.prior.cdf, channel))


@given(seed=st.integers(0, 2**32), shape=st.sampled_from([(1,), (5,), (2, 700), (3, 7, 9), (2, 23, 45)]))
@settings(max_examples=30, deadline=None)
def test_the_bitstream_agrees_with_its_slow_twin_that_goes_symbol_by_symbol(seed: int, shape: tuple[int, ...]) -> None:
    latents = laplace(shape, 3, 2, seed)
    prior = Prior.counted(laplace(shape, 1, 1, seed + 1), [1.0] * shape[0])
    codec = codec_of(shape, prior)
    channels = np.arange(shape[0]).repeat(codec.latent.elements // shape[0]).tolist()
    payloads = codec.encode(latents)
    lanes = [struct.unpack_from("<H", payload)[0] for payload in payloads]
    slow = [write_slowly(row.tolist(), channels, prior, of) for row, of in zip(codec.symbols(latents), lanes, strict=True)]
    assert payloads == slow == by_numpy(codec).encode(latents)
    assert codec.decode(payloads).tobytes() == codec.snap(latents).tobytes() == by_numpy(codec).decode(payloads).tobytes()


@pytest.mark.parametrize(("shape", "scale"), [((24, 55, 55), 0.4), ((24, 55, 55), 3), ((12, 60, 60), 40), ((24, 29, 29), 8)])
def test_above_10_kilobytes_the_bytes_are_within_2_percent_of_the_models_entropy(shape: tuple[int, ...], scale: float) -> None:
    latents = laplace(shape, scale, 3)
    codec = codec_of(shape, Prior.counted(laplace(shape, scale, 8, seed=0), [1.0] * shape[0]))
    bits = codec.bits(latents)
    for payload, bound in zip(codec.encode(latents), bits, strict=True):
        assert len(payload) > 10_000
        assert bound < 8 * len(payload) < 1.02 * bound


def test_symbols_that_no_table_holds_are_escaped_up_to_int16_and_clipped_beyond() -> None:
    prior = Prior.of([np.array([1.0, 2.0, 1.0])], [-1], [0.5])
    codec = codec_of((1, 6), prior)
    latents = np.array([[[0.5, 40.0, -16384.0, 16383.5, 1e9, -1e9]]], np.float32)
    [payload] = codec.encode(latents)
    assert payload.endswith(struct.pack("<5h", 80, -32768, 32767, 32767, -32768))
    assert codec.decode([payload]).tolist() == [[[0.5, 40.0, -16384.0, 16383.5, 16383.5, -16384.0]]]


def test_an_escape_for_what_a_table_holds_is_refused() -> None:
    codec = codec_of((1, 2), Prior.of([np.array([1.0, 2.0, 1.0])], [-1], [1.0]))
    [payload] = codec.encode(np.array([[[0.0, 9.0]]], np.float32))
    assert codec.decode([payload[:-2] + struct.pack("<h", 8)]).tolist() == [[[0.0, 8.0]]]
    with pytest.raises(CodecError, match="escape"):
        codec.decode([payload[:-2] + struct.pack("<h", 1)])


def test_altered_streams_of_many_lanes_are_refused_or_give_a_valid_latent() -> None:
    codec = codec_of((2, 40, 40), Prior.counted(laplace((2, 40, 40), 1, 1), [1.0, 1.0]))
    payloads = codec.encode(laplace((2, 40, 40), 2, 40, seed=3))
    assert {payload[0] for payload in payloads} == {6}, "lanes"
    rng = np.random.default_rng(0)
    refused = 0
    for payload in payloads:
        altered = bytearray(payload)
        altered[int(rng.integers(len(altered)))] ^= 1 << int(rng.integers(8))
        for wrong in (bytes(altered), payload[:-2], payload + b"\0\0", rng.bytes(len(payload))):
            try:
                arrived = codec.decode([wrong])
            except CodecError:
                refused += 1
            else:
                assert np.isfinite(arrived).all() and (arrived >= codec.lo).all() and (arrived <= codec.hi).all()
    assert refused > 3 * len(payloads)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (b"", "lanes"), (b"\1", "lanes"), (b"\0\0", "lanes"), (b"\2\0\0\0\0\0", "lanes"), (b"\xff\xff" + b"\0" * 9, "lanes"),
        (b"\1\0", "lengths"), (b"\1\0\1\0", "cut"), (b"\1\0\2\0\1\0", "zero"), (b"\1\0\1\0\1\0", "end"),
        (b"\1\0\x0c\0" + b"\1" * 12, "end"),
    ],
)  # fmt: skip
def test_a_frame_of_streams_that_is_none_is_refused(wrong: bytes, match: str) -> None:
    codec = codec_of((1, 2), Prior.of([np.ones(3)], [0], [1.0]))
    for each in (codec, by_numpy(codec)):
        with pytest.raises(CodecError, match=match):
            each.decode([wrong])


def test_payloads_of_few_lanes_and_of_many_in_one_request_take_no_more_memory() -> None:
    shape = (1, 512, 512)
    codec = by_numpy(codec_of(shape, Prior.of([np.ones(3)], [0], [1.0])))
    n = codec.latent.elements
    zeros = np.zeros((1, n), np.int64)
    few, many = (join(codec._coder.write(zeros, [lanes])[0]) for lanes in (fewest(n), most(n)))
    tracemalloc.start()
    try:
        assert not codec.decode([many, many, few, many]).any()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20  # padded to the few lanes' length, the many would be gigabytes


@pytest.mark.parametrize("n", [1, 63, 64, 511, 2523, 72_600, 802_816, MAX_ELEMENTS])
def test_lanes_are_as_many_as_the_bytes_allow_and_none_outgrows_its_length(n: int) -> None:
    for size in (0, 10_000, 20_000, 10**9):
        lanes = lanes_for(n, size)
        assert fewest(n) <= lanes <= most(n)
        assert np.diff(ends(n, lanes)).max() * 2.001 + 16 < 1 << 16
        if fewest(n) < lanes:
            assert 5.6 * lanes < 0.02 * size


def test_many_streams_of_certain_symbols_are_refused_by_what_they_add_up_to() -> None:
    codec = codec_of((1, 1024, 1024), Prior.of([np.ones(1)], [0], [1.0]))
    [payload] = codec.encode(np.zeros((1, 1, 1024, 1024), np.float32))
    assert len(payload) < 300
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="several requests"):
            codec.decode([payload] * (MAX_ELEMENTS // 1024**2 + 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_codec_of_another_prior_is_refused_and_both_are_named() -> None:
    mine, other = (Prior.of([np.array([1.0, n])], [0], [1.0]) for n in (2, 3))
    spec = LatentSpec((1, 4), (0.0,), (1.0,), 1.0, mine)
    assert fit(f"entropy/{mine.hash}", spec).name == f"entropy/{mine.hash}"
    with pytest.raises(CodecError, match=f"{other.hash}.*{mine.hash}"):
        fit(f"entropy/{other.hash}", spec)
    with pytest.raises(CodecError, match="expected a latent with a prior"):
        fit(Entropy(), dataclasses.replace(spec, prior=None))
    with pytest.raises(CodecError, match="prior of 2 channels"):
        LatentSpec((2,), (0.0,) * 2, (1.0,) * 2, 1.0, mine)


def test_a_manifest_carries_the_prior_and_one_without_is_as_it_was() -> None:
    prior = Prior.counted(laplace((2, 50), 2, 1), [0.5, 1.0])
    spec = LatentSpec((2, 50), (-1.0,) * 2, (1.0,) * 2, 1.0, prior)
    latent = Latent.model_validate_json(Latent(**dataclasses.asdict(spec)).model_dump_json())
    assert latent.spec == spec and latent.spec.prior is not None and latent.spec.prior.hash == prior.hash
    assert set(Latent(shape=(1,), lo=(0.0,), hi=(1.0,), std=1.0).model_dump()) == {"shape", "lo", "hi", "std"}
    with pytest.raises(ValidationError):
        Latent.model_validate({**latent.model_dump(), "prior": {**dataclasses.asdict(prior), "more": 1}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"cdf": ((0, 5, 65535),)}, {"cdf": ((1, 5, 65536),)}, {"cdf": ((0, 5, 5, 65536),)}, {"cdf": ((0, 9, 5, 65536),)},
        {"cdf": ((0, 65536),)}, {"cdf": ((0,),)}, {"cdf": ((),)}, {"cdf": ((*range(MAX_SYMBOLS + 2), 65536),)},
        {"cdf": ()}, {"cdf": ((0, 5, 65536),) * 2}, {"offset": (-40000,)}, {"offset": (32768,)}, {"step": (0.0,)},
        {"step": (float("nan"),)}, {"step": (31.0,)}, {"step": (-1.0,)},
    ],
    ids=lambda wrong: str(wrong)[:40],
)  # fmt: skip
def test_tables_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    right = {"offset": (0,), "cdf": ((0, 5, 65536),), "step": (1.0,)}
    assert len(Prior(**right).hash) == 8  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="prior"):
        Prior(**{**right, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("masses", [[], [0.0, 0.0], [np.nan], [1.0, np.inf], [-1.0, 2.0]])
def test_masses_that_are_none_are_refused(masses: list[float]) -> None:
    with pytest.raises(CodecError, match="masses"):
        Prior.of([np.array(masses)], [0], [1.0])


@given(seed=st.integers(0, 2**32), n=st.integers(1, 4097), sharp=st.sampled_from([0.0, 1.0, 30.0]))
@settings(max_examples=60, deadline=None)
def test_integer_frequencies_are_whole_and_near_the_probabilities(seed: int, n: int, sharp: float) -> None:
    p = np.random.default_rng(seed).uniform(0, 1, n) ** sharp
    p /= p.sum()
    frequencies = integer_frequencies(p)
    assert frequencies.sum() == 65536 and frequencies.min() >= 1
    expected = -(p * np.log2(np.maximum(p, 1e-300))).sum()
    assert -(p * np.log2(frequencies / 65536)).sum() < expected + 0.1
