"""One baseline JPEG of a known size and quality: what both ends know of its header need not travel, nor be believed.

ITU-T T.81. The header (quantisation and Huffman tables, size, components) is the one that this end's Pillow writes; its
CRC-32 stands for it before the entropy-coded data, so that ends with other tables refuse one another. 330 bytes less, and a
receiver never parses a stranger's header: size, components, tables, scans are its own, and a marker within the data is
refused. So decoding costs what an image of that size costs; what can be wrong are coefficients, and data that is cut or
extended is read as libjpeg reads it, the rest of the image grey. No simplejpeg: its files decode to other pixels than Pillow's
at the same quality (version 1.9.0, 264 of 300 pictures), and a fixed point of one would be none of the other.
"""

from __future__ import annotations

import io
import re
import zlib
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import CodecError

SIDE = 65_500
"""libjpeg writes no longer side (JPEG_MAX_DIMENSION)"""
PIXELS = 1 << 26
"""of one image, below what Pillow takes for a bomb"""
END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff(?:[^\x00]|\Z)")


class Scan:
    """Images uint8 [height, width], grey, or with three bands [height, width, 3] in 4:2:0, at `quality` 1..95."""

    def __init__(self, height: int, width: int, quality: int, bands: Literal[1, 3] = 1) -> None:
        if max(height, width) > SIDE or height * width > PIXELS:
            raise CodecError(
                f"jpeg: expected a picture of at most {PIXELS} pixels and {SIDE} a side, got {height} x {width}: "
                "this latent is too large or has too many small tiles; use another codec"
            )
        self.shape = (height, width) if bands == 1 else (height, width, bands)
        self._quality = quality

    @cached_property
    def header(self) -> bytes:
        """Start of image to the head of the only scan."""
        blank = self.file(np.zeros(self.shape, np.uint8))
        begin = blank.index(b"\xff\xda")  # start of scan; two bytes say how long its head is
        return blank[: begin + 2 + int.from_bytes(blank[begin + 2 : begin + 4])]

    @cached_property
    def _crc(self) -> bytes:
        return zlib.crc32(self.header).to_bytes(4, "little")

    @property
    def max_bytes(self) -> int:
        # 64 coefficients a block of at most 27 bits each, and every byte may be stuffed
        side, blocks = (8, 1) if len(self.shape) == 2 else (16, 6)
        return 4 + 2 * 216 * blocks * -(-self.shape[0] // side) * -(-self.shape[1] // side)

    def file(self, image: NDArray[np.uint8]) -> bytes:
        from PIL import Image  # here, as no other codec needs it

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=self._quality)
        return buffer.getvalue()

    def encode(self, image: NDArray[np.uint8]) -> bytes:
        file = self.file(image)
        assert file.startswith(self.header) and file.endswith(END), "expected one header for all images of a size"
        return self._crc + file[len(self.header) : -2]

    def decode(self, payload: bytes | memoryview) -> NDArray[np.uint8]:
        """Raises CodecError."""
        data = bytes(payload)
        if not 4 < len(data) <= self.max_bytes or data[:4] != self._crc:
            raise CodecError(
                f"jpeg: expected 5 to {self.max_bytes} bytes that begin with {self._crc.hex()}, got {len(data)} with "
                f"{data[:4].hex()}: sender and receiver hold different artefacts, or JPEG libraries with different tables"
            )
        return self._of_data(data[4:])

    def _of_data(self, data: bytes) -> NDArray[np.uint8]:
        if _MARKER.search(data):
            raise CodecError("jpeg: expected entropy-coded data alone, got a marker within it: the payload was altered")
        return self.pixels(self.header + data + END)

    def passed(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """decode(encode(image))."""
        return self.pixels(self.file(image))

    def read(self, file: bytes) -> NDArray[np.uint8]:
        """The image of a whole file, whose header must be this end's. Raises CodecError."""
        data = file[len(self.header) : -2]
        if not file.startswith(self.header) or not file.endswith(END) or not 0 < len(data) <= self.max_bytes:
            raise CodecError(
                f"jpeg: expected a file of at most {len(self.header) + self.max_bytes + 2} bytes with the header that this end "
                f"writes, got {len(file)} bytes: the payload was altered, or ends have JPEG libraries with different tables"
            )
        return self._of_data(data)

    def pixels(self, file: bytes) -> NDArray[np.uint8]:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
                pixels = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise CodecError(f"jpeg: not data as this codec writes it: {error}") from error
        if pixels.shape != self.shape:
            raise CodecError(f"jpeg: expected an image {list(self.shape)}, got {list(pixels.shape)}")
        return pixels
