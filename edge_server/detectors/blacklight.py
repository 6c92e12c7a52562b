"""Blacklight: an attack that asks must ask about latents that are nearly the same; honest clients do not.

Li, Shan, Wenger, Zhang, Zheng, Zhao, "Blacklight: scalable defense for neural networks against query-based black-box attacks",
USENIX Security 2022. Quantise, salt, hash every window of w neighbouring values, keep k of the hashes: that is a query's
fingerprint. A query that shares more than a threshold of its k with any earlier one is detected. No accounts: it makes no
difference from where, or by how many clients, the queries come.

Where we depart: the values are floats, so the step is a share of each channel's calibrated range (the paper's 50 of 255 is
0.196; ours is 0.1, and windows are shorter, for latents are smaller than images: docs/results/detectors.md has the choice),
and a secret dither in [0, 1) of a step stands for the salt that the paper adds to pixels. Hashes need not be SHA-256
(fingerprint.py). A window of the newest queries stands for the paper's daily reset. And the **very same latent again has the
verdict of the first time**: the tail is deterministic, so a repeat tells an attacker nothing, while a frame that is sent again
after a loss, or that was asked about by a man in the middle before it went on as it was, is the phone's own.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edge_server.detectors.base import Action, Asked, Detector
from edge_server.detectors.fingerprint import Fingerprints, Hashing, Recent
from splitcore.latent import F32, LatentSpec


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Blacklight:
    sees: ClassVar[str] = "queries that are nearly the same as an earlier one"

    kind: Literal["blacklight"] = "blacklight"
    action: Action = "reject"
    step: Annotated[float, Field(gt=0, le=1)] = 0.1
    """q: width of a level of the quantiser, as a share of each channel's calibrated range"""
    w: Annotated[int, Field(ge=1, le=4096)] = 8
    """neighbouring values in a window, over the latent as it lies in memory"""
    stride: Annotated[int, Field(ge=1, le=4096)] = 1
    """from one window to the next, in values; the paper has 25 for large images"""
    k: Annotated[int, Field(ge=1, le=1024)] = 50
    """hashes of a fingerprint"""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """share of the fingerprint that an earlier query has too, from which on a query is detected; the paper's 25 of 50"""
    window: Annotated[int, Field(ge=1, le=1 << 20)] = 20_000
    """queries that are remembered: about 32 k bytes each"""
    hashing: Hashing = "multilinear"
    seed: Annotated[int, Field(ge=0)] | None = None
    """of salt and dither; None: secret, new at every start. Whoever knows it can walk around the detector"""

    def for_model(self, latent: LatentSpec) -> Detector:
        return _Watch(self, latent)


class _Watch:
    def __init__(self, config: Blacklight, latent: LatentSpec) -> None:
        self._config = config
        rng = np.random.default_rng(secrets.randbits(128) if config.seed is None else config.seed)
        self._fingerprints = Fingerprints(
            latent, step=config.step, w=config.w, stride=config.stride, k=config.k, hashing=config.hashing, rng=rng
        )
        self._key = rng.bytes(32)
        self._enough = max(1, round(config.threshold * self._fingerprints.k))
        self.forget()

    def forget(self) -> None:
        self._recent = Recent(self._config.window, self._fingerprints.k)
        self._passed: OrderedDict[bytes, None] = OrderedDict()
        """digests of the newest latents that were let through: a rejected one is like itself when it comes again"""

    def look(self, latents: F32, requests: Sequence[Asked]) -> dict[int, str]:
        digests = [hashlib.blake2b(row.tobytes(), digest_size=16, key=self._key).digest() for row in latents]
        first: dict[bytes, int] = {}
        for row, digest in enumerate(digests):
            if digest not in self._passed:
                first.setdefault(digest, row)
        if not first:
            return {}
        rows = list(first.values())
        prints = self._fingerprints(latents if len(rows) == len(latents) else latents[rows])
        said = {}
        for digest, (query, shared) in zip(first, self._recent.look(prints, self._enough), strict=True):
            if query:
                said[digest] = f"{shared} of {prints.shape[1]} hashes are those of query {query}"
            else:
                self._passed[digest] = None
        while len(self._passed) > self._config.window:
            self._passed.popitem(last=False)
        return {row: said[digest] for row, digest in enumerate(digests) if digest in said}
