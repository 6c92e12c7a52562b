"""What a head in int8 is worth: the labels that come out of codec and tail, against the float32 head's."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from splitcore.artefact import ONNX_TAIL, Artefact, HeadName, Int8Head
from splitcore.codec import Codec
from splitcore.errors import ArtefactError
from splitcore.latent import F32
from splitcore.nn.tail import load_tail
from splitcore.onnx_session import open_session
from splitcore.snr import snr_db

Compute: TypeAlias = Callable[[NDArray[np.uint8]], F32]
"""a head: images uint8 [k, C, H, W] to latents [k, *shape]"""
Tail: TypeAlias = Callable[[F32], F32]
"""latents [k, *shape] to logits [k, classes]"""


def tail_of(artefact: Artefact, trusted: Collection[str] = ()) -> Tail:
    """The artefact's tail, in torch or in ONNX, on the CPU. Raises ArtefactError."""
    if artefact.manifest.tail.net == "onnx":
        path = artefact.path(ONNX_TAIL)
        session = open_session(path, path, ArtefactError)
        return lambda z: cast(F32, session.run(["logits"], {"latent": z})[0])
    tail = load_tail(artefact, trusted=trusted)

    @torch.inference_mode()
    def logits(z: F32) -> F32:
        return cast(F32, tail(torch.from_numpy(z)).numpy())

    return logits


def worth(
    heads: dict[HeadName, Compute], images: NDArray[np.uint8], labels: NDArray[np.int64], codec: Codec, tail: Tail,
    calibrated_on: str, batch: int = 32,
) -> dict[HeadName, Int8Head]:  # fmt: skip
    """Each head but the first, which it is compared with, on held-out images uint8 [n, C, H, W] with labels [n]."""
    said: dict[HeadName, list[NDArray[np.int64]]] = {name: [] for name in heads}
    power, noise = 0.0, dict.fromkeys(heads, 0.0)
    for start in range(0, len(images), batch):
        reference: F32 | None = None
        for name, head in heads.items():
            z = head(images[start : start + batch])
            reference = z if reference is None else reference
            noise[name] += float(np.square(z - reference, dtype=np.float64).sum())
            said[name].append(tail(codec.decode(codec.encode(z))).argmax(1))
        assert reference is not None
        power += float(np.square(reference, dtype=np.float64).sum())
    predicted = {name: np.concatenate(parts) for name, parts in said.items()}
    accuracy = {name: float(np.mean(given == labels)) for name, given in predicted.items()}
    first = next(iter(heads))
    return {
        name: Int8Head(
            accuracy=accuracy[name],
            points_lost=round(100 * (accuracy[first] - accuracy[name]), 6),
            agreement=float(np.mean(predicted[name] == predicted[first])),
            snr_db=round(snr_db(power, noise[name]), 2),
            calibrated_on=calibrated_on,
        )
        for name in heads
        if name != first
    }
