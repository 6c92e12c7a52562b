"""The literature's JPEG of features: what its files are, what re-encoding costs, and what a stranger's files can do."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from splitcore.codec import Codec, fit, jpeg_triples
from splitcore.codec.jpeg_scan import END
from splitcore.codec.jpeg_triples import TriplesCodec
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec

HUGE = struct.pack(">HHBHHB", 0xFFC0, 17, 8, 65500, 65500, 3) + bytes([1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])


def codec_of(shape: tuple[int, ...], quality: int = 95) -> TriplesCodec:
    """A step of 1: the pixel is the value."""
    codec = fit(f"jpeg{quality}/rgb-triples", LatentSpec(shape, (0.0,) * shape[0], (255.0,) * shape[0], 1.0))
    assert isinstance(codec, TriplesCodec)
    return codec


def smooth(shape: tuple[int, ...], k: int = 1, seed: int = 0) -> F32:
    y, x = np.mgrid[: shape[-2], : shape[-1]].astype(np.float32)
    phase = np.random.default_rng(seed).uniform(0, 9, (k, *shape[:-2], 1, 1)).astype(np.float32)
    return (128 + 100 * np.sin(x / 5 + phase) * np.cos(y / 7 + 2 * phase)).astype(np.float32)


def files_of(payload: bytes, n: int) -> list[bytes]:
    lengths = struct.unpack_from(f"<{n}I", payload)
    ends = (4 * n + np.cumsum(lengths)).tolist()
    assert ends[-1] == len(payload)
    return [payload[begin:end] for begin, end in zip([4 * n, *ends], ends, strict=False)]


@pytest.mark.parametrize("quality", [10, 75, 95])
def test_a_payload_is_the_files_that_pillow_writes_of_channels_in_threes(quality: int) -> None:
    latent = smooth((8, 13, 21))
    codec = codec_of((8, 13, 21), quality)
    [payload] = codec.encode(latent)
    arrived = codec.decode([payload])[0]
    pixels = np.rint(latent[0]).astype(np.uint8)
    for file, bands in zip(files_of(payload, 3), ([0, 1, 2], [3, 4, 5], [6, 7, 7]), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels[bands].transpose(1, 2, 0))).save(buffer, "JPEG", quality=quality)
        assert file == buffer.getvalue()
        with Image.open(io.BytesIO(file)) as image:
            assert image.mode == "RGB" and [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)], "4:2:0"
            shown = np.asarray(image)
        for band, channel in enumerate(bands):
            if channel != 7 or band == 1:
                np.testing.assert_array_equal(arrived[channel], shown[..., band])


def test_a_channel_leaks_into_its_triple_and_no_further() -> None:
    codec = codec_of((6, 16, 16))
    latents = smooth((6, 16, 16))
    changed = latents.copy()
    changed[0, 1] = 255 - changed[0, 1]
    before, after = codec.snap(latents)[0], codec.snap(changed)[0]
    assert (before[[0, 2]] != after[[0, 2]]).any()
    np.testing.assert_array_equal(before[3:], after[3:])


def test_another_round_loses_more_so_the_codec_says_that_it_does_not_settle() -> None:
    codec = codec_of((3, 29, 29))
    once = codec.snap(smooth((3, 29, 29)))
    assert not codec.settles and (codec.snap(once) != once).any()


@pytest.mark.parametrize("suffix", ["", "+zstd"])
def test_whoever_changes_a_payload_sends_what_was_measured(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_triples, "KEPT", 4)
    plain = codec_of((7, 12, 10))
    codec: Codec = fit(plain.name + suffix, plain.latent)
    [payload] = codec.encode(smooth((7, 12, 10)))
    centre = codec.decode([payload])[0]
    grid = codec.as_sent(payload)
    assert grid.name == codec.name and grid.settles
    rng = np.random.default_rng(0)
    for _ in range(5):  # more than is remembered: the payload's own files stay
        moved = centre + rng.normal(0, 20, (6, 7, 12, 10)).astype(np.float32)
        arrived = grid.snap(moved)
        nearer = grid.snap_towards(moved[:2], centre)
        assert codec.decode(grid.encode(arrived)).tobytes() == arrived.tobytes() == grid.snap(arrived).tobytes()
        assert codec.decode(grid.encode(nearer)).tobytes() == nearer.tobytes()
        assert (np.abs(nearer - centre) <= np.abs(moved[:2] - centre)).all()
        # pictures are coded apart: a latent put together of two that were seen is one that can arrive
        mixed = np.where(np.arange(7)[:, None, None] < 3, arrived[0], arrived[1])[None]
        assert grid.snap(mixed).tobytes() == mixed.tobytes()
        assert grid.encode(centre[None]) == [payload]


def test_towards_the_centre_a_picture_of_which_a_coordinate_would_end_farther_is_the_centres() -> None:
    codec = codec_of((6, 8, 8))
    centre = codec.snap(smooth((6, 8, 8)))[0]
    moved = centre + np.random.default_rng(1).normal(0, 40, (10, 6, 8, 8)).astype(np.float32)
    moved[:, 0, 0, 0] = centre[0, 0, 0]  # does not move, so that nothing of the first picture may
    towards = codec.snap_towards(moved, centre)
    assert (np.abs(towards - centre) <= np.abs(moved - centre)).all()
    np.testing.assert_array_equal(towards[:, :3], np.broadcast_to(centre[:3], (10, 3, 8, 8)))


MARKERS = {"a header": HUGE, "an end": END, "a restart": b"\xff\xd0", "a picture": b"\xff\xd8"}


@pytest.mark.parametrize("marker", MARKERS)
def test_a_file_with_a_marker_within_its_data_is_refused_unopened(marker: str) -> None:
    codec = codec_of((3, 12, 10))
    [file] = codec.files(codec.encode(smooth((3, 12, 10)))[0])
    tracemalloc.start()
    try:
        for at in (len(codec.scan.header), len(codec.scan.header) + 9, len(file) - 2):
            with pytest.raises(CodecError, match="marker"):
                codec.decode(codec.joined([file[:at].rstrip(b"\xff") + MARKERS[marker] + file[at:]]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_with_another_header_or_size_is_refused() -> None:
    codec = codec_of((3, 12, 10))
    [file] = codec.files(codec.encode(smooth((3, 12, 10)))[0])
    at = file.index(b"\xff\xc0") + 5
    larger = file[:at] + struct.pack(">HH", 60000, 60000) + file[at + 4 :]
    [other] = codec_of((3, 12, 10), 94).files(codec_of((3, 12, 10), 94).encode(smooth((3, 12, 10)))[0])
    for wrong in (
        larger,
        other,
        file[:-2],
        file[:-1] + b"\0",
        b"",
        file[: len(codec.scan.header)] + END,
        file + b"\0" * 10_000,
    ):
        with pytest.raises(CodecError, match="header that this end writes"):
            codec.decode(codec.joined([wrong]))


@pytest.mark.parametrize("wrong", [b"", b"\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80" + b"\0" * 40])
def test_lengths_that_do_not_add_up_are_refused(wrong: bytes) -> None:
    with pytest.raises(CodecError, match="add up"):
        codec_of((3, 12, 10)).decode([wrong])


def test_many_small_files_of_large_pictures_are_refused_by_what_they_add_up_to() -> None:
    codec = codec_of((3, 2048, 2048), 20)
    [payload] = codec.encode(np.full((1, 3, 2048, 2048), 128, np.float32))
    with pytest.raises(CodecError, match="several requests"):
        codec.decode([payload] * 6)
    small = codec_of((3, 1, 1))
    [payload] = small.encode(np.full((1, 3, 1, 1), 128, np.float32))
    with pytest.raises(CodecError, match="several requests"):
        small.decode([payload] * ((1 << 26) // 768 + 1))


def test_a_picture_that_jpeg_cannot_hold_is_refused() -> None:
    for shape in ((3, 1, 70_000), (70_000 * 4, 1, 1)):
        with pytest.raises(CodecError, match=r"pictures? of at most"):
            codec_of(shape)
