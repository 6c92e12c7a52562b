"""ImageNet as a folder of images: the order, the classes, torchvision's geometry, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitcore.data import imagenet, load
from splitcore.data.imagenet import read_image
from splitcore.errors import DataError


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG" if path.suffix == ".png" else "JPEG")
    return path


def flat(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_classes_are_folders_in_order_and_images_come_one_of_each_class_at_a_time(tmp_path: Path) -> None:
    val = tmp_path / "imagenet" / "val"
    for name, values in {"n02": [20, 21], "n01": [10, 11, 12], "n04": [40]}.items():
        for k, value in enumerate(values):
            save(val / name / f"{k}.JPEG", flat(value))
    (val / "n03").mkdir()
    (val / "n01" / "notes.txt").write_text("no image")
    (val / "synsets.txt").write_text("no folder")
    dataset = load("imagenet", "test", tmp_path, progress=False)
    assert dataset.classes == ("n01", "n02", "n03", "n04")
    assert dataset.labels.tolist() == [0, 1, 3, 0, 1, 0]
    assert dataset.images[:, 0, 100, 100].tolist() == [10, 20, 40, 11, 21, 12]
    assert dataset.shape == (3, 224, 224)


def test_a_part_that_fits_into_memory_is_the_first_of_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        for k in range(3):
            save(tmp_path / "imagenet" / "train" / name / f"{k}.png", flat(k))
    monkeypatch.setattr(imagenet, "MAX_IMAGES", 6)
    dataset = load("imagenet", "train", tmp_path, progress=False)
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert 1000 <= imagenet.MAX_BYTES // (3 * 224 * 224) < 20_000


@pytest.mark.parametrize(
    ("height", "width", "resized", "top", "left"),
    [
        (256, 256, (256, 256), 16, 16),
        (256, 339, (256, 339), 16, 58),
        (512, 342, (383, 256), 80, 16),
        (100, 133, (256, 340), 16, 58),
    ],
)
def test_an_image_is_resized_and_cut_as_torchvision_does(
    height: int, width: int, resized: tuple[int, int], top: int, left: int, tmp_path: Path
) -> None:
    """Resize(256) makes the long side int(256 * long / short), CenterCrop(224) begins at int(round((side - 224) / 2))."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    whole = np.asarray(Image.fromarray(pixels).resize(resized[::-1], Image.Resampling.BILINEAR))
    expected = whole[top : top + 224, left : left + 224].transpose(2, 0, 1)
    got = read_image(save(tmp_path / "x.png", pixels))
    assert (got.shape, got.dtype, got.flags.c_contiguous) == ((3, 224, 224), np.uint8, True)
    np.testing.assert_array_equal(got, expected)


def test_gray_images_become_colour_and_turned_ones_stay_as_stored(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (256, 256))
    assert read_image(save(tmp_path / "gray.png", ramp.copy()))[:, 5, 0].tolist() == [16, 16, 16]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.png"
    Image.fromarray(ramp.copy()).save(turned, exif=exif)
    assert read_image(turned)[0, 0, :3].tolist() == [16, 17, 18], "torchvision's loader ignores EXIF"
    cmyk = tmp_path / "cmyk.jpg"
    Image.new("CMYK", (300, 300)).save(cmyk)
    assert read_image(cmyk).min() >= 254, "no ink is white"


def test_folders_and_files_that_are_none_are_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imagenet/val, there is none: unpack ImageNet there"):
        load("imagenet", "test", tmp_path)
    (tmp_path / "imagenet" / "val" / "n01").mkdir(parents=True)
    with pytest.raises(DataError, match="found none"):
        load("imagenet", "test", tmp_path)
    bad = tmp_path / "imagenet" / "val" / "n01" / "x.JPEG"
    bad.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"x\.JPEG is no PNG or JPEG"):
        load("imagenet", "test", tmp_path, progress=False)
    whole = save(tmp_path / "whole.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:400])
    with pytest.raises(DataError, match=r"cut\.jpg is no PNG or JPEG"):
        read_image(cut)


def test_a_line_that_would_be_resized_to_gigabytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pixels, got 60000x1"):
        read_image(save(tmp_path / "line.png", flat(0, 1, 60_000)))
