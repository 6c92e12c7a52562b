"""The first runs of a tail, before anybody waits for one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from splitcore.artefact import Artefact
from splitcore.errors import ArtefactError
from splitcore.latent import F32

ROWS = 8


def warm_up(tail: Callable[[F32], F32], artefact: Artefact, max_batch_size: int) -> None:
    """One row and a few. Raises ArtefactError for a wrong shape of logits."""
    shape, classes = artefact.latent.shape, len(artefact.manifest.classes)
    for k in (1, min(ROWS, max_batch_size)):
        got = tail(np.zeros((k, *shape), np.float32)).shape
        if got != (k, classes):
            raise ArtefactError(
                f"artefact {artefact.manifest.name}: expected logits [{k}, {classes}] from the tail, got {list(got)}"
            )
