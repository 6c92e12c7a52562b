"""What this server serves: models by name and version, each with its artefact, its admission, its tail and its counts.

One table, asked by name and version wherever a request says which model it means; it changes by whole names at once, so
no request sees half of a change. A model is whole by itself; the batcher makes a queue for it when its first request
comes. One that was taken from the table computes what it had accepted, and is then forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import grpc

from edge_server.admission import Admission
from edge_server.batch import BatchComputer, Done, OnDevice
from edge_server.metrics import Counts
from edge_server.queue import Job, Taken
from edge_server.refusal import Refused
from edge_server.trial import Trial
from splitcore.artefact import Artefact, agree
from splitcore.errors import ArtefactError, HandshakeError
from splitcore.telemetry.context import METADATA
from splitcore.wire import oip

MAX_SERVED = 32
"""models and versions at once: every call begins with their handshakes, and metadata end at 8 KiB"""

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
"""Triton's words"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """One artefact that is served as one version of a model."""

    artefact: Artefact
    version: str
    key: str
    """names its queue: another one whenever an artefact is loaded"""
    tail: OnDevice
    computer: BatchComputer
    admission: Admission
    counts: Counts
    """of all artefacts that were this version of the model"""
    trials: tuple[Trial, ...] = ()
    """the forms of the tail that were measured when it was loaded"""

    @property
    def name(self) -> str:
        return self.artefact.manifest.name

    @cached_property
    def handshake(self) -> str:
        return self.artefact.manifest.handshake


class Models:
    """The table. The first name is meant by whoever names none, the newest version by whoever names no version."""

    def __init__(self, default: str) -> None:
        """`default`: the name that is meant by whoever names none."""
        self.default = default
        self.handshakes: tuple[tuple[str, str], ...] = ()
        """what every call begins with: one entry a version"""
        self.changes = 0
        """how often the table has changed: who compared handshakes does so again"""
        self.states: dict[tuple[str, str], tuple[State, str]] = {}
        """of every (name, version) that was ever asked for: its state and the reason for it"""
        self.counted: dict[tuple[str, str], Counts] = {}
        """by (name, version), for the life of the server: counters never go back"""
        self._served: dict[str, dict[str, Model]] = {}
        self._by_key: dict[str, Model] = {}
        self._strays = Counts()

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._served.values() for model in versions.values())

    def __len__(self) -> int:
        return sum(map(len, self._served.values()))

    def versions(self, name: str) -> Mapping[str, Model]:
        """Those of one model that are served, the newest first."""
        return self._served.get(name, {})

    def find(self, name: str, version: str) -> Model:
        """An empty name or version leaves the choice to the server. Raises Refused."""
        versions = self._served.get(name or self.default)
        if versions:
            model = versions.get(version) if version else next(iter(versions.values()))
            if model is not None:
                return model
        raise self._missing(name or self.default, version)

    def put(self, name: str, models: Iterable[Model]) -> list[Model]:
        """From now on these are the versions of one model; none: it is served no more. Gives those that were taken out.

        Raises ArtefactError, and nothing has changed.
        """
        versions = {model.version: model for model in sorted(models, key=lambda model: -int(model.version))}
        before = self.versions(name)
        if len(self) - len(before) + len(versions) > MAX_SERVED:
            raise ArtefactError(
                f"expected at most {MAX_SERVED} models and versions at once, got {len(self) - len(before)} and "
                f"{len(versions)} of {name}: unload some, or keep fewer versions"
            )
        retired = [model for model in before.values() if versions.get(model.version) is not model]
        if versions:
            self._served[name] = versions
        else:
            self._served.pop(name, None)
        for model in versions.values():
            self._by_key[model.key] = model
            self.counted[name, model.version] = model.counts
            self.states[name, model.version] = ("READY", "")
        self.handshakes = tuple((oip.ARTEFACT_METADATA, model.handshake) for model in self)
        self.changes += 1
        return retired

    def forget(self, model: Model) -> None:
        """When the last request of one that was taken out is answered."""
        self._by_key.pop(model.key, None)

    def counts(self, name: str, version: str) -> Counts:
        """What is asked of no model of ours is counted with the default one."""
        versions = self.versions(name or self.default) or self.versions(self.default)
        model = versions.get(version) or next(iter(versions.values()), None)
        if model is not None:
            return model.counts
        return next((counts for (known, _), counts in self.counted.items() if known == self.default), self._strays)

    def computed(self, done: Done) -> None:
        """On the event loop: a batch was computed."""
        self._by_key[done.model].counts.done(done)

    def replied(self, job: Job, now_ns: int) -> None:
        """On the event loop: an answer has left, perhaps of a model that was taken out meanwhile."""
        model = self._by_key.get(job.model)
        if model is not None:
            model.counts.replied(job, now_ns)
            return
        name, _, version = job.model.partition("#")[0].rpartition("@")
        if (name, version) in self.counted:
            self.counted[name, version].replied(job, now_ns)

    def compute(self, taken: Taken) -> Done:
        """On the tail's thread: a batch of one model."""
        return self._by_key[taken.model].computer(taken)

    def differ(self, theirs: str) -> Refused | None:
        """What to answer to a caller that holds an artefact, where it is none of ours."""
        if any(theirs == model.handshake for model in self):
            return None
        name = theirs.partition("@")[0]
        same_name = self.versions(name)
        if not same_name and any(known == name for known, _ in self.states):
            return self._missing(name, "")
        ours = [model.handshake for model in same_name.values() or self]
        try:
            agree(" and ".join(ours), theirs, we="edge server", they="client")
        except HandshakeError as error:
            return Refused(grpc.StatusCode.FAILED_PRECONDITION, "HANDSHAKE", str(error))
        return None

    def _missing(self, name: str, version: str) -> Refused:
        known = " or ".join(
            f"{model!r} version {' or '.join(map(repr, sorted(versions, key=int)))}" for model, versions in self._served.items()
        )
        asked = f"{name[:100]!r} version {version[:32]!r}"
        reasons = {reason for (model, v), (_, reason) in self.states.items() if model == name and version in ("", v) and reason}
        if reasons:
            text = f"model {asked} is not available: {'; '.join(sorted(reasons))}; served: {known or 'none'}"
            return Refused(grpc.StatusCode.UNAVAILABLE, "INVALID", text)
        text = f"Request for unknown model: expected {known or 'one that is loaded (none is)'}, got {asked}"
        return Refused(grpc.StatusCode.NOT_FOUND, "INVALID", text)


class Holder:
    """A caller, by the artefacts that its metadata say it holds. Whoever names none is not checked."""

    def __init__(self, models: Models, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        self._models = models
        said = tuple(metadata or ())
        self._held: Sequence[str] = [str(value) for key, value in said if key == oip.ARTEFACT_METADATA]
        self.trace = next((str(value) for key, value in said if key == METADATA), "")
        """W3C context of the call; empty: none"""
        self._changes = -1
        self._refusal: Refused | None = None

    def check(self) -> None:
        """Raises Refused where it holds an artefact that is not served; looked up again when the table has changed."""
        if self._held and self._changes != self._models.changes:
            self._changes = self._models.changes
            refusals = map(self._models.differ, self._held)
            self._refusal = next((refusal for refusal in refusals if refusal is not None), None)
        if self._refusal is not None:
            raise self._refusal

    def find(self, name: str, version: str) -> Model:
        """As `Models.find`, but a caller that names no version gets the one whose artefact it holds. Raises Refused."""
        self.check()
        model = self._models.find(name, version)
        if not self._held or model.handshake in self._held:
            return model
        for other in self._models.versions(model.name).values():
            if other.handshake in self._held:
                if not version:
                    return other
                raise Refused(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "HANDSHAKE",
                    f"expected frames for version {other.version!r} of model {model.name}, whose artefact the client holds "
                    f"({other.handshake[:160]}), got version {version!r}, which is {model.handshake[:160]}: "
                    "name no version, or give the client that artefact",
                )
        return model
