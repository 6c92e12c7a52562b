"""What the adversary does, as a scenario or the control API says it, and how that becomes an addon."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adversary.addons.attacker import Attacker, SpaceOf
from adversary.addons.recorder import Pass, Recorder
from adversary.attacks import AttackConfig
from adversary.campaign import Campaign
from adversary.ledger import Ledger
from adversary.oracle import LiveOracle
from adversary.relay import Addon, Order
from adversary.space import InputSpace, LatentSpace, Space, WireSpace
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.data.source import Samples, SourceConfig, open_source
from splitcore.errors import ScenarioError
from splitcore.frame import Frame, FrameId
from splitcore.head import Head, as_unit
from splitcore.journal import Journal, read
from splitcore.threat import ThreatModel

RUN = Field(pattern=r"^[A-Za-z0-9_.:+-]{1,96}$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PassBehaviour(_Strict):
    """Relay everything, change nothing."""

    kind: Literal["pass"] = "pass"
    run: Annotated[str, RUN] = "idle"


class RecordBehaviour(_Strict):
    """Relay everything, keep a copy."""

    kind: Literal["record"] = "record"
    run: Annotated[str, RUN]


class AttackBehaviour(_Strict):
    """Hold frames and attack them."""

    kind: Literal["attack"] = "attack"
    run: Annotated[str, RUN]
    attack: AttackConfig
    threat: ThreatModel
    source: SourceConfig | None = None
    """what the phone shows to its head, frame n being sample n: for points `input` and `latent`, where an insider is assumed"""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    order: Order = "overtake"
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """of the frames that are attacked"""
    max_held: Annotated[int, Field(ge=1, le=65536)] = 256
    max_held_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    max_rows: Annotated[int, Field(ge=1, le=4096)] = 256
    """rows of one query request at most"""
    in_flight: Annotated[int, Field(ge=1, le=64)] = 4
    """query requests on their way at once"""

    @model_validator(mode="after")
    def _fits(self) -> AttackBehaviour:
        if self.threat.norm not in self.attack.norms:
            raise ValueError(f"attack {self.attack.kind} has norms {', '.join(self.attack.norms)}, got {self.threat.norm}")
        if self.threat.point != "wire" and self.source is None:
            raise ValueError(f"point {self.threat.point} assumes an insider: expected `source`, the phone's samples")
        return self


Behaviour: TypeAlias = Annotated[PassBehaviour | RecordBehaviour | AttackBehaviour, Field(discriminator="kind")]


class Workshop:
    """Makes addons; holds what they share: the artefact, the way to the server, the books' folder."""

    def __init__(self, artefact: Artefact, upstream: str, state: Path, ledger: Ledger, data_dir: Path | None) -> None:
        self.artefact = artefact
        self._upstream = upstream
        self._state = state
        self._ledger = ledger
        self._data_dir = data_dir
        self._codecs: dict[str, Codec] = {}

    def sessions_path(self, run: str) -> Path:
        return self._state / "sessions" / f"{run}.jsonl"

    async def addon(self, behaviour: PassBehaviour | RecordBehaviour | AttackBehaviour) -> Addon:
        """Raises LatentbedError where the behaviour asks for what this artefact does not have."""
        match behaviour:
            case PassBehaviour():
                return Pass()
            case RecordBehaviour():
                return Recorder(self._state / "recorded" / f"{behaviour.run}.jsonl")
            case AttackBehaviour():
                # samples are read, and a head is loaded, off the relay's loop: frames pass meanwhile
                return self._attacker(behaviour, await asyncio.to_thread(self._space_of, behaviour))

    def _attacker(self, behaviour: AttackBehaviour, space_of: SpaceOf) -> Attacker:
        campaign = Campaign(
            LiveOracle(self._upstream), self._ledger, run=behaviour.run, nonce=secrets.token_hex(3),
            max_rows=behaviour.max_rows, in_flight=behaviour.in_flight,
        )  # fmt: skip
        earlier = list(read(self.sessions_path(behaviour.run)))
        attacker = Attacker(
            behaviour.attack, behaviour.threat, campaign, space_of, Journal(self.sessions_path(behaviour.run)),
            seed=behaviour.seed, order=behaviour.order, share=behaviour.share,
            max_held=behaviour.max_held, max_held_bytes=behaviour.max_held_bytes,
        )  # fmt: skip
        mine = f"{behaviour.run}/"
        attacker.recall(earlier, {f: n for f, n in self._ledger.asked_earlier.items() if f.startswith(mine)})
        return attacker

    def _codec(self, frame: Frame) -> Codec:
        latent = self.artefact.latent
        if frame.shape != latent.shape:
            raise ScenarioError(f"expected latents {latent.shape} as in {self.artefact}, got {frame.shape}")
        if frame.codec not in self._codecs and len(self._codecs) < 64:
            self._codecs[frame.codec] = fit(frame.codec, latent)
        return self._codecs[frame.codec]

    def _space_of(self, behaviour: AttackBehaviour) -> SpaceOf:
        if behaviour.threat.point == "wire":
            return lambda frame: WireSpace(frame.payloads[0], self._codec(frame), self.artefact.latent.std)
        assert behaviour.source is not None
        samples = open_source(behaviour.source, self.artefact, self._data_dir)
        head = Head(self.artefact)
        return lambda frame: self._insider(frame, behaviour.threat.point, samples, head)

    def _insider(self, frame: Frame, point: str, samples: Samples, head: Head) -> Space:
        """The image behind a frame, checked: what the head and the codec make of it must be what is on the wire."""
        codec = self._codec(frame)
        sample = samples.sample_of(FrameId.parse(frame.id).sequence)
        image = as_unit(samples.images[sample : sample + 1])
        latent = head(image)
        expected, got = codec.snap(latent)[0], codec.decode([frame.payloads[0]])[0]
        if np.abs(expected - got).max() > float(codec.step.max()) + 1e-3 * codec.latent.std:
            raise ScenarioError(f"{frame.id}: the insider's sample is not the one on the wire: expected the phone's source")
        return InputSpace(image[0], head, codec) if point == "input" else LatentSpace(latent[0], codec)
