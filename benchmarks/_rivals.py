"""The other libraries' own attacks over the same wire: each call of theirs is one request on a stream like ours."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from adversary.oracle import LiveOracle
from benchmarks._server import Asker, Server
from splitcore.latent import F32


@dataclass
class Rival:
    """What a library's attack took."""

    name: str
    n: int
    wall_s: float
    rows: int
    requests: int
    distance: float
    """median l2 over the samples, in the latent's own values; infinite where it failed"""
    fell: int

    @property
    def wall_of_64_s(self) -> float:
        """They take one sample after the other: in proportion."""
        return self.wall_s * 64 / self.n


@contextlib.contextmanager
def _asking(server: Server, target: str | None) -> Iterator[Asker]:
    oracle = LiveOracle(target or server.target)
    asker = Asker(oracle, server.codec)
    asker(server.latents[:1])  # the connection is there
    asker.rows = asker.requests = 0
    yield asker
    oracle.close()


def art(server: Server, name: str, make: Callable[[Any], Any], *, n: int, target: str | None = None, seed: int = 0) -> Rival:
    """An ART attack on the first n samples; `make` gets the classifier."""
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    with _asking(server, target) as asker:
        classifier = BlackBoxClassifierNeuralNetwork(
            lambda x: asker(_latents(server, x)), server.latents.shape[1:], len(server.artefact.manifest.classes),
            clip_values=(0.0, 1.0), channels_first=True,
        )  # fmt: skip
        np.random.seed(seed)
        attack = make(classifier)
        x = _unit(server)[:n]
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = attack.generate(x)
        wall = time.perf_counter() - start
        rows, requests = asker.rows, asker.requests
        return _rival(server, f"ART {name}", asker, found, wall, rows, requests)


def foolbox(server: Server, name: str, attack: Any, *, n: int, target: str | None = None) -> Rival:
    """A foolbox minimisation attack on the first n samples."""
    import eagerpy
    from foolbox.models import NumPyModel

    with _asking(server, target) as asker:
        model = NumPyModel(lambda x: asker(_latents(server, x)), bounds=(0, 1))
        np.random.seed(0)
        x = _unit(server)[:n]
        start = time.perf_counter()
        raw, _, _ = attack(model, eagerpy.astensor(x), eagerpy.astensor(server.labels[:n]), epsilons=None)
        wall = time.perf_counter() - start
        rows, requests = asker.rows, asker.requests
        return _rival(server, f"foolbox {name}", asker, raw.numpy(), wall, rows, requests)


def _rival(server: Server, name: str, asker: Asker, found: F32, wall_s: float, rows: int, requests: int) -> Rival:
    n = len(found)
    fell = asker(_latents(server, found)).argmax(axis=1) != server.labels[:n]
    distance = np.linalg.norm((_latents(server, found) - server.latents[:n]).reshape(n, -1), axis=1)
    return Rival(name, n, wall_s, rows, requests, float(np.median(np.where(fell, distance, np.inf))), int(fell.sum()))


def _unit(server: Server) -> F32:
    return np.clip((server.latents - server.lo) / server.width, 0, 1).astype(np.float32)


def _latents(server: Server, x: F32) -> F32:
    return (np.float32(server.lo) + np.asarray(x, np.float32) * np.float32(server.width)).astype(np.float32)
