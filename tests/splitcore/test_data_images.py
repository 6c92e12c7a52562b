"""Folders of images: order, shape, labels, and files that are none."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitcore.data import folder
from splitcore.data.images import read_image
from splitcore.errors import DataError

GRAY, COLOUR = (1, 8, 8), (3, 8, 8)


def save(path: Path, pixels: np.ndarray, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)  # type: ignore[arg-type]
    return path


def flat(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def test_images_come_sorted_by_name_and_without_labels(tmp_path: Path) -> None:
    for name, value in [("b.png", 20), ("a.PNG", 10), ("c.jpg", 30)]:
        save(tmp_path / name, flat(value))
    (tmp_path / "notes.txt").write_text("no image")
    images = folder(tmp_path, GRAY)
    assert [path.name for path in images.paths] == ["a.PNG", "b.png", "c.jpg"]
    assert images.images.shape == (3, 1, 8, 8)
    assert images.images.dtype == np.uint8
    assert images.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert images.labels is None


def test_sub_folders_name_the_classes(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "1.png", flat(1))
    save(tmp_path / "cat" / "1.png", flat(2))
    images = folder(tmp_path, GRAY, ("bird", "cat", "dog"))
    assert images.labels is not None
    assert images.labels.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"expected sub-folders named after .*'fish'.*got \['cat', 'dog'\]"):
        folder(tmp_path, GRAY, ("fish",))


def test_an_image_of_the_models_size_passes_bit_by_bit(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    path = save(tmp_path / "x.png", pixels)
    np.testing.assert_array_equal(read_image(path, COLOUR), pixels.transpose(2, 0, 1))


def test_a_wide_image_is_cut_around_its_centre(tmp_path: Path) -> None:
    pixels = np.concatenate([flat(0, 16, 16), flat(200, 16, 16), flat(0, 16, 16)], axis=1)
    assert (read_image(save(tmp_path / "x.png", pixels), GRAY) == 200).all()


def test_gray_becomes_rgb_rgb_gray_and_16_bits_8(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "gray.png", flat(7)), COLOUR).tolist() == np.full((3, 8, 8), 7).tolist()
    assert (read_image(save(tmp_path / "rgb.png", np.stack([flat(9)] * 3, -1)), GRAY) == 9).all()
    assert (read_image(save(tmp_path / "deep.png", flat(1).astype(np.uint16) * 257 * 40), GRAY) == 40).all()


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.concatenate([flat(0, 4, 8), flat(255, 4, 8)])
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright = read_image(save(tmp_path / "x.png", pixels, exif=exif), GRAY)
    assert (upright[0, :4] == 255).all()


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).read_bytes()
    for content in (b"", b"GIF89a not allowed", whole[:200], whole[:40]):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.png is no PNG or JPEG"):
            read_image(tmp_path / "x.png", GRAY)


def test_a_file_with_too_many_pixels_is_refused_unopened(tmp_path: Path) -> None:
    png = bytearray(save(tmp_path / "bomb.png", flat(1)).read_bytes())
    png[16:24] = (9000).to_bytes(4, "big") * 2  # width and height in the header, which has a CRC
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(DataError, match="9000x9000"):
        read_image(tmp_path / "bomb.png", GRAY)
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(DataError, match="no PNG or JPEG that can be read"):
        read_image(tmp_path / "bomb.png", GRAY)


def test_an_empty_or_absent_folder_and_a_model_of_two_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        folder(tmp_path, GRAY)
    with pytest.raises(DataError, match="there is none"):
        folder(tmp_path / "absent", GRAY)
    save(tmp_path / "x.png", flat(1))
    with pytest.raises(DataError, match="1 or 3 channels"):
        folder(tmp_path, (2, 8, 8))
