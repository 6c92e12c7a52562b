"""What the codecs write, byte by byte, worked out by hand: a later version must read it and write the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import zstandard

from splitcore.codec import fit
from splitcore.codec.prior import Prior
from splitcore.latent import LatentSpec

FLOATS = LatentSpec((4,), (-8.0,) * 4, (8.0,) * 4, 1.0)
FLOAT_LATENT = np.array([[0.0, 1.0, -2.5, 0.15625]], np.float32)


def test_identity_writes_little_endian_float32() -> None:
    codec = fit("identity", FLOATS)
    # 1.0 = 2^0: exponent 127; -2.5 = -1.25·2^1: exponent 128, fraction .25; 0.15625 = 1.25·2^-3: exponent 124
    golden = bytes.fromhex("00000000 0000803f 000020c0 0000203e")
    assert codec.encode(FLOAT_LATENT) == [golden]
    assert (codec.decode([golden]) == FLOAT_LATENT).all()


def test_float16_writes_little_endian_half_floats() -> None:
    codec = fit("float16", FLOATS)
    # exponent bias 15: 1.0 = 0x3c00, -2.5 = 1 10000 0100000000 = 0xc100, 0.15625 = 0 01100 0100000000 = 0x3100
    golden = bytes.fromhex("0000 003c 00c1 0031")
    assert codec.encode(FLOAT_LATENT) == [golden]
    assert (codec.decode([golden]) == FLOAT_LATENT).all()


# Codes of b bits in a row, first code in the highest bits, zero bits at the end.
UNIFORM = [
    # 10110011 | 1 0000000
    (1, [1, 0, 1, 1, 0, 0, 1, 1, 1], "b3 80"),
    # 00 01 10 11 | 11 000000
    (2, [0, 1, 2, 3, 3], "1b c0"),
    # 000 001 01|0 011 100 1|01 110 111 | 101 00000
    (3, [0, 1, 2, 3, 4, 5, 6, 7, 5], "05 39 77 a0"),
    # 0001 1111 | 1000 0000
    (4, [1, 15, 8], "1f 80"),
    # 10000 000|01 11111 0|0000 0000
    (5, [16, 1, 31, 0], "80 7e 00"),
    # 100000 00|0001 1111|11 000000
    (6, [32, 1, 63], "80 1f c0"),
    # 1000000 0|000001 00|00000 000
    (7, [64, 1, 0], "80 04 00"),
    (7, [127] * 8, "ff ff ff ff ff ff ff"),
    (8, [0, 1, 128, 255], "00 01 80 ff"),
]


@pytest.mark.parametrize(("bits", "codes", "golden"), UNIFORM)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_uniform_writes_its_codes_without_gaps_most_significant_bit_first(
    bits: int, codes: list[int], golden: str, per: str
) -> None:
    top = 2.0**bits - 1
    spec = LatentSpec((len(codes),), (-1.0,) * len(codes), (top - 1,) * len(codes), 1.0)  # step 1: code = value + 1
    codec = fit(f"uniform{bits}/{per}", spec)
    latent = np.array([codes], np.float32) - 1
    assert codec.encode(latent) == [bytes.fromhex(golden)]
    assert (codec.decode([bytes.fromhex(golden)]) == latent).all()


def test_uniform_per_channel_takes_each_channels_own_range() -> None:
    # channel 0: [0, 3], step 1; channel 1: [-3, 0], step 1; 2 bits: 01 10 | 00 11
    codec = fit("uniform2/channel", LatentSpec((2, 2), (0.0, -3.0), (3.0, 0.0), 1.0))
    assert codec.encode(np.array([[[1, 2], [-3, 0]]], np.float32)) == [bytes([0b01100011])]


def test_uniform_of_a_samples_own_range_writes_it_before_the_codes() -> None:
    spec = LatentSpec((2, 2), (-1.0, 0.0), (1.0, 9.0), 1.0)
    latent = np.array([[[1, 4], [-2.5, 0.15625]]], np.float32)
    codec = fit("uniform4/channel/sample", spec)
    # lo = 1, -2.5; hi = 4, 0.15625; codes 0 15 | 0 15
    golden = bytes.fromhex("0000803f 000020c0 00008040 0000203e 0f0f")
    assert codec.encode(latent) == [golden] and (codec.decode([golden]) == latent).all()
    codec = fit("uniform1/tensor/sample", spec)
    # lo = -2.5, hi = 4: 1 1 0 0 | 0000
    golden = bytes.fromhex("000020c0 00008040 c0")
    assert codec.encode(latent) == [golden]
    assert codec.decode([golden]).tolist() == [[[4, 4], [-2.5, -2.5]]]


def test_entropy_writes_lanes_lengths_streams_and_what_was_escaped() -> None:
    # of 2^24: symbol 0 from 0, 2^23 wide; 1 from 2^23, 2^22 wide; the escape from 3·2^22, 2^22 wide
    prior = Prior((0,), ((0, 32768, 49152, 65536),), (1.0,))
    codec = fit("entropy/" + prior.hash, LatentSpec((1, 3), (0.0,), (1.0,), 1.0, prior))
    # backwards from x = 0: the escape of 7 gives 3·2^22; 0 gives (3·2^22 div 2^23 = 1)·2^24 + 2^22; 1 gives 5·2^24 + 2^23
    golden = bytes.fromhex("0100 0400 00008005 0700")
    latent = np.array([[[1, 0, 7]]], np.float32)
    assert codec.encode(latent) == [golden] and (codec.decode([golden]) == latent).all()


def test_entropy_of_many_symbols_is_what_it_was() -> None:
    prior = Prior.of([np.array([1.0, 2, 4, 8, 4, 2, 1]), np.ones(3)], [-3, -1], [0.5, 1.0])
    codec = fit("entropy/" + prior.hash, LatentSpec((2, 3000), (-1.0,) * 2, (1.0,) * 2, 1.0, prior))
    symbols = np.arange(6000).reshape(1, 2, 3000) * 2654435761 % 2**32 / 2**32 * 5 - 2.5
    [payload] = codec.encode(symbols.astype(np.float32))
    assert payload[:2] == b"\x13\0", "lanes"
    assert hashlib.sha256(payload).hexdigest()[:16] == "ceceed195ae85575"


def test_zstd_reads_a_frame_made_by_hand() -> None:
    codec = fit("identity+zstd", FLOATS)
    # RFC 8878: magic; descriptor 0x20: single segment, content size in one byte; 16; one raw block, last, of 16 bytes
    plain = bytes.fromhex("00000000 0000803f 000020c0 0000203e")
    by_hand = bytes.fromhex("28b52ffd 20 10 810000") + plain
    assert (codec.decode([by_hand]) == FLOAT_LATENT).all()
    # one block of a repeated byte (RLE, type 1), last: (16 << 3) | (1 << 1) | 1
    repeated = bytes.fromhex("28b52ffd 20 10 830000 00")
    assert not codec.decode([repeated]).any()


@pytest.mark.skipif(zstandard.ZSTD_VERSION != (1, 5, 7), reason="another Zstandard may compress to other bytes")
def test_zstd_of_the_pinned_version_writes_these_bytes() -> None:
    codec = fit("uniform8/tensor+zstd", LatentSpec((4, 100), (0.0,) * 4, (255.0,) * 4, 1.0))
    latent = np.tile(np.array([0x61, 0x62, 0x63, 0x64], np.float32), 100).reshape(1, 4, 100)
    golden = bytes.fromhex("28b52ffd6090005d00002061626364010089ab8e08")
    [payload] = codec.encode(latent)
    assert (codec.decode([payload]) == latent).all()
    assert payload == golden


def test_every_zstd_frame_states_its_size() -> None:
    for name in ("identity+zstd", "float16+zstd", "uniform3/channel+zstd"):
        codec = fit(name, FLOATS)
        [payload] = codec.encode(FLOAT_LATENT)
        assert zstandard.frame_content_size(payload) == fit(name.removesuffix("+zstd"), FLOATS).max_payload_bytes
