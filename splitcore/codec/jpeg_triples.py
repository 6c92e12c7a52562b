"""`jpeg<quality>/rgb-triples`: three channels at a time as a colour picture, a JPEG file each, as the literature has it.

Matsubara et al., "SC2 Benchmark: Supervised Compression for Split Computing", TMLR 2023; at quality 95 in Zhang et al.,
"Adversarial attacks to latent representations of distributed neural networks in split computing", arXiv 2309.17401. A mode for
comparison: YCbCr mixes channels that have nothing to do with one another, 4:2:0 (Pillow's default) takes half the resolution of
two in three, and each file has a header of 623 bytes; `jpeg.py` is the better codec. Departures: 8 bits on each channel's
calibrated range (their normaliser divides by the maximum and not by the range, so that negative values wrap; their batches of
more than one come out mixed up), and the last channel again where the last picture has less than three. A payload is each
file's length (uint32, little-endian), then the files; their headers must be those that this end writes.

JPEG of such a picture decoded is another one. To send a fixed point, as `jpeg.py` does, would be another codec: some 50 rounds
at quality 95, in which chroma blurs until the error is half as large again. So this one does not settle. Whoever changes a
payload on its way still sends what was measured: `as_sent` remembers the file of each picture that came out of its `snap`, and
those of the payload. What it has not seen loses by another round, as it does for anyone: 0.1 std for smooth latents.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from splitcore.codec.base import STRICT, Codec
from splitcore.codec.jpeg_scan import PIXELS, Scan
from splitcore.codec.uniform import Uniform, UniformCodec
from splitcore.errors import CodecError
from splitcore.latent import F32, LatentSpec

U8 = NDArray[np.uint8]
KEPT = 1 << 13
"""pictures that are remembered of a frame, or twice what one call brings"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class JpegTriples:
    """Channels in triples as colour pictures, a JPEG file each: the literature's form."""

    kind: Literal["jpeg/rgb-triples"] = "jpeg/rgb-triples"
    quality: Annotated[int, Field(ge=1, le=95)] = 95
    """libjpeg's scale; the literature's 95"""
    zstd: bool = False
    """each payload through Zstandard"""

    def plain(self, latent: LatentSpec) -> Codec:
        return TriplesCodec(self, latent)


class TriplesCodec(Codec):
    """T pictures [height, width, 3] a latent."""

    coupled = True
    settles = False
    varies = True

    def __init__(self, config: JpegTriples, latent: LatentSpec) -> None:
        self.name = f"jpeg{config.quality}/rgb-triples"
        self.latent = latent
        self._levels = UniformCodec(Uniform(bits=8, per="channel"), latent)
        self.lo, self.hi, self.step = self._levels.lo, self._levels.hi, self._levels.step
        size = (latent.shape[-2] if len(latent.shape) > 1 else 1, latent.shape[-1])
        self._planes = (math.prod(latent.shape[:-2]), *size)
        self._shown = np.minimum(np.arange(-(-self._planes[0] // 3) * 3), self._planes[0] - 1)
        """[3·T] the plane that a band shows"""
        self.pictures = len(self._shown) // 3
        self._decoded = 3 * self.pictures * math.prod(-(-side // 16) * 16 for side in size)
        """samples of a latent's pictures, as JPEG fills them up"""
        if self._decoded > PIXELS:
            raise CodecError(
                f"{self.name}: expected pictures of at most {PIXELS} samples in all, got {self._decoded} for shape "
                f"{latent.shape}: this latent is too large or has too many small channels; use another codec"
            )
        self.scan = Scan(*size, config.quality, bands=3)

    def shown(self, latents: F32) -> U8:
        """Latents [k, *shape] to pictures [k·T, height, width, 3]."""
        bands = self._levels.codes(latents).reshape(-1, *self._planes)[:, self._shown]
        pictures = bands.reshape(-1, 3, *self._planes[1:]).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(pictures)

    def values(self, pictures: Sequence[U8]) -> F32:
        """The inverse of `shown`."""
        stack = np.array(pictures, np.uint8).reshape(-1, *self.scan.shape).transpose(0, 3, 1, 2)
        planes = stack.reshape(-1, len(self._shown), *self._planes[1:])[:, : self._planes[0]]
        return self._levels.values(planes.reshape(-1, *self.latent.shape))

    def joined(self, files: Iterable[bytes]) -> list[bytes]:
        """Files of k·T pictures to k payloads."""
        files, T = list(files), self.pictures
        each = (files[at : at + T] for at in range(0, len(files), T))
        return [struct.pack(f"<{T}I", *map(len, group)) + b"".join(group) for group in each]

    def files(self, payload: bytes | memoryview) -> list[bytes]:
        """The inverse, for one payload. Raises CodecError."""
        data, T = bytes(payload), self.pictures
        ends = np.cumsum(np.frombuffer(data, "<u4", T), dtype=np.int64) + 4 * T if len(data) >= 4 * T else [-1]
        if ends[-1] != len(data):
            raise CodecError(
                f"{self.name}: expected {T} lengths and as many files, got {len(data)} bytes that do not add up: "
                "sender and receiver hold different artefacts, or the payload was cut"
            )
        return [data[begin:end] for begin, end in zip([4 * T, *ends], ends, strict=False)]

    def encode(self, latents: F32) -> list[bytes]:
        return self.joined(map(self.scan.file, self.shown(latents)))

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        if len(payloads) * self._decoded > PIXELS:
            # a few bytes are a picture of any size, so the message does not bound what it expands to
            raise CodecError(
                f"{self.name}: expected at most {PIXELS // self._decoded} latents of shape {self.latent.shape} "
                f"at once, got {len(payloads)}: send them in several requests"
            )
        return self.values([self.scan.read(file) for payload in payloads for file in self.files(payload)])

    def snap(self, latents: F32) -> F32:
        return self.values([self.scan.passed(picture) for picture in self.shown(latents)])

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        return self.nearer(self.snap(latents), latents, centre)

    def nearer(self, snapped: F32, latents: F32, centre: F32) -> F32:
        """Pictures stand or fall together: one of which a coordinate ended farther is the centre's."""
        farther = (np.abs(snapped - centre) > np.abs(latents - centre)).reshape(-1, *self._planes)
        bands = farther.any(axis=(2, 3))[:, self._shown].reshape(-1, 3)
        whole = bands.any(axis=1).repeat(3).reshape(-1, len(self._shown))[:, : self._planes[0]]
        back = np.broadcast_to(whole[:, :, None, None], farther.shape).reshape(snapped.shape)
        return np.where(back, centre, snapped)

    def as_sent(self, payload: bytes | memoryview) -> Codec:
        return Remembering(self, payload)

    @property
    def max_payload_bytes(self) -> int:
        return self.pictures * (4 + len(self.scan.header) + self.scan.max_bytes + 2)


class Remembering(Codec):
    """One payload's codec for whoever changes it: encoding what came out of its `snap` gives that latent again."""

    coupled = True
    varies = True

    def __init__(self, codec: TriplesCodec, payload: bytes | memoryview) -> None:
        self._codec = codec
        self.name, self.latent = codec.name, codec.latent
        self.lo, self.hi, self.step = codec.lo, codec.hi, codec.step
        self._room = KEPT
        self._known = dict[bytes, bytes]()
        """digest of a picture to a file that it comes out of, the oldest first"""
        self._own = dict[bytes, bytes]()
        self._remember(codec.decode([payload]), codec.files(payload))
        self._own = dict(self._known)

    def _files(self, latents: F32) -> list[bytes]:
        """Of the pictures of latents [k, *shape]: those that came out of them where that is known."""
        pictures = self._codec.shown(latents)
        return [self._known.get(_key(picture)) or self._codec.scan.file(picture) for picture in pictures]

    def encode(self, latents: F32) -> list[bytes]:
        return self._codec.joined(self._files(latents))

    def decode(self, payloads: Sequence[bytes | memoryview]) -> F32:
        return self._codec.decode(payloads)

    def snap(self, latents: F32) -> F32:
        files = self._files(latents)
        arrived = self._codec.values([self._codec.scan.pixels(file) for file in files])
        self._remember(arrived, files)
        return arrived

    def _remember(self, arrived: F32, files: Sequence[bytes]) -> None:
        for picture, file in zip(self._codec.shown(arrived), files, strict=True):
            key = _key(picture)
            self._known.pop(key, None)
            self._known[key] = file
        # what one round snaps, and snaps again nearer to the centre, is encoded after that
        self._room = max(self._room, 2 * len(files))
        for key in list(self._known)[: max(0, len(self._known) - self._room)]:
            del self._known[key]
        self._known |= self._own

    def snap_towards(self, latents: F32, centre: F32) -> F32:
        return self._codec.nearer(self.snap(latents), latents, centre)

    @property
    def max_payload_bytes(self) -> int:
        return self._codec.max_payload_bytes


def _key(picture: U8) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
