"""A folder of PNG and JPEG files as the model's images: upright, cut to its shape around the centre, resized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg"}
MAX_PIXELS = 1 << 26
"""pixels of one file at most: 64 million, more than any phone's camera gives"""
MAX_BYTES = 1 << 31
"""of all images together, at the model's size"""


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Images uint8 [n, C, H, W] in the order of `paths`; `labels` int64 [n] where sub-folders name the classes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)


def folder(path: Path, shape: tuple[int, int, int], classes: tuple[str, ...] = ()) -> ImageFolder:
    """The images in `path`, sorted, as `shape` = [C, H, W]; or those of its sub-folders, each named after a class.

    Raises DataError for a folder without images, one that is none of `classes`, and a file that is no PNG or JPEG.
    """
    if not path.is_dir():
        raise DataError(f"expected a folder of images at {path}, there is none")
    files = _files(path)
    labels: NDArray[np.int64] | None = None
    if not files:
        named = [(file, sub.name) for sub in sorted(path.iterdir()) if sub.is_dir() for file in _files(sub)]
        unknown = sorted({name for _, name in named} - set(classes))
        if unknown:
            raise DataError(
                f"{path}: expected sub-folders named after the model's classes {list(classes)}, got {unknown[:10]}: "
                "rename them, or put all images into one folder to go without labels"
            )
        files = [file for file, _ in named]
        labels = np.array([classes.index(name) for _, name in named], np.int64)
    if not files:
        raise DataError(f"{path}: expected {', '.join(sorted(SUFFIXES))} files in it or in its sub-folders, found none")
    if len(files) * int(np.prod(shape)) > MAX_BYTES:
        raise DataError(f"{path}: expected at most {MAX_BYTES} bytes of images, {len(files)} files of {list(shape)} are more")
    return ImageFolder(np.stack([read_image(file, shape) for file in files]), labels, tuple(files))


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def read_image(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One file as uint8 [C, H, W]; C is 1 for gray or 3 for RGB. Raises DataError."""
    from PIL import Image, ImageOps  # imported here: only a phone with a folder needs Pillow

    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"images from files have 1 or 3 channels, the model wants {channels}: use its own samples")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: expected at most {MAX_PIXELS} pixels, got {image.width}x{image.height}")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # 16 bits a pixel, which convert() would clip
                upright = Image.fromarray((np.asarray(upright) / 257).astype(np.uint8))
            plain = upright.convert("L" if channels == 1 else "RGB")
            # cut first, so that nothing from outside the cut bleeds in when it is resized
            scale = min(plain.width / width, plain.height / height)
            wide, high = max(1, round(width * scale)), max(1, round(height * scale))
            left, top = (plain.width - wide) // 2, (plain.height - high) // 2
            cut = plain.crop((left, top, left + wide, top + high))
            fitted = cut.resize((width, height), Image.Resampling.BICUBIC)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no PNG or JPEG that can be read: {error}") from error
    pixels = np.asarray(fitted, np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
