"""The phone's half: head.onnx, or one of its versions in int8, in ONNX Runtime on the CPU. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from splitcore.artefact import FLOAT32, HEADS, Artefact, HeadName
from splitcore.errors import ArtefactError
from splitcore.latent import F32
from splitcore.onnx_session import open_session


class Head:
    """Images [k, C, H, W] to latents [k, *shape], for any k >= 1. Safe to call from several threads."""

    def __init__(
        self, artefact: Artefact | Path | str, threads: int = 1, *, name: HeadName = FLOAT32, spinning: bool = False
    ) -> None:
        """`name` of HEADS. Raises ArtefactError for one that the artefact does not have."""
        self.artefact = artefact if isinstance(artefact, Artefact) else Artefact(Path(artefact))
        self.name = name
        self.input_shape = self.artefact.manifest.input_shape
        self.latent = self.artefact.latent
        if name not in (there := names(self.artefact)):
            raise ArtefactError(
                f"artefact {self.artefact.manifest.name}: expected a head of {there}, got {name!r}: "
                "`latentbed quantise` makes those in int8"
            )
        path = self.artefact.path(HEADS[name])
        self._session = open_session(path, path, ArtefactError, threads=threads, spinning=spinning)
        self._check_graph(path)

    def _check_graph(self, path: Path) -> None:
        inputs = {node.name: node.shape[1:] for node in self._session.get_inputs()}
        outputs = {node.name: node.shape[1:] for node in self._session.get_outputs()}
        expected = {"image": list(self.input_shape)}, {"latent": list(self.latent.shape)}
        if (inputs, outputs) != expected:
            raise ArtefactError(
                f"{path}: expected {expected[0]} to {expected[1]} as the manifest says, got {inputs} to {outputs}: "
                "export it again"
            )

    def __call__(self, images: NDArray[np.float32]) -> F32:
        """Images float32 [k, C, H, W] in [0, 1] to latents [k, *shape]. Raises ArtefactError for any other array."""
        if images.dtype != np.float32:
            raise ArtefactError(f"expected images float32 in [0, 1], got {images.dtype}: for uint8 call `from_uint8`")
        if images.ndim != 4 or images.shape[1:] != self.input_shape or not len(images):
            raise ArtefactError(
                f"head of {self.artefact.manifest.name}: expected images [k, {', '.join(map(str, self.input_shape))}] "
                f"with k >= 1, got {list(images.shape)}"
            )
        return cast(F32, self._session.run(["latent"], {"image": images})[0])

    def from_uint8(self, images: NDArray[np.uint8]) -> F32:
        """Images uint8 [k, C, H, W] to latents [k, *shape]."""
        if images.dtype != np.uint8:
            raise ArtefactError(f"expected images uint8, got {images.dtype}: for float32 in [0, 1] call the head itself")
        return self(as_unit(images))


def names(artefact: Artefact) -> list[HeadName]:
    """The heads that the artefact has, float32 first."""
    return [FLOAT32, *artefact.manifest.heads]


def as_unit(images: NDArray[np.uint8]) -> F32:
    """Images uint8 as float32 in [0, 1]: what the head's own normalisation starts from."""
    return images.astype(np.float32) / np.float32(255)
