"""One artefact's points: a phone and an edge, a pass of every image through each codec, and what the phone's journal says."""

from __future__ import annotations

import hashlib
import json
import secrets
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from mobile_client.passes import Offline, PassRequest
from splitcore.artefact import Artefact
from splitcore.codec import CodecConfig, fit
from splitcore.data.source import SourceConfig, open_source
from splitcore.journal import read
from testbed.envelope import envelope_bytes
from testbed.nodes import NodeError, following, local_nodes
from testbed.report.statistics import rate_of
from testbed.scenario import Edge, Scenario

Row: TypeAlias = dict[str, Any]
_SOURCE: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)


def key(artefact: Artefact, codec: CodecConfig, source: SourceConfig) -> str:
    """What decides a point."""
    said = [artefact.manifest.handshake, fit(codec, artefact.latent).name, _SOURCE.dump_python(source, mode="json")]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def points(
    artefact: Artefact, codecs: Sequence[CodecConfig], source: SourceConfig, folder: Path, *, device: str,
    data_dir: Path | None, tell: Callable[[str, int, int], None],
) -> Iterator[Row]:  # fmt: skip
    """A row for each codec, as it is measured. `tell`: codec, frames answered, frames. Raises LatentbedError."""
    count = len(open_source(source, artefact, data_dir).images)
    scenario = Scenario(name="rates", artefact=artefact.folder, adversary=False, edge=Edge(device=device))
    with local_nodes(scenario, artefact.folder, folder, None, data_dir) as trio:
        for config in codecs:
            name = fit(config, artefact.latent).name
            run = f"{artefact.manifest.name}.{secrets.token_hex(3)}"
            request = PassRequest(run=run, count=count, source=source, codec=config, load=Offline(), window=64)
            trio.client.post("/passes", request.model_dump(mode="json"))
            for done in following(trio.client, run):
                tell(name, done, count)
            journal = folder / f"{run}.jsonl"
            trio.client.save(f"/passes/{run}/frames", journal)
            frames = list(read(journal))
            journal.unlink()
            yield _row(artefact, config, name, frames) | {"key": key(artefact, config, source)}


def _row(artefact: Artefact, codec: CodecConfig, name: str, frames: Sequence[dict[str, Any]]) -> Row:
    manifest = artefact.manifest
    errors = [frame["error"] for frame in frames if frame["error"] is not None]
    if errors:
        raise NodeError(f"{manifest.name} through {name}: {len(errors)} of {len(frames)} frames had no label: {errors[0]}")
    sent = [frame["bytes_up"] / frame["attempts"] for frame in frames]
    right = rate_of(sum(frame["predicted"] == frame["label"] for frame in frames), len(frames))
    return {
        "artefact": manifest.name, "handshake": manifest.handshake, "approach": manifest.approach, "codec": name,
        "n": len(frames), "accuracy": right.model_dump(), "unsplit_on_samples": manifest.accuracy,
        "bytes": {"mean": statistics.fmean(sent), "least": min(sent), "most": max(sent)},
        "envelope_bytes": envelope_bytes(artefact, name, str(frames[0]["id"]), 0),
    }  # fmt: skip
