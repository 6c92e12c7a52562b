"""`jpeg<quality>`: the latent as one grey mosaic through baseline JPEG.

After Alvar and Bajić, "Multi-task learning with compressible features for collaborative intelligence", ICIP 2019: 8 bits on the
calibrated range of each channel, channels as tiles of one grey image. A latent [T, D] is one tile; a vector [D] one tile of one
row. No 8x8 block holds two channels: what is left of a tile's side beyond multiples of 8 is cut into 4, 2 and 1, each mirrored
until it fills a block. Its cosine coefficients at other than multiples of 2, 4 and 8 are then zero, before and after, so that a
decoded block is mirrored as well, and nothing that was filled in weighs on the next encoding. (Padding by repeated edges has no
such grid of its own: one block in ten of a 28 x 28 tile never settled in the sense of the next paragraph.)

JPEG of a decoded JPEG is another one: pixels are rounded and clipped. So `encode` sends a fixed point. The blocks of a grey
baseline JPEG are coded apart, and each goes through until it comes back as it was: smooth ones at quality 85 and below at
once, clipped or noisy ones within some 15 rounds. One in some hundred at most goes round and round; what has not settled after
ROUNDS is sent flat, as its mean, which always settles (tested for every value and quality). So snap∘snap = snap holds of all
that `encode` writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitcore.codec.base import STRICT, Codec
from splitcore.codec.jpeg_scan import PIXELS, Scan
from splitcore.codec.uniform import Uniform, UniformCodec
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec

T = TypeVar("T", bound=np.generic)
U8 = NDArray[np.uint8]
ROUNDS = 16
"""of a block through JPEG before it is given up, and again for what it is sent as"""
TOGETHER = 1 << 14
"""blocks that go through JPEG in one image while they settle"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Jpeg:
    """Baseline JPEG of the latent as a grey picture."""

    kind: Literal["jpeg"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=95)] = 75
    """libjpeg's scale; above 95 files grow and nothing is gained"""
    zstd: bool = False
    """each payload through Zstandard"""

    def plain(self, latent: LatentSpec) -> Codec:
        return JpegCodec(self, latent)


class JpegCodec(Codec):
    """A grid of tiles [rows, columns], each [8·h, 8·w] pixels; 8x8 blocks [k·rows·columns·h·w, 8, 8] while they settle."""

    coupled = True
    varies = True

    def __init__(self, config: Jpeg, latent: LatentSpec) -> None:
        self.name = f"jpeg{config.quality}"
        self.latent = latent
        self._pixels = UniformCodec(Uniform(bits=8, per="channel"), latent)
        self.lo, self.hi, self.step = self._pixels.lo, self._pixels.hi, self._pixels.step
        self._size = (latent.shape[-2] if len(latent.shape) > 1 else 1, latent.shape[-1])
        self._tiles = math.prod(latent.shape[:-2])
        self._grid = near_square(self._tiles)
        self._shown = [mirrored(side) for side in self._size]
        """[8·h] and [8·w]: the tile's row and column that a row and column of its blocks show"""
        self._found = [np.unique(shown, return_index=True)[1] for shown in self._shown]
        """the inverse, [height] and [width]"""
        self._h, self._w = (len(shown) // 8 for shown in self._shown)
        self._scan = Scan(8 * self._h * self._grid[0], 8 * self._w * self._grid[1], config.quality)
        self._quality = config.quality

    def _blocks(self, pixels: NDArray[T]) -> NDArray[T]:
        """Pixels [k, *shape] to blocks [k·tiles·h·w, 8, 8]."""
        tiles = pixels.reshape(-1, *self._size)[:, self._shown[0]][:, :, self._shown[1]]
        return tiles.reshape(-1, self._h, 8, self._w, 8).swapaxes(2, 3).reshape(-1, 8, 8)

    def _whole(self, blocks: NDArray[T]) -> NDArray[T]:
        """The inverse of `_blocks`."""
        tiles = blocks.reshape(-1, self._h, self._w, 8, 8).swapaxes(2, 3).reshape(-1, 8 * self._h, 8 * self._w)
        return tiles[:, self._found[0]][:, :, self._found[1]].reshape(-1, *self.latent.shape)

    def _settled(self, latents: F32) -> U8:
        """Latents [k, *shape] to blocks that JPEG gives back as they are."""
        blocks = self._blocks(self._pixels.codes(latents))
        for at in range(0, len(blocks), TOGETHER):
            self._settle(blocks[at : at + TOGETHER])
        return blocks

    def _settle(self, blocks: U8) -> None:
        """In place."""
        left = np.arange(len(blocks))
        for turn in range(2 * ROUNDS):
            if turn == ROUNDS:
                blocks[left] = np.rint(blocks[left].mean((1, 2), keepdims=True)).astype(np.uint8)
            before = blocks[left]
            after = self._passed(before)
            blocks[left] = after
            left = left[(after != before).any((1, 2))]
            if not len(left):
                return
        raise AssertionError("flat blocks settle")

    def _passed(self, blocks: U8) -> U8:
        """Blocks [n, 8, 8] through one JPEG."""
        n = len(blocks)
        side = math.isqrt(n - 1) + 1
        image = np.zeros((side * side, 8, 8), np.uint8)
        image[:n] = blocks
        mosaic = np.ascontiguousarray(image.reshape(side, side, 8, 8).swapaxes(1, 2)).reshape(8 * side, 8 * side)
        back = Scan(8 * side, 8 * side, self._quality).passed(mosaic)
        return back.reshape(side, 8, side, 8).swapaxes(1, 2).reshape(-1, 8, 8)[:n]

    def encode(self, latents: F32) -> list[bytes]:
        rows, columns = self._grid
        blocks = self._settled(latents).reshape(len(latents), rows, columns, self._h, self._w, 8, 8)
        mosaics = np.ascontiguousarray(blocks.transpose(0, 1, 3, 5, 2, 4, 6)).reshape(len(latents), *self._scan.shape)
        return [self._scan.encode(mosaic) for mosaic in mosaics]

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        k = len(payloads)
        pixels = math.prod(self._scan.shape)
        if k * pixels > PIXELS:
            # a few bytes are a grey image of any size, so the message does not bound what it expands to
            raise CodecError(
                f"{self.name}: expected at most {PIXELS // pixels} latents of shape {self.latent.shape} at once, got {k}: "
                "send them in several requests"
            )
        rows, columns = self._grid
        mosaics = np.empty((k, *self._scan.shape), np.uint8)
        for row, payload in enumerate(payloads):
            mosaics[row] = self._scan.decode(payload)
        tiles = mosaics.reshape(k, rows, 8 * self._h, columns, 8 * self._w).swapaxes(2, 3).reshape(-1, 8 * self._h, 8 * self._w)
        codes = tiles[:, self._found[0]][:, :, self._found[1]].reshape(k, *self.latent.shape)
        return self._pixels.values(codes)

    def snap(self, latents: F32) -> F32:
        return self._pixels.values(self._whole(self._settled(latents)))

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        """Blocks stand or fall together: one of which a coordinate would end farther is the centre's."""
        nearest = self.snap(latents)
        farther = self._blocks(np.abs(nearest - centre) > np.abs(latents - centre))
        farther |= farther.any(axis=(1, 2), keepdims=True)
        return np.where(self._whole(farther), centre, nearest)

    @property
    def max_payload_bytes(self) -> int:
        return self._scan.max_bytes


def mirrored(side: int) -> NDArray[np.int64]:
    """[8·b]: 0..side-1 in b blocks of 8, those at the end 4, 2 and 1 wide and mirrored: for 13, 0..7, 8..11 11..8, 12 12.."""
    shown, at = [], 0
    for width in (*[8] * (side // 8), *(width for width in (4, 2, 1) if side & width)):
        once = np.arange(at, at + width)
        shown.append(np.tile(np.concatenate([once, once[::-1]]), 4)[:8])
        at += width
    return np.concatenate(shown)


def near_square(n: int) -> tuple[int, int]:
    """(rows, columns) with rows·columns = n, rows <= columns, as near to one another as n's factors allow."""
    rows = next(rows for rows in range(math.isqrt(n), 0, -1) if n % rows == 0)
    return rows, n // rows
