"""The JPEG codec: the mosaic, the fixed point that is sent, and what a stranger's bytes can do, which is little."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image, features

from splitcore.codec import Codec, fit, jpeg
from splitcore.codec.jpeg import JpegCodec, near_square
from splitcore.codec.jpeg_scan import END, Scan
from splitcore.errors import CodecError
from splitcore.latent import F32, MAX_ELEMENTS, LatentSpec


def codec_of(name: str, shape: tuple[int, ...]) -> JpegCodec:
    """A step of 1: the pixel is the value."""
    codec = fit(name, LatentSpec(shape, (0.0,) * shape[0], (255.0,) * shape[0], 1.0))
    assert isinstance(codec, JpegCodec)
    return codec


def hard(shape: tuple[int, ...], k: int, seed: int = 0) -> F32:
    """Noise far beyond the range on both sides: what settles last."""
    return np.random.default_rng(seed).normal(128, 200, (k, *shape)).astype(np.float32)


def picture(codec: JpegCodec, payload: bytes) -> np.ndarray:
    """What anyone's JPEG reader sees once the header is put back."""
    return np.asarray(Image.open(io.BytesIO(codec._scan.header + payload[4:] + END)))


def test_the_payload_is_a_grey_jpeg_of_the_tiles_once_its_header_is_put_back() -> None:
    codec = codec_of("jpeg90", (6, 9, 12))
    latents = hard((6, 9, 12), 1)
    [payload] = codec.encode(latents)
    mosaic = picture(codec, payload)
    assert mosaic.shape == (2 * 16, 3 * 16)
    for channel, tile in enumerate(codec.decode([payload])[0]):
        row, column = divmod(channel, 3)
        np.testing.assert_array_equal(mosaic[16 * row :, 16 * column :][:9, :12], tile)


def test_a_block_of_one_grey_is_written_as_the_standard_says() -> None:
    codec = codec_of("jpeg75", (1, 8, 8))
    # difference 0 of DC: 00; end of block: 1010; filled up with ones (T.81, tables K.3 and K.5)
    [payload] = codec.encode(np.full((1, 1, 8, 8), 128, np.float32))
    assert payload[4:] == bytes([0b00101011])
    # 136 - 128 = 8 a pixel: DC 64 / 8 = 8, category 4: 101, 1000; then 1010, 11
    [payload] = codec.encode(np.full((1, 1, 8, 8), 136, np.float32))
    assert payload[4:] == bytes([0b10110001, 0b01011111])


@pytest.mark.skipif(features.version("libjpeg_turbo") is None, reason="another JPEG library may write another header")
def test_the_header_is_the_one_that_both_ends_know() -> None:
    header = Scan(16, 24, 50).header
    assert header[:2] == b"\xff\xd8" and header.endswith(bytes.fromhex("ffda 0008 01 0100 003f00"))
    assert struct.pack(">HHBHH", 0xFFC0, 11, 8, 16, 24) in header
    assert 300 < len(header) < 340, "what the payload saves"


@pytest.mark.parametrize(
    ("n", "grid"), [(1, (1, 1)), (3, (1, 3)), (12, (3, 4)), (24, (4, 6)), (512, (16, 32)), (7, (1, 7)), (36, (6, 6))]
)
def test_the_mosaic_is_near_square(n: int, grid: tuple[int, int]) -> None:
    assert near_square(n) == grid


@pytest.mark.parametrize(
    ("shape", "size"), [((20,), (8, 24)), ((5, 20), (16, 24)), ((3, 5, 20), (16, 72)), ((2, 2, 9, 9), (32, 32))]
)
def test_vectors_and_tokens_are_one_tile(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    codec = codec_of("jpeg75", shape)
    ramp = np.broadcast_to(np.linspace(20, 230, shape[-1], dtype=np.float32), (1, *shape))
    [payload] = codec.encode(ramp)
    assert picture(codec, payload).shape == size
    assert np.abs(codec.decode([payload]) - ramp).max() < 12


@pytest.mark.parametrize("quality", [1, 10, 50, 90, 95])
def test_what_settles_block_by_block_is_what_the_whole_picture_settles_to(quality: int) -> None:
    codec = codec_of(f"jpeg{quality}", (4, 13, 8))
    latents = hard((4, 13, 8), 2)
    rows = [*range(12), *range(11, 7, -1), *[12] * 8]  # 13 = 8 + 4 + 1, the last two mirrored
    for row, latent in enumerate(latents):
        pixels = np.clip(np.rint(latent), 0, 255).astype(np.uint8)
        for _ in range(40):
            mosaic = pixels[:, rows].reshape(2, 2, 24, 8).swapaxes(1, 2).reshape(48, 16)
            buffer = io.BytesIO()
            Image.fromarray(mosaic).save(buffer, "JPEG", quality=quality)
            pixels = np.asarray(Image.open(buffer)).reshape(2, 24, 2, 8).swapaxes(1, 2).reshape(4, 24, 8)[:, [*range(12), 16]]
        np.testing.assert_array_equal(codec.snap(latents)[row], pixels)


@pytest.mark.parametrize("quality", range(1, 96))
def test_a_flat_block_of_any_value_settles_within_three_rounds(quality: int) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(8, axis=0).repeat(8, axis=1)
    scan = Scan(128, 128, quality)
    for _ in range(3):
        pixels = scan.passed(pixels)
    np.testing.assert_array_equal(scan.passed(pixels), pixels)


@pytest.mark.parametrize("rounds", [4, 5])
def test_blocks_that_do_not_settle_in_time_are_sent_flat(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "ROUNDS", rounds + 3)
    codec = codec_of("jpeg95", (4, 32, 32))
    latents = hard((4, 32, 32), 2)
    arrived = codec.snap(latents)
    assert codec.encode(arrived) == codec.encode(latents) and codec.snap(arrived).tobytes() == arrived.tobytes()
    blocks = arrived.reshape(-1, 4, 8, 4, 8).swapaxes(2, 3).reshape(-1, 64)
    flat = (blocks == blocks[:, :1]).all(axis=1)
    assert flat.any() and not flat.all()


@pytest.mark.parametrize("side", range(1, 18))
def test_what_fills_up_a_block_comes_back_mirrored_whatever_the_side(side: int) -> None:
    codec = codec_of("jpeg60", (1, side, side))
    blocks = codec._blocks(codec._pixels.codes(hard((1, side, side), 20)))
    np.testing.assert_array_equal(codec._passed(blocks), codec._blocks(codec._whole(codec._passed(blocks))))


def test_a_channel_does_not_leak_into_its_neighbours() -> None:
    codec = codec_of("jpeg30", (4, 11, 11))
    latents = hard((4, 11, 11), 1)
    changed = latents.copy()
    changed[0, 1] = 255 - changed[0, 1]
    others = [0, 2, 3]
    np.testing.assert_array_equal(codec.snap(changed)[0, others], codec.snap(latents)[0, others])


def test_more_quality_is_more_bytes_and_less_distortion() -> None:
    y, x = np.mgrid[:29, :29].astype(np.float32)
    smooth = (128 + 100 * np.sin(x / 5 + np.arange(12)[:, None, None]) * np.cos(y / 7))[None]
    rows = []
    for quality in (10, 50, 90, 95):
        codec = codec_of(f"jpeg{quality}", (12, 29, 29))
        rows.append((len(codec.encode(smooth)[0]), float(np.abs(codec.snap(smooth) - smooth).mean())))
    assert [size for size, _ in rows] == sorted(size for size, _ in rows)
    assert [error for _, error in rows] == sorted((error for _, error in rows), reverse=True) and rows[-1][1] < 1


def test_towards_the_centre_no_coordinate_ends_farther() -> None:
    codec: Codec = codec_of("jpeg75", (3, 12, 10))
    centre = codec.snap(hard((3, 12, 10), 1))[0]
    moved = centre + np.random.default_rng(1).normal(0, 30, (10, 3, 12, 10)).astype(np.float32)
    moved[:, 0] = centre[0]
    towards = codec.snap_towards(moved, centre)
    assert codec.coupled and (np.abs(towards - centre) <= np.abs(moved - centre)).all()
    assert codec.snap(towards).tobytes() == towards.tobytes()


HUGE = struct.pack(">HHBHHB3B", 0xFFC0, 11, 8, 65535, 65535, 1, 1, 0x11, 0)
TABLES = b"\xff\xdb" + struct.pack(">H", 67) + bytes([0]) + b"\xff" * 64
MARKERS = {"a header": HUGE, "other tables": TABLES, "an end": END, "a restart": b"\xff\xd0", "a picture": b"\xff\xd8"}


@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_within_the_data_is_refused_unopened_when_it_is(marker: str) -> None:
    codec = codec_of("jpeg75", (3, 12, 10))
    [payload] = codec.encode(hard((3, 12, 10), 1))
    tracemalloc.start()
    try:
        for at in (4, 20, len(payload)):
            with pytest.raises(CodecError, match="marker"):
                codec.decode([payload[:at].rstrip(b"\xff") + MARKERS[marker] + payload[at:]])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_whole_jpeg_file_or_that_of_other_tables_is_refused() -> None:
    codec = codec_of("jpeg75", (3, 12, 10))
    [payload] = codec.encode(hard((3, 12, 10), 1))
    for wrong in (codec._scan.header + payload[4:] + END, codec_of("jpeg74", (3, 12, 10)).encode(hard((3, 12, 10), 1))[0]):
        with pytest.raises(CodecError, match="different tables"):
            codec.decode([wrong])


@pytest.mark.parametrize("shape", [(1, 1, 70_000), (8209, 8, 8), (70_000, 9), (1 << 21, 1, 1)])
def test_a_mosaic_that_jpeg_cannot_hold_is_refused(shape: tuple[int, ...]) -> None:
    latent = LatentSpec(shape, (0.0,) * shape[0], (1.0,) * shape[0], 1.0)
    with pytest.raises(CodecError, match="picture of at most"):
        fit("jpeg75", latent)


def test_many_small_payloads_of_large_pictures_are_refused_by_what_they_add_up_to() -> None:
    codec = codec_of("jpeg75", (1, 2048, 2048))
    [payload] = codec.encode(np.full((1, 1, 2048, 2048), 128, np.float32))
    with pytest.raises(CodecError, match="several requests"):  # as many pixels as elements: nothing is filled up
        codec.decode([payload] * (MAX_ELEMENTS // 2048**2 + 1))
    small = codec_of("jpeg75", (64, 1, 1))
    [payload] = small.encode(np.full((1, 64, 1, 1), 128, np.float32))
    with pytest.raises(CodecError, match="several requests"):
        small.decode([payload] * (MAX_ELEMENTS // (64 * 64) + 1))
