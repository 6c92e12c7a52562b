"""Where the cells of one artefact are measured: its edge server, its samples, and what the clean pass says of them."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adversary.attacks import Pool
from adversary.ledger import Kind, Ledger
from adversary.oracle import LiveOracle
from adversary.space import InputSpace, LatentSpace, Space, WireSpace
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.control import load_token
from splitcore.errors import LatentbedError
from splitcore.frame import Frame, Reply
from splitcore.head import Head, as_unit
from splitcore.journal import read
from splitcore.latent import F32
from testbed.nodes import Node, Process
from testbed.report.model import LedgerCounts
from testbed.report.reconcile import Asker, entries_of, reconcile, server_rows_of
from testbed.study.config import Place

ROWS = 50
"""of one request of the clean pass"""
STEP = 64
"""images through the head at once"""
PATIENCE_S = 120.0


class StudyError(LatentbedError):
    """A cell could not be measured, or the books do not agree."""


@dataclass(frozen=True)
class Clean:
    """What the server says of the artefact's samples through one codec."""

    labels: NDArray[np.int64]
    """[n]"""
    scores: F32
    """[n, classes]"""
    right: NDArray[np.bool_]
    """[n]"""


class Scene:
    """A running edge server with one artefact, and everything that its cells share."""

    def __init__(self, artefact: Artefact, node: Node, target: str, folder: Path, run: str) -> None:
        self.artefact, self.node, self.target, self.folder = artefact, node, target, folder
        self._run = run
        images, self.truth = artefact.samples
        self.images = as_unit(images)
        """[n, C, H, W] in [0, 1]"""
        self.pixel_std = float(self.images.std())
        self.head = Head(artefact)
        self._codecs: dict[str, Codec] = {}
        self._clean: dict[str, Clean] = {}

    @cached_property
    def latents(self) -> F32:
        """[n, *shape], of all samples, before any codec."""
        return np.concatenate([self.head(self.images[at : at + STEP]) for at in range(0, len(self.images), STEP)])

    def codec(self, place: Place) -> Codec:
        codec = fit(place.codec, self.artefact.latent)
        return self._codecs.setdefault(codec.name, codec)

    def space(self, place: Place, sample: int) -> Space:
        codec = self.codec(place)
        match place.point:
            case "input":
                return InputSpace(self.images[sample], self.head, codec)
            case "latent":
                return LatentSpace(self.latents[sample], codec)
            case "wire":
                return WireSpace(codec.encode(self.latents[sample : sample + 1])[0], codec, self.artefact.latent.std)

    def pool(self, place: Place, samples: slice) -> Pool:
        """What was recorded of those samples, as points of `place`, with the server's answers."""
        clean = self.clean(place)
        points = self.images[samples] if place.point == "input" else self.latents[samples]
        if place.point == "wire":
            points = self.codec(place).snap(points)
        return Pool(points, clean.labels[samples], clean.scores[samples])

    def clean(self, place: Place) -> Clean:
        """The clean pass through the place's codec, asked once. Raises StudyError."""
        codec = self.codec(place)
        if codec.name not in self._clean:
            with self.books(f"clean-{len(self._clean)}") as books:
                groups = [self.latents[at : at + ROWS] for at in range(0, len(self.latents), ROWS)]
                frames = [self.frame(f"{books.run}/clean/{n}", codec, codec.encode(group)) for n, group in enumerate(groups)]
                replies = self.send(frames, books.ledger, "clean")
            _, wrong = books.compared()
            if wrong:
                raise StudyError(f"{self.artefact.manifest.name} {codec.name}: books of the clean pass disagree: {wrong[:3]}")
            if any(reply.scores is None for reply in replies):
                raise StudyError(f"{self.artefact.manifest.name}: expected scores from the edge server, got labels alone")
            scores = np.concatenate([np.asarray(reply.scores, np.float32) for reply in replies])
            labels = scores.argmax(axis=1).astype(np.int64)
            self._clean[codec.name] = Clean(labels, scores, labels == self.truth)
        return self._clean[codec.name]

    def frame(self, name: str, codec: Codec, payloads: Sequence[bytes]) -> Frame:
        return Frame(id=name, payloads=tuple(payloads), codec=codec.name, shape=codec.latent.shape)

    def send(self, frames: Sequence[Frame], ledger: Ledger, kind: Kind) -> list[Reply]:
        """Frames as a phone's, through a relay: in the books, and not queries. Raises StudyError where one is not answered."""
        replies: list[Reply | Exception | None] = [None] * len(frames)
        slots, done = threading.Semaphore(4), threading.Semaphore(0)
        oracle = LiveOracle(self.target)

        def take(number: int, reply: Reply | Exception) -> None:
            frame = frames[number]
            failed = reply if isinstance(reply, Exception) else reply.error
            if failed is None:
                ledger.answered(frame.id, frame.attempt)
            else:
                ledger.lost(frame.id, frame.attempt, str(failed))
            replies[number] = reply
            slots.release()
            done.release()

        try:
            for number, frame in enumerate(frames):
                slots.acquire()
                ledger.sent(frame.id, frame.attempt, kind, frame.rows, payload_bytes=sum(map(len, frame.payloads)))
                oracle.ask(frame, lambda reply, number=number: take(number, reply), timeout_s=PATIENCE_S)  # type: ignore[misc]
            for _ in frames:
                done.acquire()
        finally:
            oracle.close()
        got = [reply for reply in replies if isinstance(reply, Reply) and reply.error is None]
        if len(got) < len(frames):
            failed = next(reply for reply in replies if not isinstance(reply, Reply) or reply.error is not None)
            raise StudyError(f"{len(frames) - len(got)} of {len(frames)} frames were not answered: {failed}")
        return got

    @contextlib.contextmanager
    def books(self, name: str) -> Iterator[Books]:
        """A ledger of its own; its run has a name that no earlier process gave, so that the log holds this attempt alone."""
        run = f"{self._run}.{name}-{secrets.token_hex(3)}"
        books = Books(run, Ledger(self.folder / "ledgers" / f"{run}.jsonl"), self.node, self.folder / "ledgers" / f"{run}.log")
        try:
            yield books
        finally:
            books.ledger.close()


@dataclass
class Books:
    """What one cell sent, and where the server's log of it goes."""

    run: str
    ledger: Ledger
    node: Node
    log: Path

    def compared(self, sessions: Sequence[Asker] = (), budget: int | None = None) -> tuple[LedgerCounts, list[str]]:
        """The counts, and every disagreement; where there is none the two files go, they have said what they know."""
        self.node.save("/log", self.log, run=self.run)
        counts, wrong = reconcile(entries_of(read(self.ledger.path)), server_rows_of(read(self.log)), sessions, budget)
        if not wrong:
            self.ledger.path.unlink()
            self.log.unlink()
        return counts, wrong


@contextlib.contextmanager
def scene(artefact: Artefact, folder: Path, *, run: str, max_rows: int, device: str = "auto") -> Iterator[Scene]:
    """An edge server for this artefact, one torch thread: the other core is the adversary's. Stopped at the end."""
    state = folder / "edge"
    (folder / "ledgers").mkdir(parents=True, exist_ok=True)
    token_file = folder / "token"
    token = load_token(token_file)
    options = {
        "--artefact": str(artefact.folder), "--token-file": str(token_file), "--device": device, "--threads": "1",
        "--tail": "plain", "--max-batch-size": str(max_rows),
    }  # fmt: skip
    process = Process("edge_server", state, [text for pair in options.items() for text in pair])
    try:
        ready = process.wait_ready()
        yield Scene(artefact, Node("edge", ready["control"], token), ready["grpc"], folder, run)
    finally:
        process.stop()
        (state / "server.jsonl").unlink(missing_ok=True)
