"""Other latents that the adversary holds before its first query: traffic that it recorded, or what an insider has.

Start points of decision attacks, and what learners learn from. It is fixed before the campaign: no session changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass

from adversary.attacks.base import POOLS, About, Pool, learns
from adversary.recording import Heard, recorded
from adversary.space import InputSpace, LatentSpace, Space, WireSpace
from adversary.victim import OwnModel, Victim
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.codec.base import STRICT
from splitcore.errors import CodecError, ScenarioError
from splitcore.frame import WORD
from splitcore.head import Head, as_unit
from splitcore.latent import F32
from splitcore.threat import Point, ThreatModel, absolute_eps

MAX_LATENTS = 8192
MAX_CLASSES = 1 << 16
MAX_BYTES = 1 << 29
"""of all points as float32"""


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class Recording:
    """What a record behaviour wrote: payloads of the phone's, and what the server answered to them."""

    kind: Literal["recording"] = "recording"
    run: Annotated[str, Field(pattern=f"^{WORD}$")]
    """the recording's run; in a scenario the name of a record pass that comes before"""
    limit: Annotated[int, Field(ge=1, le=MAX_LATENTS)] = 256
    """latents taken at most: the first that were answered, each once"""


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class OwnSamples:
    """The artefact's samples with the labels of the unsplit model: an insider on the phone holds them."""

    kind: Literal["artefact"] = "artefact"
    limit: Annotated[int, Field(ge=1, le=MAX_LATENTS)] = 256
    """samples taken at most, the first ones"""


PoolConfig: TypeAlias = Annotated[Recording | OwnSamples, Field(discriminator="kind")]


def fits_pool(attack: object, threat: ThreatModel, pool: Recording | OwnSamples | None) -> None:
    """Raises ValueError where the attack cannot do without a pool, or not have this one."""
    if pool is None and learns(attack):
        raise ValueError(f"attack {getattr(attack, 'kind', '')} learns from other latents, got no pool: {POOLS}")
    if isinstance(pool, Recording) and threat.point != "wire":
        raise ValueError(f"expected point wire for a recording, got {threat.point}: say `pool: {{kind: artefact}}`")


@dataclass(frozen=True)
class Stock:
    """A pool, and the point of attack that its latents are points of."""

    pool: Pool
    space: Space
    """around the first of them"""

    @property
    def classes(self) -> int:
        """As the answers had scores; else one more than the highest label. Raises ScenarioError."""
        scores = self.pool.scores
        classes = int(self.pool.labels.max()) + 1 if scores is None else scores.shape[1]
        if classes > MAX_CLASSES:
            raise ScenarioError(f"expected labels below {MAX_CLASSES} to learn from, got {classes - 1}: are they texts?")
        return classes

    def about(self, threat: ThreatModel, classes: int, seed: int) -> About:
        """Raises ScenarioError where the threat model's eps or box has no meaning here."""
        space, points = self.space, self.pool.points
        scale = space.scale
        if threat.point == "input":
            # an image's std is its own: here the usual one
            scale = replace(scale, std=float(points.reshape(len(points), -1).std(axis=1).mean()) or 1.0)
        lo, hi = space.box(threat.box)
        return About(
            norm=threat.norm, eps=absolute_eps(threat, scale), lo=lo, hi=hi, snap=space.snap, classes=classes,
            target=threat.target, seed=seed,
        )  # fmt: skip


def stock(config: Recording | OwnSamples, point: Point, known: Artefact | Victim, recordings: Path) -> Stock:
    """`recordings`: the folder with a journal for each recorded run. Raises ScenarioError, ArtefactError."""
    victim: Victim = OwnModel(known) if isinstance(known, Artefact) else known
    elements = int(np.prod(victim.artefact.manifest.input_shape if point == "input" else victim.shape or (1,)))
    if config.limit * elements * 4 > MAX_BYTES:
        raise ScenarioError(
            f"expected a pool of at most {MAX_BYTES >> 20} MiB, got a limit of {config.limit} points of {elements} elements: "
            f"say `limit: {max(1, MAX_BYTES // (4 * elements))}` or less"
        )
    if isinstance(config, OwnSamples):
        return _own(config, point, victim.artefact)
    assert point == "wire", "fits_pool"
    return _recorded(config, recordings, victim)


def _own(config: OwnSamples, point: Point, artefact: Artefact) -> Stock:
    images = as_unit(artefact.samples[0][: config.limit])
    labels = artefact.unsplit_labels[: config.limit]
    codec, head = fit(artefact.manifest.codec, artefact.latent), Head(artefact)
    if point == "input":
        return Stock(Pool(images, labels), InputSpace(images[0], head, codec))
    latents = np.concatenate([head(images[at : at + 64]) for at in range(0, len(images), 64)])
    if point == "latent":
        return Stock(Pool(latents, labels), LatentSpace(latents[0], codec))
    return Stock(Pool(codec.snap(latents), labels), _wire(codec.encode(latents[:1])[0], codec))


def _recorded(config: Recording, recordings: Path, victim: Victim) -> Stock:
    frames = recorded(config.run, recordings, config.limit)
    shape = victim.shape or frames[0].shape
    wrong = next((frame for frame in frames if frame.shape != shape), None)
    if wrong is not None:
        raise ScenarioError(
            f"expected latents {list(shape)} in the recording of run {config.run}, got {list(wrong.shape)}: it was made "
            "with another artefact; record again"
        )
    try:
        codecs = {name: victim.codec(name, shape) for name in {frame.codec for frame in frames}}
        points = np.concatenate([codecs[frame.codec].decode(frame.payloads) for frame in frames])[: config.limit]
    except CodecError as error:
        raise ScenarioError(f"the recording of run {config.run} does not decode: {error}: record again") from error
    labels = np.concatenate([np.asarray(frame.labels, np.int64) for frame in frames])[: config.limit]
    space = victim.space(codecs[frames[0].codec], frames[0].payloads[0])
    return Stock(Pool(points, labels, _scores(frames, len(points))), space)


def _scores(frames: Sequence[Heard], n: int) -> F32 | None:
    """[n, classes], NaN where a frame has none; None where none has."""
    classes = next((len(frame.scores[0]) for frame in frames if frame.scores), None)
    if classes is None:
        return None
    none = [[np.nan] * classes]
    rows = [
        scores
        for frame in frames
        for scores in (frame.scores if frame.scores and len(frame.scores[0]) == classes else none * len(frame.payloads))
    ]
    return np.asarray(rows[:n], np.float32)


def _wire(payload: bytes, codec: Codec) -> WireSpace:
    return WireSpace(payload, codec, codec.latent.std)
