"""A scenario: one measurement, as data. YAML checked by pydantic; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, model_validator

from adversary.attacks import AttackConfig, OwnAttack
from adversary.pool import PoolConfig, Recording, fits_pool
from adversary.relay import Order
from edge_server.detectors import AnyDetector
from edge_server.policy import TimeoutAction
from edge_server.trial import TailKind
from mobile_client.passes import MAX_COUNT, Fixed, Load, Offline, Policy
from splitcore import document
from splitcore.artefact import FLOAT32, HeadName
from splitcore.codec import CodecConfig
from splitcore.codec.identity import Identity
from splitcore.data.source import ArtefactSource, SourceConfig
from splitcore.link import LinkInTime
from splitcore.threat import ThreatModel
from testbed.foreign.config import ForeignServer
from testbed.security import Security

NAME = Field(pattern=r"^[A-Za-z0-9_.+-]{1,32}$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AttackPass(_Strict):
    """The stream once more, under attack."""

    name: Annotated[str, NAME]
    attack: AttackConfig
    threat: ThreatModel = ThreatModel()
    order: Order = "overtake"
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """of the frames that are attacked"""
    frames: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """of this pass; None: the scenario's"""
    detectors: Literal["reject", "flag", "off"] | None = None
    """what the edge's detectors do in this pass: `flag` writes down what they find and lets it through; None: as configured"""
    max_held: Annotated[int, Field(ge=1, le=65536)] = 256
    sections: Annotated[int, Field(ge=2, le=64)] | Literal["auto"] = "auto"
    """parts a section search cuts its interval into: 2 asks the fewest rows, more need fewer round trips; `auto` measures"""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """processes that attack, each with a share of the frames; 0: the relay's own"""
    pool: PoolConfig | None = None
    """other latents that the adversary holds: start points of decision attacks, and what learners learn from.
    `{kind: recording, run: NAME}` is what a record pass that comes before this one recorded"""
    steal_token: bool = False
    """the adversary asks with the token that the phone says in clear text"""
    calibration: Annotated[str, NAME] | None = None
    """before a foreign server: the record pass whose frames tell ranges and standard deviation, which units of eps want"""

    @model_validator(mode="after")
    def _fits(self) -> AttackPass:
        # somebody's own attack is read by the adversary, which runs its code
        if not isinstance(self.attack, OwnAttack) and self.threat.norm not in self.attack.norms:
            raise ValueError(f"attack {self.attack.kind} has norms {', '.join(self.attack.norms)}, got {self.threat.norm}")
        fits_pool(self.attack, self.threat, self.pool)
        return self


class RecordPass(_Strict):
    """The stream once more, with an adversary that only listens: the other baseline, and what others learn from."""

    name: Annotated[str, NAME] = "record"
    record: Literal[True] = True
    source: SourceConfig | None = None
    """what the phone shows in this pass; None: the scenario's. Learners that recorded the very frames that they attack later
    do better than on frames that they have not seen"""
    frames: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """of this pass; None: the scenario's"""


class ProbePass(_Strict):
    """The stream once more, with an adversary that tries each thing there is to try against protected frames a few times."""

    name: Annotated[str, NAME] = "probe"
    probe: Annotated[int, Field(ge=1, le=1024)]
    """times"""
    frames: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """of this pass; None: the scenario's"""


def _which(entry: Any) -> str:
    """By what it is like, so that what is wrong with it is said once."""
    keys = entry if isinstance(entry, dict) else getattr(type(entry), "model_fields", ())
    return next((f"({key})" for key in ("attack", "probe") if key in keys), "(record)")


Pass: TypeAlias = AttackPass | RecordPass | ProbePass
EitherPass: TypeAlias = (
    Annotated[AttackPass, Tag("(attack)")] | Annotated[RecordPass, Tag("(record)")] | Annotated[ProbePass, Tag("(probe)")]
)


class Watch(_Strict):
    """How the phone judges the time that its frames are away."""

    window: Annotated[int, Field(ge=1, le=10_000)] = 8
    """answers in a row that are judged together"""
    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """share of the baseline's own windows above the threshold"""


class Phone(_Strict):
    """How the phone is started, where the testbed starts it."""

    head: HeadName | Literal["auto"] = FLOAT32
    """those in int8 are made by `latentbed quantise`; auto: what the phone measures to be best"""
    threads: Annotated[int, Field(ge=1)] = 1
    """of ONNX Runtime; `auto` chooses its own"""
    timing: Watch | None = None
    """whether the phone looks for somebody who holds its frames. Its baseline is the first `direct` pass, else the clean one"""


class OtherCut(_Strict):
    """A further artefact that phone and edge hold beside the scenario's own, for the same images and classes."""

    recipe: Path | None = None
    """a training, relative to the scenario's file; its artefact is made when it is missing"""
    artefact: Path | None = None
    """an artefact's folder, relative to the scenario's file; default `<runs>/artefacts/<recipe's name>`"""

    @model_validator(mode="after")
    def _fits(self) -> OtherCut:
        if self.recipe is None and self.artefact is None:
            raise ValueError("expected a `recipe` to train or an `artefact` to use, got neither")
        return self


class StreamPass(_Strict):
    """The stream once more without an attack, through the cuts that a policy chooses, or past the adversary."""

    name: Annotated[str, NAME]
    policy: Policy = Fixed()
    direct: bool = False
    """straight to the edge: nobody on the way"""
    frames: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """of this pass; None: the scenario's"""


class Edge(_Strict):
    """How the edge server is started, where the testbed starts it. Names and meanings are Triton's."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    tail: TailKind = "plain"
    """the form of the tail; not `auto` unless said: which one was faster that day would be in the last bits of every score"""
    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    preferred_batch_size: tuple[Annotated[int, Field(ge=1)], ...] = ()
    preserve_ordering: bool = False
    priority_levels: Annotated[int, Field(ge=0)] = 0
    default_priority_level: Annotated[int, Field(ge=0)] = 0
    timeout_action: TimeoutAction = "REJECT"
    default_timeout_microseconds: Annotated[int, Field(ge=0)] = 0
    allow_timeout_override: bool = True
    max_queue_delay_microseconds: Annotated[int, Field(ge=0)] = 0
    max_queue_size: Annotated[int, Field(ge=1)] = 4096
    trust: tuple[str, ...] = ()
    """whose code may build a tail that is not of splitcore.nn, or be a detector: modules, or files `x.py` relative to the
    scenario's file"""
    detectors: tuple[AnyDetector, ...] = ()
    """what watches the queries; they forget what they have seen before every pass"""


class Adversary(_Strict):
    """How the adversary is started, where the testbed starts it."""

    trust: tuple[str, ...] = ()
    """whose code may attack as `module:Class`: modules, or files `x.py` relative to the scenario's file"""


class Address(_Strict):
    """Where a node that was started by somebody else is reached."""

    control: str
    """host:port of its control API"""


class Nodes(_Strict):
    """Nodes that run already, in containers or on other hosts. They share one control token with the testbed."""

    client: Address
    adversary: Address | None
    edge: Address | tuple[Address, ...]
    """one, or the replicas behind a balancer: the books are compared with the logs of all"""
    token_file: Path
    trust: Path | None = None
    """authorities of control APIs that speak TLS, PEM; None: clear text"""
    telemetry: str = "0.0.0.0:5555"
    """where the collector listens, host:port; clocks are compared on the next port"""

    @model_validator(mode="after")
    def _some_edge(self) -> Nodes:
        if not self.edges:
            raise ValueError("expected one edge or more, got none")
        return self

    @property
    def edges(self) -> tuple[Address, ...]:
        return self.edge if isinstance(self.edge, tuple) else (self.edge,)


class Scenario(_Strict):
    """What `latentbed run` measures: a clean pass, one through the codec `identity`, and one for each stream and attack."""

    name: Annotated[str, NAME]
    recipe: Path | None = None
    """a training, relative to the scenario's file; its artefact is made when it is missing"""
    artefact: Path | None = None
    """an artefact's folder, relative to the scenario's file; default `<runs>/artefacts/<recipe's name>`"""
    cuts: tuple[OtherCut, ...] = ()
    """further artefacts; their order is the user's preference, after the scenario's own. Only `streams` use them"""
    source: SourceConfig = Field(default_factory=ArtefactSource)
    frames: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 256
    """of every pass: frame n shows sample n modulo the source's size"""
    codec: CodecConfig | None = None
    """None: the one that the artefact was trained with"""
    load: Load = Field(default_factory=Offline)
    window: Annotated[int, Field(ge=1, le=4096)] = 64
    """frames in flight at most"""
    deadline_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    """of every frame, from its scheduled arrival; it travels in the request"""
    link: LinkInTime | None = None
    """one that changes begins anew in every pass"""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    adversary: bool | Adversary = True
    """False: the client reaches the edge directly, there are no attacks"""
    attacks: tuple[Annotated[EitherPass, Discriminator(_which)], ...] = ()
    phone: Phone = Phone()
    streams: tuple[StreamPass, ...] = ()
    """the scenario's other passes without an attack: other cuts, or a phone that re-plans"""
    edge: Edge = Edge()
    security: Security | None = None
    """what protects the frames, and is measured; None: nothing"""
    nodes: Nodes | None = None
    """None: three processes on loopback"""
    server: ForeignServer | None = None
    """one that is none of ours, in the edge's place: the adversary knows of it what its metadata says. None: our edge server"""

    @model_validator(mode="after")
    def _fits(self) -> Scenario:
        if self.recipe is None and self.artefact is None:
            raise ValueError("expected a `recipe` to train or an `artefact` to use, got neither")
        if self.attacks and not self.adversary:
            raise ValueError("expected no attacks where `adversary: false`")
        if self.security is not None and self.nodes is not None and self.security.price_frames:
            raise ValueError(
                "expected `security: {price_frames: 0}` with `nodes`: what runs already is not started to be measured"
            )
        stealing = [one.name for one in self.attacks if isinstance(one, AttackPass) and one.steal_token]
        if stealing and (self.security is None or not self.security.tokens):
            raise ValueError(f"expected `security: {{tokens: true}}` where a token is stolen, in {', '.join(stealing)}")
        if self.server is not None and (self.nodes is not None or self.cuts or self.streams or self.security is not None):
            raise ValueError("expected no `nodes`, `cuts`, `streams` or `security` with a foreign `server`: it serves one tail")
        if self.server is not None and not isinstance(self.codec, Identity | None):
            raise ValueError("expected `codec: {kind: identity}` with a foreign `server`: it takes latents as they are")
        if self.adversary and self.nodes is not None and self.nodes.adversary is None:
            raise ValueError("expected the adversary's address in `nodes`, or `adversary: false`")
        names = [one.name for one in (*self.streams, *self.attacks)]
        if len({*names, "clean", "identity"}) != len(names) + 2:
            raise ValueError(f"expected names that differ from each other and from clean and identity, got {names}")
        recorded: list[str] = []
        for attack in self.attacks:
            if isinstance(attack, RecordPass):
                recorded.append(attack.name)
                continue
            if not isinstance(attack, AttackPass):
                continue
            used = [attack.pool.run] if isinstance(attack.pool, Recording) else []
            used += [] if attack.calibration is None else [attack.calibration]
            missing = next((name for name in used if name not in recorded), None)
            if missing is not None:
                raise ValueError(
                    f"attack {attack.name}: expected a record pass before it whose recording it uses, got {missing!r} "
                    f"with {', '.join(recorded) or 'none'} before it: put `- {{name: {missing}, record: true}}` first"
                )
        return self


Trusting = TypeVar("Trusting", Edge, Adversary)
SCENARIO: TypeAdapter[Scenario] = TypeAdapter(Scenario)


def load_scenario(path: Path) -> Scenario:
    """The scenario in a YAML file; its paths are made absolute from the file's folder. Raises ScenarioError."""
    scenario = document.load(SCENARIO, path, "scenario")
    base = path.resolve().parent
    absolute = {
        key: (base / value).resolve() for key in ("recipe", "artefact") if (value := getattr(scenario, key)) is not None
    }
    cuts = tuple(
        cut.model_copy(
            update={key: (base / value).resolve() for key in ("recipe", "artefact") if (value := getattr(cut, key)) is not None}
        )
        for cut in scenario.cuts
    )
    edge, adversary = _meant_from(base, scenario.edge), scenario.adversary
    if not isinstance(adversary, bool):
        adversary = _meant_from(base, adversary)
    return scenario.model_copy(update={**absolute, "cuts": cuts, "edge": edge, "adversary": adversary})


def _meant_from(base: Path, node: Trusting) -> Trusting:
    trust = tuple(str(base / entry) if entry.endswith(".py") else entry for entry in node.trust)
    return node.model_copy(update={"trust": trust})


def dump_scenario(scenario: Scenario) -> str:
    """As YAML, all defaults written out; `load_scenario` reads it back."""
    return yaml.safe_dump(scenario.model_dump(mode="json"), sort_keys=False, width=120)
