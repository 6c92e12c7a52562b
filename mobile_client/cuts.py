"""The cuts that a phone has prepared: artefacts whose heads are loaded and whose tails the edge serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobile_client.passes import Fixed, Policy
from mobile_client.settings import Setting
from splitcore.artefact import FLOAT32, Artefact, HeadName, Manifest
from splitcore.codec import Codec, CodecConfig, fit
from splitcore.errors import ArtefactError, ScenarioError
from splitcore.head import Head, names


@dataclass(frozen=True, eq=False)
class Cut:
    """One of them, with the codec of a pass."""

    artefact: Artefact
    head: Head
    codec: Codec

    @property
    def manifest(self) -> Manifest:
        return self.artefact.manifest

    @property
    def name(self) -> str:
        return self.manifest.name


class Cuts:
    """Loaded once a process. The first is what a pass uses unless told otherwise. Raises ArtefactError."""

    def __init__(self, folders: Sequence[Path], setting: Setting) -> None:
        """`setting` is the first's; a further artefact that has no such head runs the one that all have."""
        artefacts = [Artefact(folder) for folder in folders]
        self.first = artefacts[0]
        called = [artefact.manifest.name for artefact in artefacts]
        if len(set(called)) < len(called):
            raise ArtefactError(f"expected artefacts of different names, got {called}: leave one out")
        for artefact in artefacts[1:]:
            _check_same_task(self.first.manifest, artefact.manifest)
        self._loaded = [(self.first, _head(self.first, setting, setting.head))]
        for artefact in artefacts[1:]:
            name = setting.head if setting.head in names(artefact) else FLOAT32
            self._loaded.append((artefact, _head(artefact, setting, name)))

    def for_pass(self, policy: Policy, codec: CodecConfig | None) -> list[Cut]:
        """Those that the policy may use, in order, each with the pass's codec or its own. Raises CodecError, ScenarioError."""
        used = self._loaded
        if isinstance(policy, Fixed):
            name = policy.artefact or self.first.manifest.name
            used = [(artefact, head) for artefact, head in self._loaded if artefact.manifest.name == name]
            if not used:
                prepared = [artefact.manifest.name for artefact, _ in self._loaded]
                raise ScenarioError(
                    f"expected a policy with one of the artefacts {prepared}, got {name!r}: give the phone it too"
                )
        return [Cut(artefact, head, fit(codec or artefact.manifest.codec, artefact.latent)) for artefact, head in used]


def _head(artefact: Artefact, setting: Setting, name: HeadName) -> Head:
    return Head(artefact, setting.threads, name=name, spinning=setting.spinning)


def _check_same_task(one: Manifest, other: Manifest) -> None:
    for what in ("input_shape", "preprocessing", "classes"):
        if getattr(one, what) != getattr(other, what):
            raise ArtefactError(
                f"expected artefacts for the same images and classes, got {one.name} with {what} "
                f"{str(getattr(one, what))[:100]} and {other.name} with {str(getattr(other, what))[:100]}: "
                "a frame could not go through either"
            )
