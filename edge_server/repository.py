"""Where artefacts lie, and how they come into the server and leave it while it serves.

Given one by one (`--artefact DIR`, `--artefact DIR@2` as version 2), or in a folder with NAME/VERSION/manifest.json in it
(`--repository DIR`), which is looked at again whenever a model is loaded.

A load reads, checks and builds every version on a thread of its own, runs each of them warm on the tail's thread between
two batches, and then puts them into the table all at once. What was accepted for a version that leaves the table is
computed, later requests are told that it is gone. The same artefact is not loaded twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from edge_server.batcher import Batcher
from edge_server.models import Model, Models
from edge_server.refusal import Refused
from splitcore.artefact import MANIFEST, Artefact
from splitcore.errors import ArtefactError, LatentbedError
from splitcore.telemetry.clock import now_ns

_log = logging.getLogger(__name__)

VERSION = re.compile(r"[1-9][0-9]{0,8}")
"""as Triton's: a whole number; the largest is the newest"""


@dataclass(frozen=True)
class VersionPolicy:
    """Which of a model's versions in the repository are served: Triton's `latest` (so many of the newest) or `all`."""

    latest: int | None = None
    """None: all"""

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """Of `all`, `latest` or `latest:N`. Raises ValueError."""
        kind, _, number = text.partition(":")
        if text == "all":
            return cls()
        if kind == "latest" and (text == "latest" or VERSION.fullmatch(number)):
            return cls(int(number or 1))
        raise ValueError(f"expected a version policy `all`, `latest` or `latest:N`, got {text[:40]!r}")

    def pick(self, versions: Mapping[str, Path]) -> dict[str, Path]:
        newest = sorted(versions, key=int, reverse=True)
        return {version: versions[version] for version in newest[: self.latest]}

    def config(self) -> dict[str, Any]:
        """Triton's ModelVersionPolicy."""
        return {"all": {}} if self.latest is None else {"latest": {"num_versions": self.latest}}


class Shelf:
    """What can be loaded: by name, the folder of each version."""

    def __init__(self, artefacts: Sequence[Path], repositories: Sequence[Path], policy: VersionPolicy) -> None:
        """Raises ArtefactError where a folder is no artefact, or two are the same version of a model."""
        self._repositories, self._policy = repositories, policy
        self._given: dict[str, dict[str, Path]] = {}
        for place in artefacts:
            folder, version = split_version(place)
            name = Artefact(folder).manifest.name
            versions = self._given.setdefault(name, {})
            if version in versions:
                raise ArtefactError(
                    f"expected artefacts of different names, got {name!r} version {version} from {versions[version]} and from "
                    f"{folder}: leave one out, or say that it is another version ({folder}@{int(version) + 1})"
                )
            versions[version] = folder
        for folder in repositories:
            if not folder.is_dir():
                raise ArtefactError(f"expected a folder of models in {folder}, found none: make it, or leave --repository out")

    def names(self) -> list[str]:
        """The given ones first, in their order."""
        found = (path.name for folder in self._repositories for path in sorted(folder.iterdir()) if path.is_dir())
        return list(dict.fromkeys((*self._given, *(name for name in found if self.versions(name)))))

    def versions(self, name: str) -> dict[str, Path]:
        """The newest first, as many as the policy serves. {}: no such model."""
        versions = dict(self._given.get(name, {}))
        for folder in self._repositories:
            # a name from the wire is compared with names on the disk, and never becomes a path itself
            for model in (path for path in folder.iterdir() if path.name == name and path.is_dir()):
                for place in model.iterdir():
                    if VERSION.fullmatch(place.name) and (place / MANIFEST).is_file():
                        versions.setdefault(place.name, place)
        return self._policy.pick(versions)


def split_version(place: Path) -> tuple[Path, str]:
    """(DIR, '2') of DIR@2, (DIR, '1') of DIR."""
    folder, at, version = place.name.rpartition("@")
    if at and VERSION.fullmatch(version) and not place.exists():
        return place.with_name(folder), version
    return place, "1"


Build = Callable[[Artefact, str, str], Model]
"""(artefact, version, key of its queue): runs on a thread. Raises LatentbedError, ValueError"""


class Repository:
    """Loads and unloads, one model at a time."""

    def __init__(
        self, shelf: Shelf, models: Models, batcher: Batcher, build: Build, changed: Callable[[], Awaitable[None]]
    ) -> None:
        """`changed` is called when the table is another one."""
        self._shelf, self._models, self._batcher, self._build, self._changed = shelf, models, batcher, build, changed
        self._lock = asyncio.Lock()
        self._keys = itertools.count(1)
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Everything that there is, all at once. Raises LatentbedError, ValueError, OSError."""
        async with self._lock:
            shelf = {name: self._shelf.versions(name) for name in self._shelf.names()}
            loaded = {
                name: [await self._loaded(name, version, folder) for version, folder in versions.items()]
                for name, versions in shelf.items()
            }
            for name, models in loaded.items():
                self._models.put(name, models)
            await self._changed()

    async def load(self, name: str) -> None:
        """As the shelf has it now. Raises Refused, and everything is served as before."""
        async with self._lock:
            versions = await asyncio.to_thread(self._shelf.versions, name)
            if not versions:
                known = ", ".join(await asyncio.to_thread(self._shelf.names))
                raise Refused(
                    grpc.StatusCode.NOT_FOUND,
                    "INVALID",
                    f"failed to load {name[:100]!r}: expected a model that this server was started with, or one of its "
                    f"repository with a folder {name[:100]}/VERSION ({known[:400]}), got another name",
                )
            try:
                loaded = [await self._loaded(name, version, folder) for version, folder in versions.items()]
                retired = self._models.put(name, loaded)
            except (LatentbedError, ValueError, OSError, RuntimeError) as error:
                for version in versions:
                    self._fail(name, version, f"failed to load: {error}")
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "INVALID", f"failed to load {name!r}: {error}") from error
            await self._left(retired, "not in the repository any more, or not served by its version policy")

    async def unload(self, name: str) -> None:
        """Raises Refused where it was not served."""
        async with self._lock:
            if not self._models.versions(name):
                self._models.find(name or "?", "")  # says why not
            await self._left(self._models.put(name, ()), "unloaded")

    async def close(self) -> None:
        """Waits for nobody: what leaves is forgotten with the server."""
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _loaded(self, name: str, version: str, folder: Path) -> Model:
        artefact = await asyncio.to_thread(Artefact, folder)
        if artefact.manifest.name != name:
            raise ArtefactError(
                f"expected an artefact named {name!r} in {folder}, got {artefact.manifest.name!r}: rename the folder"
            )
        served = self._models.versions(name).get(version)
        if served is not None and served.handshake == artefact.manifest.handshake:
            return served
        if served is None:
            self._models.states[name, version] = ("LOADING", "being loaded")
        began_ns = now_ns()
        before = (name, version) in self._models.counted
        key = f"{name}@{version}" + (f"#{next(self._keys)}" if before else "")
        model = await asyncio.to_thread(self._build, artefact, version, key)
        await self._batcher.run(model.tail.warm_up)
        model.counts.load_s = (now_ns() - began_ns) / 1e9
        return model

    def _fail(self, name: str, version: str, reason: str) -> None:
        if version not in self._models.versions(name):
            self._models.states[name, version] = ("UNAVAILABLE", reason)

    async def _left(self, retired: Sequence[Model], reason: str) -> None:
        for model in retired:
            gone = model.version not in self._models.versions(model.name)
            if gone:
                self._models.states[model.name, model.version] = ("UNLOADING", reason)
            task = asyncio.create_task(self._leave(model, reason), name=f"unload {model.key}")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        await self._changed()

    async def _leave(self, model: Model, reason: str) -> None:
        await self._batcher.retire(model.key)
        self._models.forget(model)
        if self._models.states[model.name, model.version][0] == "UNLOADING":
            self._models.states[model.name, model.version] = ("UNAVAILABLE", reason)
        _log.info("%s is gone: %s", model.key, reason)
