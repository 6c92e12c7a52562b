"""The artefact: what training exports and all nodes agree on. A folder with a manifest that names every file's hash.

manifest.json          names, shapes, the codec and its frozen parameters, hashes
head.onnx              image [n, C, H, W] in [0, 1] to latent [n, *shape]; normalisation inside, batch dynamic
head.int8-*.onnx       the same in int8, where `latentbed quantise` made them
tail.safetensors       weights of the tail; the manifest declares its architecture
tail.onnx              instead of these, where the manifest's tail is `onnx`: latent [n, *shape] to logits [n, classes]
samples.npz            held-out images uint8 and labels, so that a phone needs no data set
unsplit_labels.npz     what the unsplit torch model says of `samples.npz`
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
)

from splitcore.codec import CodecConfig, fit
from splitcore.codec.prior import Prior
from splitcore.errors import ArtefactError, CodecError, HandshakeError
from splitcore.latent import LatentSpec

MANIFEST, HEAD, TAIL, ONNX_TAIL = "manifest.json", "head.onnx", "tail.safetensors", "tail.onnx"
SAMPLES, UNSPLIT_LABELS = "samples.npz", "unsplit_labels.npz"
HeadName: TypeAlias = Literal["float32", "int8-u8", "int8-s8"]
FLOAT32: Final = "float32"
INT8_U8: Final = "int8-u8"
INT8_S8: Final = "int8-s8"
HEADS: dict[HeadName, str] = {FLOAT32: HEAD, INT8_U8: "head.int8-u8.onnx", INT8_S8: "head.int8-s8.onnx"}
"""the heads that an artefact may have, by name: float32 always, int8 with activations uint8 or int8"""
NAME = r"^[A-Za-z0-9_.+-]{1,64}$"
"""of an artefact"""


_FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Tables(_Strict):
    """Prior as JSON writes it."""

    offset: tuple[int, ...]
    cdf: tuple[tuple[int, ...], ...]
    step: tuple[float, ...]


class Latent(_Strict):
    """LatentSpec as JSON writes it."""

    shape: tuple[int, ...]
    lo: tuple[float, ...]
    hi: tuple[float, ...]
    std: float
    prior: Tables | None = None

    @property
    def spec(self) -> LatentSpec:
        prior = None if self.prior is None else Prior(self.prior.offset, self.prior.cdf, self.prior.step)
        return LatentSpec(self.shape, self.lo, self.hi, self.std, prior)

    @model_serializer(mode="wrap")
    def _without_nothing(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No prior is no key, so that manifests without one keep their digest."""
        fields: dict[str, Any] = plain(self)
        if self.prior is None:
            del fields["prior"]
        return fields


class Architecture(_Strict):
    """A network of splitcore.nn by its name there, and the arguments that build it; `onnx`: the graph is in tail.onnx."""

    net: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Int8Head(_Strict):
    """What a head in int8 costs, measured where it was made. Its speed is each device's own to measure."""

    accuracy: float
    """top-1 on `samples.npz` through the artefact's codec and tail"""
    points_lost: float
    """points of accuracy below the float32 head, measured likewise"""
    agreement: float
    """share of the samples that get the float32 head's label"""
    snr_db: float
    """float32 latents' power over that of the difference"""
    calibrated_on: str
    """the images that set the ranges of its activations"""


class Manifest(_Strict):
    """Everything that both ends must agree on before the first frame."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=NAME)
    approach: str
    """how the bottleneck was trained; `sc`: cross-entropy through it"""
    cut: str
    """where the network is split"""
    input_shape: tuple[int, int, int]
    """[C, H, W] of an image with values in [0, 1]"""
    preprocessing: str
    """what happens to an image before the head's own normalisation"""
    latent: Latent
    codec: CodecConfig
    """what the head's latents are sent with unless told otherwise"""
    classes: tuple[str, ...]
    tail: Architecture
    dataset: str
    accuracy: float
    """top-1 of the unsplit model on `samples.npz`"""
    files: dict[_FileName, _Sha256]
    """sha256 of every other file of the artefact"""
    made_with: dict[str, str | int | float]
    heads: dict[HeadName, Int8Head] = Field(default_factory=dict)
    """the heads in int8 that there are beside head.onnx"""

    @model_serializer(mode="wrap")
    def _without_nothing(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """No heads is no key, so that manifests without them keep their digest."""
        fields: dict[str, Any] = plain(self)
        if not self.heads:
            del fields["heads"]
        return fields

    @property
    def digest(self) -> str:
        """sha256 of the manifest as canonical JSON: since it holds the files' hashes, of the whole artefact."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def handshake(self) -> str:
        """What one end sends for the other to compare: `<name>@<digest>`."""
        return f"{self.name}@{self.digest}"


class Artefact:
    """An artefact folder, read and checked. Raises ArtefactError when a file is missing or its hash is another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except OSError as error:
            raise ArtefactError(
                f"expected an artefact in {folder}, found no readable {MANIFEST} ({error.strerror}): "
                "make one with `latentbed train`"
            ) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ArtefactError(
                f"expected a manifest of schema version 1 in {folder / MANIFEST}, got another ({place or 'all of it'}: "
                f"{first['msg']}): make the artefact again with `latentbed train`"
            ) from error
        try:
            fit(self.manifest.codec, self.latent)
        except CodecError as error:
            raise ArtefactError(
                f"artefact {self.manifest.name}: its latent or codec cannot be: {error}: export it again"
            ) from error

    def __repr__(self) -> str:
        return f"Artefact({self.manifest.handshake[:80]})"

    @property
    def latent(self) -> LatentSpec:
        return self.manifest.latent.spec

    def path(self, name: str) -> Path:
        """The path of one of its files, its hash compared. Raises ArtefactError."""
        return _checked(self.folder, self.manifest, name)

    @cached_property
    def samples(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Held-out images uint8 [n, C, H, W] and labels [n]."""
        with np.load(self.path(SAMPLES), allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]

    @cached_property
    def unsplit_labels(self) -> NDArray[np.int64]:
        """[n]: the unsplit torch model's labels of `samples`."""
        with np.load(self.path(UNSPLIT_LABELS), allow_pickle=False) as arrays:
            labels: NDArray[np.int64] = arrays["labels"]
        return labels


def write(folder: Path, manifest: Manifest) -> Artefact:
    """Writes the manifest beside its files, which are in `folder` already and are compared. Raises ArtefactError."""
    for name in manifest.files:
        _checked(folder, manifest, name)
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
    temporary = folder / (MANIFEST + ".new")
    temporary.write_text(text + "\n")
    # the manifest appears last and at once: a folder with one is a whole artefact
    temporary.replace(folder / MANIFEST)
    return Artefact(folder)


def _checked(folder: Path, manifest: Manifest, name: str) -> Path:
    """The path of a file that has the hash which the manifest says. Raises ArtefactError."""
    expected = manifest.files.get(name)
    if expected is None:
        raise ArtefactError(
            f"artefact {manifest.name}: expected one of its files {sorted(manifest.files)}, got {name!r}: "
            "ask for one of these, or export the artefact again"
        )
    path = folder / name
    try:
        got = sha256(path)
    except OSError as error:
        raise ArtefactError(
            f"artefact {manifest.name}: expected {path}, it cannot be read ({error.strerror}): "
            "copy the whole folder again, or make it with `latentbed train`"
        ) from error
    if got != expected:
        raise ArtefactError(
            f"artefact {manifest.name}: expected sha256 {expected} for {name}, got {got}: "
            "the file was altered after export; train it again"
        )
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def agree(ours: str, theirs: str, *, we: str, they: str) -> None:
    """Compares two handshakes. Raises HandshakeError that names both sides."""
    if ours != theirs:
        raise HandshakeError(
            f"the {we} holds artefact {ours[:160]}, the {they} holds {theirs[:160]}: give both the same artefact folder"
        )
