"""What the benchmark of the attacks is held against: a live edge server, what it can answer at all, and a link with a delay."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adversary.attacks import Attack
from adversary.campaign import MAX_REQUEST_BYTES, Campaign, Sections
from adversary.ledger import Ledger
from adversary.oracle import LiveOracle
from adversary.record import Record
from adversary.session import Outcome, Session
from adversary.space import WireSpace
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.data import load
from splitcore.frame import Frame, Reply
from splitcore.head import Head
from splitcore.latent import F32
from splitcore.link import LinkProfile, shaped
from splitcore.nn.export import export
from splitcore.nn.recipe import load_recipe
from splitcore.nn.training import train
from splitcore.node import new_event_loop
from splitcore.threat import ThreatModel
from testbed.nodes import Process

ROOT = Path(__file__).resolve().parents[1]
IN_FLIGHT = 8
SHAPES = (64, 256)
"""rows of a request in the search for the best that the server can do"""


@dataclass
class Server:
    """An edge server with float latents on its wire, as the other libraries need them."""

    name: str
    artefact: Artefact
    target: str
    codec: Codec
    latents: F32
    """[64, *shape]: clean ones that it gets right"""
    labels: NDArray[np.int64]
    lo: float
    hi: float
    """the calibrated range: libraries see (z - lo) / (hi - lo), ours search in the box [lo, hi]"""

    @property
    def width(self) -> float:
        return self.hi - self.lo


@contextlib.contextmanager
def serve(name: str, folder: Path) -> Iterator[Server]:
    """The artefact of recipes/NAME.yaml on an edge server of one thread: the other core is the attacker's. TAIL: its form."""
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    test = load(recipe.dataset, "test")
    export(train(recipe, progress=False, device="cpu"), recipe, test, folder / name)
    artefact = Artefact(folder / name)
    options = [
        "--artefact",
        str(folder / name),
        "--max-batch-size",
        "256",
        "--device",
        "cpu",
        "--tail",
        os.environ.get("TAIL", "eager"),
        "--threads",
        "1",
    ]
    edge = Process("edge_server", folder / f"{name}-edge", options)
    try:
        target = edge.wait_ready()["grpc"]
        codec = fit("identity", artefact.latent)
        images, truth = artefact.samples
        latents = Head(artefact).from_uint8(images[:128])
        labels = ask(target, codec, latents).argmax(axis=1)
        right = np.flatnonzero(labels == truth[:128])[:64]
        spec = artefact.latent
        yield Server(name, artefact, target, codec, latents[right], labels[right], min(spec.lo), max(spec.hi))
    finally:
        edge.stop()


def ask(target: str, codec: Codec, latents: F32) -> F32:
    """Logits [k, classes] of one request."""
    oracle = LiveOracle(target)
    asking = Asker(oracle, codec)
    scores = asking(latents)
    oracle.close()
    return scores


class Asker:
    """Latents in, logits out, one request at a time: how the other libraries see the server. Counts rows and requests."""

    def __init__(self, oracle: LiveOracle, codec: Codec) -> None:
        self.rows = self.requests = 0
        self._oracle, self._codec = oracle, codec

    def __call__(self, latents: F32) -> F32:
        answered, replies = threading.Event(), list[Reply | Exception]()
        frame = Frame(
            id=f"bench/rival/{id(self)}-{self.requests}", payloads=tuple(self._codec.encode(latents)),
            codec=self._codec.name, shape=self._codec.latent.shape, origin="query",
        )  # fmt: skip
        self.rows += len(latents)
        self.requests += 1
        self._oracle.ask(frame, lambda reply: (replies.append(reply), answered.set()), 60.0)
        answered.wait()
        reply = replies[0]
        assert isinstance(reply, Reply) and reply.scores is not None, reply
        return reply.scores


def capacity(server: Server, rows: int, *, labels_only: bool, in_flight: int = IN_FLIGHT, seconds: float = 1.0) -> float:
    """Rows per second of a client that keeps `in_flight` requests of `rows` rows on their way and looks at nothing."""
    oracle = LiveOracle(server.target)
    payloads = server.codec.encode(server.latents)
    rows = min(rows, MAX_REQUEST_BYTES // len(payloads[0]))
    stack = tuple((payloads * (-(-rows // len(payloads))))[:rows])
    slots, answered, start = threading.Semaphore(in_flight), 0, time.perf_counter()

    def done(reply: Reply | Exception) -> None:
        nonlocal answered
        assert isinstance(reply, Reply) and reply.error is None, reply
        answered += rows
        slots.release()

    number = 0
    while time.perf_counter() - start < seconds:
        slots.acquire()
        frame = Frame(id=f"bench/raw/{number}", payloads=stack, codec=server.codec.name, shape=server.codec.latent.shape,
                      origin="query", labels_only=labels_only)  # fmt: skip
        oracle.ask(frame, done)
        number += 1
    for _ in range(in_flight):
        slots.acquire()
    rate = answered / (time.perf_counter() - start)
    oracle.close()
    return rate


@dataclass
class Run:
    """What a campaign over n samples took."""

    wall_s: float
    rows: int
    requests: int
    outcomes: list[Outcome]
    """by sample"""
    curve: list[tuple[float, list[float]]]
    """(seconds, nearest adversarial distance of each sample so far), sampled while it ran; infinite where none"""
    fallen: list[float]
    """seconds at which each success came, in order"""
    sections: int | None

    def seconds_to(self, distance: float, samples: slice = slice(None)) -> float | None:
        """When the median distance over the samples was first no more than this."""
        return next((t for t, each in self.curve if np.median(each[samples]) <= distance), None)

    def median(self, samples: slice = slice(None)) -> float:
        return float(np.median([o.nearest[-1][1] if o.nearest else np.inf for o in self.outcomes[samples]]))


def attack(
    server: Server, kind: Attack, threat: ThreatModel, *, n: int = 64, target: str | None = None,
    in_flight: int = IN_FLIGHT, sections: Sections = 2, seed: int = 0,
) -> Run:  # fmt: skip
    """Our campaign, with the record that lets it survive SIGKILL, from the first submission to the last outcome."""
    run = f"bench-{kind.kind}-{os.urandom(3).hex()}"
    payloads = server.codec.encode(server.latents[:n])
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "queries.jsonl")
        campaign = Campaign(
            LiveOracle(target or server.target), ledger, run=run, nonce="0", in_flight=in_flight, sections=sections,
            record=Record(Path(folder) / "record"),
        )  # fmt: skip
        sessions: list[Session] = []
        fallen: list[float] = []
        finished = threading.Semaphore(0)
        start = time.perf_counter()

        def done(outcome: Outcome) -> None:
            if outcome.success:
                fallen.append(time.perf_counter() - start)
            finished.release()

        for number, payload in enumerate(payloads):
            space = WireSpace(payload, server.codec, server.artefact.latent.std)
            sessions.append(Session(f"{run}/bench/{number}", space, kind, threat, rng=np.random.default_rng([seed, number])))
            campaign.submit(sessions[-1], done)
        curve: list[tuple[float, list[float]]] = []
        left = n
        while left:
            if finished.acquire(timeout=0.02):
                left -= 1
            else:
                curve.append((time.perf_counter() - start, _nearest(sessions)))
        wall = time.perf_counter() - start
        curve.append((wall, _nearest(sessions)))
        outcomes = [session.outcome for session in sessions]
        found = Run(wall, ledger.counts["query"], ledger.counts["answered"], outcomes, curve, sorted(fallen), campaign.sections)
        campaign.close()
        ledger.close()
    errors = [outcome.error for outcome in outcomes if outcome.error]
    assert not errors, errors[:3]
    return found


def _nearest(sessions: list[Session]) -> list[float]:
    return [session.outcome.nearest[-1][1] if session.outcome.nearest else np.inf for session in sessions]


@contextlib.contextmanager
def delayed(target: str, one_way_ms: float) -> Iterator[str]:
    """An address behind which `target` is so much farther away, by a relay in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_delay, args=(target, one_way_ms, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _delay(target: str, one_way_ms: float, pipe: Connection) -> None:
    async def relay() -> None:
        profile = LinkProfile(rate_up_kbps=1e8, rate_down_kbps=1e8, delay_ms=one_way_ms)
        async with shaped(target, profile, seed=0) as link:
            pipe.send(link.address)
            await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(relay())
