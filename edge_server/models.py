"""What this server serves: models by name, each with its artefact, its admission, its tail and its counts.

One collection, asked by name wherever a request says which model it means. A model is whole by itself; the batcher makes
a queue for it when its first request comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import grpc

from edge_server.admission import VERSION, Admission
from edge_server.batch import BatchComputer, Done
from edge_server.metrics import Counts
from edge_server.queue import Taken
from edge_server.refusal import Refused
from splitcore.artefact import Artefact, agree
from splitcore.errors import ArtefactError, HandshakeError
from splitcore.latent import F32
from splitcore.wire import oip


class OnDevice(Protocol):
    """A tail, in torch or in ONNX Runtime."""

    @property
    def device(self) -> str: ...

    def __call__(self, latents: F32) -> F32: ...

    def warm_up(self) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """One artefact that is served."""

    artefact: Artefact
    tail: OnDevice
    computer: BatchComputer
    admission: Admission
    counts: Counts = field(default_factory=Counts)

    @property
    def name(self) -> str:
        return self.artefact.manifest.name

    @cached_property
    def handshake(self) -> str:
        return self.artefact.manifest.handshake


def check_names(artefacts: Sequence[Artefact]) -> None:
    """A request names its model, so no two may share a name. Raises ArtefactError."""
    folders: dict[str, Artefact] = {}
    for artefact in artefacts:
        before = folders.setdefault(artefact.manifest.name, artefact)
        if before is not artefact:
            raise ArtefactError(
                f"expected artefacts of different names, got {artefact.manifest.name!r} from {before.folder} and from "
                f"{artefact.folder}: leave one out, or export it under another name"
            )


class Models:
    """The models by name. The first is meant by whoever names none."""

    def __init__(self, models: Sequence[Model]) -> None:
        check_names([model.artefact for model in models])
        self._by_name = {model.name: model for model in models}
        self.first = models[0]

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: str, version: str) -> Model:
        """An empty name or version leaves the choice to the server. Raises Refused."""
        model = self._by_name.get(name) if name else self.first
        if model is None or version not in ("", VERSION):
            known = " or ".join(map(repr, self._by_name))
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                "INVALID",
                f"expected model {known} version {VERSION!r}, got {name[:100]!r} version {version[:32]!r}",
            )
        return model

    def counts(self, name: str) -> Counts:
        """What is asked of no model of ours is counted with the first."""
        return self._by_name.get(name, self.first).counts

    @property
    def handshakes(self) -> tuple[tuple[str, str], ...]:
        """What every call begins with: one entry a model."""
        return tuple((oip.ARTEFACT_METADATA, model.handshake) for model in self)

    def check_handshake(self, metadata: grpc.aio.Metadata | None) -> Refused | None:
        """What to answer to a caller whose metadata name another artefact. Whoever names none is not checked."""
        for key, value in metadata or ():
            theirs = str(value)
            if key != oip.ARTEFACT_METADATA or any(theirs == model.handshake for model in self):
                continue
            same_name = self._by_name.get(theirs.partition("@")[0])
            ours = [same_name.handshake] if same_name else [model.handshake for model in self]
            try:
                agree(" and ".join(ours), theirs, we="edge server", they="client")
            except HandshakeError as error:
                return Refused(grpc.StatusCode.FAILED_PRECONDITION, "HANDSHAKE", str(error))
        return None

    def warm_up(self) -> None:
        """On the tail's thread. Raises what a first run raised."""
        for model in self:
            model.tail.warm_up()

    def compute(self, taken: Taken) -> Done:
        """On the tail's thread: a batch of one model."""
        return self._by_name[taken.model].computer(taken)
