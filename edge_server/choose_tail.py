"""Which form of a tail is fastest on this machine: measured when it is loaded, and written down.

A candidate must say what torch says: its logits of held-out samples close to those of the plain form, every label the same.
What computes in less than float32 is no candidate: it is served where somebody asked for it, and what it changes is written
down too.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edge_server.batch import OnDevice
from edge_server.graph_tail import GraphTail
from edge_server.onnx_tail import OnnxTail
from edge_server.tail import Tail
from edge_server.trial import TailKind, Trial
from splitcore.artefact import ONNX_TAIL, Artefact
from splitcore.head import Head
from splitcore.latent import F32

_log = logging.getLogger(__name__)

SAMPLES = 64
"""held-out samples on which candidates are compared"""
TOLERANCE = 1e-3
"""of a logit, as a share of the largest one: float32 sums in another order stay far below"""
BETTER = 0.95
"""a candidate must take less than this share of the plain form's time: what is level stays as it was written"""
MEASURE_S = 0.25
"""for each size of batch"""
MOST_ROWS = 8
"""of the larger batch that is measured beside single rows"""


@dataclass(frozen=True)
class Where:
    """What every form is made with."""

    artefact: Artefact
    device: str
    threads: int
    max_batch_size: int
    trusted: tuple[str, ...]
    exports: Path
    """folder for tails in ONNX that were exported at load"""


def choose(kind: TailKind, where: Where) -> tuple[OnDevice, tuple[Trial, ...]]:
    """The tail to serve, and what was tried. Raises ArtefactError; ValueError for a kind or device that is not there."""
    if where.artefact.manifest.tail.net == "onnx":
        # there is no other form of it
        if kind not in ("auto", "plain", "onnxruntime"):
            raise ValueError(f"expected --tail auto, plain or onnxruntime for a tail in ONNX, got {kind}")
        return make("onnxruntime", where), ()
    plain = make("eager", where)
    if kind in ("plain", "eager"):
        return plain, ()
    latents = _latents(where.artefact)
    expected = _logits(plain, latents, where.max_batch_size)
    trials, tails = [Trial("eager")], {"eager": plain}
    _measure(trials[0], plain, latents, where)
    for other in _candidates(plain.device) if kind == "auto" else (kind,):
        trial = Trial(other)
        trials.append(trial)
        try:
            tail = make(other, where)
            _compare(trial, expected, _logits(tail, latents, where.max_batch_size))
            _measure(trial, tail, latents, where)
            tails[other] = tail
        except Exception as error:
            # whatever a compiler or an exporter raises, the plain form serves; who asked for this one is told
            if kind != "auto":
                raise
            trial.against = f"{type(error).__name__}: {error}"[:500]
            _log.info("tail %s: %s", other, trial.against)
    best = next(trial for trial in trials if trial.kind == kind) if kind != "auto" else _best(trials)
    best.chosen = True
    if best.labels_changed:
        _log.warning("--tail %s changes %d of %d labels of the plain form", best.kind, best.labels_changed, len(latents))
    return tails[best.kind], tuple(trials)


def _best(trials: list[Trial]) -> Trial:
    plain, *others = trials
    fit = [trial for trial in others if not trial.against and trial.cost < BETTER * plain.cost]
    return min(fit, key=lambda trial: trial.cost, default=plain)


def _candidates(device: str) -> tuple[str, ...]:
    """What `auto` tries: not what takes a compiler, not what computes in less than float32."""
    return ("onnxruntime", "channels-last") if device == "cpu" else ("cuda-graphs", "channels-last", "onnxruntime")


def make(kind: str, where: Where) -> OnDevice:
    """One form of the tail, warm."""
    common = {"device": where.device, "threads": where.threads, "max_batch_size": where.max_batch_size}
    tail: OnDevice
    match kind:
        case "onnxruntime":
            own = where.artefact.manifest.tail.net == "onnx"
            tail = OnnxTail(where.artefact, **common, graph=None if own else _exported(where))  # type: ignore[arg-type]
        case "cuda-graphs":
            tail = GraphTail(where.artefact, **common, trusted=where.trusted)  # type: ignore[arg-type]
        case _:
            tail = Tail(where.artefact, **common, trusted=where.trusted, form=kind)  # type: ignore[arg-type]
    tail.warm_up()
    return tail


def _exported(where: Where) -> Path:
    """The tail in ONNX: the artefact's own file, else one that was exported before, else one that is exported now."""
    manifest = where.artefact.manifest
    if ONNX_TAIL in manifest.files:
        return where.artefact.path(ONNX_TAIL)
    path = where.exports / f"{manifest.digest}.onnx"
    if not path.exists():
        import onnx

        from splitcore.nn.split.whole import tail_graph

        where.exports.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        onnx.save(tail_graph(where.artefact, where.trusted), temporary)
        temporary.replace(path)
    return path


def _latents(artefact: Artefact) -> F32:
    """Of the artefact's own samples, through its own head."""
    return Head(artefact).from_uint8(artefact.samples[0][:SAMPLES])


def _logits(tail: Callable[[F32], F32], latents: F32, size: int) -> F32:
    return np.concatenate([tail(latents[at : at + size]).copy() for at in range(0, len(latents), size)])


def _compare(trial: Trial, expected: F32, got: F32) -> None:
    trial.furthest = float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-9))
    trial.labels_changed = int((got.argmax(axis=1) != expected.argmax(axis=1)).sum())
    if trial.labels_changed or trial.furthest > TOLERANCE:
        trial.against = (
            f"expected logits within {TOLERANCE} of the plain form's and the same labels, got {trial.furthest:.3g} "
            f"and {trial.labels_changed} others of {len(expected)}"
        )


def _measure(trial: Trial, tail: OnDevice, latents: F32, where: Where) -> None:
    """The median time of a batch, by its rows."""
    for rows in sorted({1, min(MOST_ROWS, where.max_batch_size, len(latents))}):
        room = tail.room(rows)
        assert room is not None
        room[...] = latents[:rows]
        took = list[float]()
        until = time.perf_counter() + MEASURE_S
        while len(took) < 3 or time.perf_counter() < until:
            start = time.perf_counter()
            tail(room)
            took.append(time.perf_counter() - start)
        trial.ms[rows] = statistics.median(took) * 1e3


def record(path: Path, trials: dict[str, tuple[Trial, ...]], threads: int) -> None:
    """What was chosen of which forms, by model, in STATE."""
    if any(trials.values()):
        written = {"threads": threads, "models": {name: [asdict(trial) for trial in of] for name, of in trials.items()}}
        path.write_text(json.dumps(written, indent=1) + "\n")
