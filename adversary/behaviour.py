"""What the adversary does, as a scenario or the control API says it, and how that becomes an addon."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from adversary.addons.attacker import Attacker
from adversary.addons.prober import Prober, Reach
from adversary.addons.recorder import Pass, Recorder
from adversary.attacks import Attack, AttackConfig, OwnAttack, Pool
from adversary.attacks.base import taught
from adversary.crew import Crew, Place, ledgers
from adversary.engine import Engine, LocalEngine, SpaceOf
from adversary.ledger import Ledger, asked_earlier
from adversary.metrics import Deeds
from adversary.oracle import LiveOracle
from adversary.pool import PoolConfig, Recording, fits_pool, stock
from adversary.relay import Addon, Order
from adversary.space import InputSpace, LatentSpace, Space, WireSpace
from adversary.victim import ForeignModel, OwnModel, Victim
from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.data.source import Samples, SourceConfig, open_source
from splitcore.errors import ScenarioError
from splitcore.frame import Frame, FrameId
from splitcore.head import Head, as_unit
from splitcore.journal import Journal, read
from splitcore.telemetry.tracing import Tracer
from splitcore.threat import ThreatModel
from splitcore.wire.endpoint import Endpoint
from splitcore.wire.envelope import CODEC as SEALED
from splitcore.wire.tls import ClientTls

Prepared: TypeAlias = tuple[Attack, Pool | None]
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
    in_flight: Annotated[int, Field(ge=1, le=64)] = 8
    """query requests on their way at once, of each process"""
    sections: Annotated[int, Field(ge=2, le=64)] | Literal["auto"] = "auto"
    """parts a section search cuts its interval into: 2 asks the fewest rows, more need fewer round trips; `auto` measures what
    a round trip and a row cost, once, before the first search"""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """processes that attack, each with a share of the frames; 0: the relay's own, in a thread"""
    pool: PoolConfig | None = None
    """other latents: start points of decision attacks, and what learners learn from"""
    steal_token: bool = False
    """ask the server with the token that clients said of themselves where it passed in clear text"""
    calibration: Annotated[str, RUN] | None = None
    """a recorded run whose frames tell ranges and standard deviation of a foreign endpoint's inputs; None: that of the pool"""

    @model_validator(mode="after")
    def _fits(self) -> AttackBehaviour:
        # somebody's own attack is read when it is built, by the process whose operator trusts it
        if not isinstance(self.attack, OwnAttack) and self.threat.norm not in self.attack.norms:
            raise ValueError(f"attack {self.attack.kind} has norms {', '.join(self.attack.norms)}, got {self.threat.norm}")
        if self.threat.point != "wire" and self.source is None:
            raise ValueError(f"point {self.threat.point} assumes an insider: expected `source`, the phone's samples")
        fits_pool(self.attack, self.threat, self.pool)
        if self.steal_token and self.workers:
            raise ValueError("expected `workers: 0` with `steal_token`: only the relay's own process hears the clients")
        return self


class ProbeBehaviour(_Strict):
    """Try what there is to try against protected frames, and write down what became of it."""

    kind: Literal["probe"] = "probe"
    run: Annotated[str, RUN]
    tries: Annotated[int, Field(ge=1, le=1024)] = 8
    """of each way"""


Behaviour: TypeAlias = Annotated[
    PassBehaviour | RecordBehaviour | AttackBehaviour | ProbeBehaviour, Field(discriminator="kind")
]


class Workshop:
    """Makes addons; holds what they share: what is known of the model, the way to the server, the books' folder."""

    def __init__(
        self, known: Artefact | Endpoint, upstream: str, state: Path, ledger: Ledger, data_dir: Path | None, *,
        trusted: Collection[str] = (), tls: ClientTls | None = None, overheard: Callable[[], str | None] = lambda: None,
        tracer: Tracer | None = None, deeds: Deeds | None = None,
    ) -> None:  # fmt: skip
        """`tls`: how the server is reached; None: in clear text. `overheard`: the newest token that passed, if any did."""
        self._overheard = overheard
        self.victim: Victim = OwnModel(known) if isinstance(known, Artefact) else ForeignModel(known)
        self._known = known
        self._upstream = upstream
        self._state = state
        self._ledger = ledger
        self._data_dir = data_dir
        self._trusted = trusted
        self._tls = tls
        self._tracer = tracer
        self._deeds = deeds or Deeds()

    def sessions_path(self, run: str) -> Path:
        return self._state / "sessions" / f"{run}.jsonl"

    def record_path(self, run: str) -> Path:
        return self._state / "records" / run

    def ledger_paths(self, run: str | None) -> list[Path]:
        return [self._ledger.path, *ledgers(self._state, run)]

    def probes_path(self, run: str) -> Path:
        return self._state / "probes" / f"{run}.jsonl"

    async def addon(self, behaviour: PassBehaviour | RecordBehaviour | AttackBehaviour | ProbeBehaviour) -> Addon:
        """Raises LatentbedError where the behaviour asks for what this artefact does not have."""
        match behaviour:
            case PassBehaviour():
                return Pass()
            case RecordBehaviour():
                return Recorder(self._state / "recorded" / f"{behaviour.run}.jsonl", self.victim.name)
            case ProbeBehaviour():
                reach = Reach(self._upstream, self._tls, self._overheard, self._state / "forged")
                journal = Journal(self.probes_path(behaviour.run))
                return Prober(behaviour.run, behaviour.tries, self._example(), reach, self._ledger, journal)
            case AttackBehaviour():
                # samples are read, a head is loaded, workers start off the relay's loop: frames pass meanwhile
                ready = await asyncio.to_thread(self._prepared, behaviour)
                return self._attacker(behaviour, ready[0], await asyncio.to_thread(self._engine, behaviour, ready))

    def _example(self) -> Frame:
        """A latent that needs no phone: the middle of the calibrated range, in the artefact's codec."""
        manifest, latent = self.victim.artefact.manifest, self.victim.artefact.latent
        codec = fit(manifest.codec, latent)
        middle = (latent.per_channel(latent.lo) + latent.per_channel(latent.hi)) / 2
        [payload] = codec.encode(np.broadcast_to(middle, (1, *latent.shape)).astype(np.float32))
        return Frame(id="", payloads=(payload,), codec=codec.name, shape=latent.shape, model=manifest.name)

    def _built(self, behaviour: AttackBehaviour) -> Attack:
        attack, threat = behaviour.attack, behaviour.threat
        if isinstance(attack, OwnAttack):
            kind, attack = attack.kind, attack.build(self._trusted)
            if threat.norm not in attack.norms:
                raise ScenarioError(f"attack {kind} has norms {', '.join(attack.norms)}, got {threat.norm}")
        return attack

    def _prepared(self, behaviour: AttackBehaviour) -> Prepared:
        """The attack, after its lesson if it takes one, and the pool."""
        attack, victim = self._built(behaviour), self.measured(behaviour)
        if behaviour.pool is None:
            return taught(attack, None), None
        held = stock(behaviour.pool, behaviour.threat.point, victim, self._state / "recorded")
        return taught(
            attack, held.pool, lambda: held.about(behaviour.threat, victim.classes or held.classes, behaviour.seed)
        ), held.pool

    def measured(self, behaviour: AttackBehaviour) -> Victim:
        """The model, with what the behaviour's units of eps need to know of it. Raises ScenarioError."""
        calibration = behaviour.calibration
        if calibration is None and isinstance(self._known, Endpoint) and isinstance(behaviour.pool, Recording):
            calibration = behaviour.pool.run
        return self.victim.measured(behaviour.threat, calibration, self._state / "recorded")

    def scale(self, behaviour: AttackBehaviour) -> dict[str, Any] | None:
        """What units of eps mean for a foreign endpoint, and where that comes from; None for an artefact, which says it."""
        victim = self.measured(behaviour)
        return victim.statistics.plain() if isinstance(victim, ForeignModel) else None

    def _engine(self, behaviour: AttackBehaviour, ready: Prepared) -> Engine:
        """A crew where the behaviour wants one; a blind attack asks nothing, and stays in this process."""
        if behaviour.workers and ready[0].feedback != "none":
            known = self._known.folder if isinstance(self._known, Artefact) else self._known
            place = Place(known, self._upstream, self._state, self._data_dir, frozenset(self._trusted), self._tls,
                          None if self._tracer is None else self._tracer.config)  # fmt: skip
            return Crew(place, behaviour)
        return self.engine(behaviour, self.record_path(behaviour.run) / "0", ready)

    def engine(self, behaviour: AttackBehaviour, record: Path, ready: Prepared | None = None) -> LocalEngine:
        """One process's share, with its record in that folder."""
        attack, pool = ready or self._prepared(behaviour)
        return LocalEngine(
            self._oracle(behaviour), self._ledger, attack, behaviour.threat, self._space_of(behaviour), pool=pool,
            run=behaviour.run, nonce=secrets.token_hex(3), seed=behaviour.seed, model=self.victim.name,
            max_rows=min(behaviour.max_rows, self.victim.max_rows),
            in_flight=behaviour.in_flight, sections=behaviour.sections, record=record,
            ended=frozenset(row["frame"] for row in read(self.sessions_path(behaviour.run))), tracer=self._tracer,
        )  # fmt: skip

    def _oracle(self, behaviour: AttackBehaviour) -> LiveOracle:
        credentials = self._overheard if behaviour.steal_token else lambda: None
        return LiveOracle(
            self._upstream, self.victim.form, streams=self.victim.streams, tls=self._tls, credentials=credentials,
            calls=self._deeds.client, handshake=self._known.manifest.handshake if isinstance(self._known, Artefact) else "",
        )  # fmt: skip

    def _attacker(self, behaviour: AttackBehaviour, attack: Attack, engine: Engine) -> Attacker:
        earlier = list(read(self.sessions_path(behaviour.run)))
        attacker = Attacker(
            attack, behaviour.threat, engine, Journal(self.sessions_path(behaviour.run)),
            seed=behaviour.seed, order=behaviour.order, share=behaviour.share,
            max_held=behaviour.max_held, max_held_bytes=behaviour.max_held_bytes, model=self.victim.name,
            form=self.victim.form, tracer=self._tracer, deeds=self._deeds,
        )  # fmt: skip
        self._deeds.begin(behaviour.run)
        attacker.recall(earlier, asked_earlier([self._ledger.path, *ledgers(self._state, behaviour.run)], behaviour.run))
        return attacker

    def _space_of(self, behaviour: AttackBehaviour) -> SpaceOf:
        victim = self.measured(behaviour)
        if behaviour.threat.point == "wire":
            return lambda frame: self._on_the_wire(victim, frame)
        assert behaviour.source is not None
        samples = open_source(behaviour.source, victim.artefact, self._data_dir)
        head = Head(victim.artefact)
        return lambda frame: self._insider(frame, behaviour.threat.point, samples, head)

    def _on_the_wire(self, victim: Victim, frame: Frame) -> WireSpace:
        if frame.codec == SEALED:
            # it shows no latent: all that can be asked about is one of the adversary's own making
            frame = self._example()
        return victim.space(victim.codec(frame.codec, frame.shape), frame.payloads[0], frame.template)

    def _insider(self, frame: Frame, point: str, samples: Samples, head: Head) -> Space:
        """The image behind a frame, checked: what the head and the codec make of it must be what is on the wire."""
        codec = self.victim.codec(frame.codec, frame.shape)
        sample = samples.sample_of(FrameId.parse(frame.id).sequence)
        image = as_unit(samples.images[sample : sample + 1])
        latent = head(image)
        expected, got = codec.snap(latent)[0], codec.decode([frame.payloads[0]])[0]
        if np.abs(expected - got).max() > float(codec.step.max()) + 1e-3 * codec.latent.std:
            raise ScenarioError(f"{frame.id}: the insider's sample is not the one on the wire: expected the phone's source")
        return InputSpace(image[0], head, codec) if point == "input" else LatentSpace(latent[0], codec)
