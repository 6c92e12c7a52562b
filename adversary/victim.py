"""What the adversary knows of the model that it attacks: an artefact of ours, or what a foreign endpoint says of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from adversary.recording import recorded
from adversary.space import WireSpace
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.codec.verbatim import verbatim
from splitcore.errors import CodecError, ScenarioError
from splitcore.latent import LatentSpec
from splitcore.threat import Scale, ThreatModel
from splitcore.wire import oip
from splitcore.wire.endpoint import Endpoint
from splitcore.wire.form import Form

MAX_CODECS = 64
MEASURED_LATENTS, MEASURED_BYTES = 1024, 1 << 27
"""of a recording, from which ranges and standard deviation are computed: the first that were answered, as float32"""


class Victim(Protocol):
    """Of one model, whoever's it is."""

    @property
    def name(self) -> str: ...
    @property
    def form(self) -> Form: ...
    @property
    def streams(self) -> bool:
        """Whether queries may be messages of one stream."""
        ...

    @property
    def max_rows(self) -> int:
        """Of one request."""
        ...

    @property
    def classes(self) -> int:
        """0 where nobody said."""
        ...

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of every latent; None where they differ, or nobody said."""
        ...

    @property
    def artefact(self) -> Artefact:
        """Raises ScenarioError where there is none."""
        ...

    def codec(self, name: str, shape: tuple[int, ...]) -> Codec:
        """Raises ScenarioError, CodecError."""
        ...

    def space(self, codec: Codec, payload: bytes | memoryview, template: bytes = b"") -> WireSpace: ...

    def measured(self, threat: ThreatModel, calibration: str | None, recordings: Path) -> Victim:
        """With what the threat model's units need. Raises ScenarioError where nobody measured it."""
        ...


class OwnModel:
    """An artefact that a server of ours serves: everything is in its manifest."""

    form: Form = oip
    streams = True
    max_rows = oip.MAX_ROWS

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.name = artefact.manifest.name
        self.classes = len(artefact.manifest.classes)
        self.shape: tuple[int, ...] | None = artefact.latent.shape
        self._codecs: dict[str, Codec] = {}

    def codec(self, name: str, shape: tuple[int, ...]) -> Codec:
        latent = self.artefact.latent
        if shape != latent.shape:
            raise ScenarioError(f"expected latents {latent.shape} as in {self.artefact}, got {shape}")
        if name not in self._codecs and len(self._codecs) < MAX_CODECS:
            self._codecs[name] = fit(name, latent)
        return self._codecs[name]

    def space(self, codec: Codec, payload: bytes | memoryview, template: bytes = b"") -> WireSpace:
        return WireSpace(payload, codec, self.artefact.latent.std)

    def measured(self, threat: ThreatModel, calibration: str | None, recordings: Path) -> OwnModel:
        if calibration is not None:
            raise ScenarioError(f"expected no calibration, {self.artefact} has one: leave {calibration!r} out")
        return self


@dataclass(frozen=True)
class Statistics:
    """Of an endpoint's inputs: per channel ranges [C] (or one for all) and standard deviation; None: nobody said."""

    lo: tuple[float, ...] | None = None
    hi: tuple[float, ...] | None = None
    std: float | None = None
    source: str = ""
    """where they come from, in words"""

    def plain(self) -> dict[str, float | str | None]:
        ends = None if self.lo is None or self.hi is None else max(self.hi) - min(self.lo)
        return {"range": ends, "std": self.std, "source": self.source}


class ForeignModel:
    """A model behind an endpoint: names and shapes are in its metadata, what is usual in its traffic."""

    def __init__(self, endpoint: Endpoint, statistics: Statistics | None = None) -> None:
        self.endpoint = endpoint
        self.name = endpoint.config.model
        self.form: Form = endpoint
        self.streams = endpoint.dialect == "triton"
        self.max_rows = endpoint.max_rows
        self.classes = endpoint.classes
        self.statistics = _said(endpoint) if statistics is None else statistics
        self._codecs: dict[tuple[str, tuple[int, ...]], Codec] = {}

    @property
    def shape(self) -> tuple[int, ...] | None:
        tensor = self.endpoint.input
        if tensor is None:
            return None
        shape = tensor.shape[1:] if self.endpoint.batched else tensor.shape
        return shape if shape and min(shape) > 0 else None

    @property
    def artefact(self) -> Artefact:
        raise ScenarioError(
            f"expected an artefact for this, model {self.name} is known by its metadata alone: attack at point wire, with a "
            "pool that was recorded or none; or start the adversary with --artefact"
        )

    def codec(self, name: str, shape: tuple[int, ...]) -> Codec:
        if (name, shape) not in self._codecs:
            if len(self._codecs) >= MAX_CODECS:
                self._codecs.clear()
            self._codecs[name, shape] = verbatim(name, self._spec(name, shape))
        return self._codecs[name, shape]

    def _spec(self, name: str, shape: tuple[int, ...]) -> LatentSpec:
        """Where something was not measured, a stand-in that no unit of eps is computed from: `measured` sees to that."""
        known, channels = self.statistics, shape[0]
        grid = {"uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}.get(name, (-1.0, 1.0))
        lo, hi = known.lo or (grid[0],), known.hi or (grid[1],)
        if len(lo) not in (1, channels):
            raise ScenarioError(f"expected latents of {len(lo)} channels as in {known.source}, got shape {list(shape)}")
        fill = channels if len(lo) == 1 else 1
        try:
            return LatentSpec(shape, lo * fill, hi * fill, known.std or 1.0)
        except CodecError as error:
            raise ScenarioError(f"{known.source or self.name}: {error}") from error

    def space(self, codec: Codec, payload: bytes | memoryview, template: bytes = b"") -> WireSpace:
        space = WireSpace(payload, codec, self.statistics.std or 0.0, template=template)
        own = space.centre
        # searches want to know how large latents are: where nobody measured that, this one tells
        width = space.scale.range if self.statistics.lo or codec.step.max() else float(np.ptp(own)) or 1.0
        space.scale = Scale(width, self.statistics.std or float(own.std()) or 1.0, space.scale.step, own.size)
        return space

    def measured(self, threat: ThreatModel, calibration: str | None, recordings: Path) -> ForeignModel:
        statistics = self.statistics
        if calibration is not None:
            statistics = _from(calibration, recordings, self, statistics)
        integers = self.endpoint.input is not None and "INT" in self.endpoint.input.datatype
        ranged = statistics.lo is not None or integers
        lacks = "the standard deviation" if threat.eps_unit == "std" and statistics.std is None else ""
        if not ranged and (threat.eps_unit == "fraction_of_range" or threat.box == "calibrated"):
            lacks = "the range"
        if lacks:
            there = _names(recordings)
            raise ScenarioError(
                f"expected to know {lacks} of the inputs of {self.name}, which nobody has measured: record frames first and "
                f"say `calibration: RUN` (there are {', '.join(there[:8]) or 'none yet'}), or give --low and --high, or --std, "
                "or an eps in absolute or codec_steps"
            )
        return self if statistics is self.statistics else ForeignModel(self.endpoint, statistics)


def _said(endpoint: Endpoint) -> Statistics:
    config = endpoint.config
    if config.low is None or config.high is None:
        return Statistics(std=config.std, source="the options")
    return Statistics((config.low,), (config.high,), config.std, "the options")


def _names(recordings: Path) -> list[str]:
    return sorted(path.stem for path in recordings.glob("*.jsonl"))


def _from(run: str, recordings: Path, model: ForeignModel, said: Statistics) -> Statistics:
    """Of a recording's latents; what the options say stays."""
    shape = recorded(run, recordings, 1)[0].shape
    limit = max(1, min(MEASURED_LATENTS, MEASURED_BYTES // (4 * math.prod(shape))))
    frames = recorded(run, recordings, limit)
    alike = [frame for frame in frames if frame.shape == shape]
    try:
        points = np.concatenate([model.codec(frame.codec, shape).decode(frame.payloads) for frame in alike])[:limit]
    except CodecError as error:
        raise ScenarioError(f"the recording of run {run} does not decode: {error}: record again") from error
    each = points.reshape(len(points), shape[0], -1)
    lo, hi = each.min(axis=(0, 2)), each.max(axis=(0, 2))
    # a channel that never changed still has a width, as the calibration of a training gives it one
    hi = np.maximum(hi, lo + max(1e-3 * float(hi.max() - lo.min()), 1e-6))
    found = Statistics(
        tuple(map(float, lo)), tuple(map(float, hi)), float(points.std()) or 1.0,
        f"recording {run}, {len(points)} latents",
    )  # fmt: skip
    if said.lo is not None:
        found = replace(found, lo=said.lo, hi=said.hi)
    return found if said.std is None else replace(found, std=said.std)
