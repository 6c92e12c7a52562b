"""`imagenet`: a folder of images, a sub-folder a class, as ILSVRC 2012 is commonly unpacked; nothing is downloaded.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. A class is its folder's place in the sorted
names, and an image its centre 224x224 when the shorter side has 256: both as torchvision has them, whose weights are used here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from splitcore.data.dataset import Dataset, Split
from splitcore.data.images import MAX_BYTES, MAX_PIXELS, SUFFIXES
from splitcore.errors import DataError

FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}
RESIZED, SIDE = 256, 224
MAX_IMAGES = MAX_BYTES // (3 * SIDE * SIDE)
"""14,266; of more, the first ones of every class, for a data set is in memory"""


def load(split: Split, data_dir: Path, *, progress: bool = True) -> Dataset:
    """From `data_dir/imagenet/train` or `val`: first the first image of every class, then the second, and so on.

    In that order, since an artefact carries the first images of a data set. Raises DataError.
    """
    folder = data_dir / "imagenet" / FOLDERS[split]
    if not folder.is_dir():
        raise DataError(
            f"expected a folder with a sub-folder of images for each class at {folder}, there is none: unpack ImageNet there, "
            "or link to it, or say --data-dir or LATENTBED_DATA"
        )
    # an empty folder keeps its place, so that a part of ImageNet can have the whole one's classes
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    ranked = [
        (rank, label, file)
        for label, name in enumerate(classes)
        for rank, file in enumerate(sorted(f for f in (folder / name).iterdir() if f.suffix.lower() in SUFFIXES))
    ]
    ranked = sorted(ranked)[:MAX_IMAGES]
    if not ranked:
        raise DataError(f"{folder}: expected {', '.join(sorted(SUFFIXES))} files in sub-folders, found none")
    images = np.empty((len(ranked), 3, SIDE, SIDE), np.uint8)
    for image, (_, _, file) in zip(images, track(ranked, f"reading {folder}", disable=not progress), strict=True):
        image[:] = read_image(file)
    return Dataset(images, np.array([label for _, label, _ in ranked], np.int64), classes, "imagenet", split)


def read_image(path: Path) -> NDArray[np.uint8]:
    """One file as uint8 [3, 224, 224], bilinear, not turned by its EXIF: torchvision's. Raises DataError."""
    from PIL import Image  # imported here: only who has the files needs Pillow

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            short = min(image.size)
            # the long side is cut off to an integer, the offsets are rounded, as torchvision does
            width, height = (RESIZED * side // short for side in image.size)
            if max(image.width * image.height, width * height) > MAX_PIXELS:
                raise DataError(f"{path}: expected at most {MAX_PIXELS} pixels, got {image.width}x{image.height}")
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no PNG or JPEG that can be read: {error}") from error
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    pixels = np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)), np.uint8)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
