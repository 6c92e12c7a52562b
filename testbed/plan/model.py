"""What a plan is, as its JSON has it: docs/plan.md says what the fields mean. A file of another version is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from splitcore.errors import ScenarioError
from splitcore.link import LinkProfile

Kind: TypeAlias = Literal["image", "cut", "phone"]
Place: TypeAlias = Literal["phone", "uplink", "edge", "downlink"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Spread(_Strict):
    """Of a time in ms."""

    p50: float
    p90: float
    p99: float


class Device(_Strict):
    """Where phone and edge ran when they were measured."""

    id: str
    """of everything below: two profiles of one id were measured under the same conditions"""
    cpu: str
    cores: int
    platform: str
    onnxruntime: str
    phone_threads: int
    edge_threads: int
    """0: half the cores"""
    edge_device: str


class Accuracy(_Strict):
    """Of `n` samples, through the candidate's codec."""

    value: float
    agreement: float
    """share that has the label of the whole network without any codec"""
    n: int


class Stages(_Strict):
    """Of a frame in phone and edge, one in flight. `rest` is what is left of the total: threads, journal, gRPC, queue."""

    head: Spread
    encode: Spread
    decode: Spread
    tail: Spread
    rest: Spread


class Candidate(_Strict):
    """One way to divide the work, with all of it that does not depend on the link."""

    name: str
    kind: Kind
    cut: str
    latent: tuple[int, ...]
    codec: str
    folder: str | None
    """of its artefact; None where none is served"""
    measured: str
    """how"""
    payload_bytes: float
    """mean of the frames, as the next ones"""
    request_bytes: float
    """the serialised request"""
    reply_bytes: float
    up_bytes: float
    """with gRPC's and HTTP/2's framing: what the link carries for a frame"""
    down_bytes: float
    stages_ms: Stages
    total_ms: tuple[float, ...]
    """in phone and edge, without the link: quantiles from 0 to 1 in equal steps"""
    frames: int
    accuracy: Accuracy | None


class Profile(_Strict):
    """What was measured on this device: all that a plan for another link needs."""

    network: str
    dataset: str
    measured_at: str
    device: Device
    load: float
    """processes that ran or waited for a core over the minute before, on average: a busy machine measures long times"""
    notes: tuple[str, ...]
    floor_ms: float
    """round trip of an empty call to the edge on loopback: what a measured link's round trip has of gRPC's own"""
    candidates: tuple[Candidate, ...]


class Prediction(_Strict):
    """One candidate over one link."""

    candidate: str
    total_ms: Spread
    up_ms: float
    """p50 of what the link takes for the request, its delay included"""
    down_ms: float
    frames_per_s: float
    """when frames follow one another without waiting: as many as the slowest place lets through"""
    slowest: Place


class LinkPlan(_Strict):
    """All candidates over one link."""

    name: str
    link: LinkProfile
    source: Literal["given", "measured"]
    best: str
    """the candidate with the lowest p50"""
    best_sent: str
    """likewise, of those that the edge serves: what `--check` measures"""
    predictions: tuple[Prediction, ...]


class Check(_Strict):
    """One candidate over one link, by a phone and an edge that really ran."""

    candidate: str
    link: str
    predicted_ms: Spread
    measured_ms: Spread
    ratio: float
    """predicted over measured, of the p50"""
    frames: int


class Plan(_Strict):
    """plan.json"""

    schema_version: Literal[1] = 1
    command: str
    profile: Profile
    links: tuple[LinkPlan, ...]
    checks: tuple[Check, ...] = ()


def load_plan(path: Path) -> Plan:
    """Raises ScenarioError."""
    try:
        return Plan.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ScenarioError(
            f"expected {path} to be a plan.json of schema version 1: {error}: measure without --profile"
        ) from error
