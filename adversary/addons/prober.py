"""What a man in the middle can still try where frames are protected: each thing a few times, and what became of it.

On the way it changes a bit of a frame's payload, and lets a frame go only after the one behind it; afterwards it asks the
server itself, in the ways that it has. Nothing of this is an attack: it shows which doors are shut, and how.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import grpc

from adversary.ledger import Kind, Ledger
from adversary.oracle import LiveOracle
from adversary.relay import Forward, Order
from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.journal import Journal, Row
from splitcore.wire import oip
from splitcore.wire.certificates import Authority
from splitcore.wire.channel import sync_channel
from splitcore.wire.envelope import pack_hello
from splitcore.wire.sealing import new_salt
from splitcore.wire.tls import ClientTls

log = logging.getLogger(__name__)

Way: TypeAlias = Literal[
    "change", "swap", "replay", "query", "query in clear text", "query with own certificate", "query with stolen token"
]
PATIENCE_S = 10.0
SWAP_S = 0.5
"""how long a frame waits for one behind it"""


@dataclass(frozen=True)
class Reach:
    """How the server is reached."""

    upstream: str
    tls: ClientTls | None
    token: Callable[[], str | None]
    """what a client said of itself in metadata that passed in clear text"""
    folder: Path
    """for certificates of its own making"""


class Prober:
    """The addon that tries."""

    kind: Kind = "forwarded"
    order: Order = "overtake"

    def __init__(self, run: str, tries: int, example: Frame, reach: Reach, ledger: Ledger, journal: Journal) -> None:
        """`example`: a latent of its own making, as a frame."""
        self.tried: Counter[str] = Counter()
        self._run, self._tries, self._example, self._reach = run, tries, example, reach
        self._ledger, self._journal = ledger, journal
        self._ways: dict[str, Way] = {}
        """by frame id, of those that were tampered with and have no answer yet"""
        self._seen: list[bytes] = []
        self._waiting: list[tuple[asyncio.Future[Forward], Forward]] = []
        self._open = True

    def request(self, frame: Frame, message: bytes) -> Forward | Awaitable[Forward]:
        size = sum(map(len, frame.payloads))
        waited = bool(self._waiting)
        self._let_go()  # behind this frame, which passes
        passed = Forward(message, "passed", size)
        if len(self._seen) < self._tries:
            self._seen.append(message)
        elif self.tried["change"] < self._tries and frame.rows == 1:
            self._try("change", frame)
            return Forward(changed(frame, message), "changed", size)
        elif self.tried["swap"] < self._tries and not waited:
            self._try("swap", frame)
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Forward] = loop.create_future()
            self._waiting.append((future, Forward(message, "swapped", size)))
            loop.call_later(SWAP_S, self._let_go)
            return future
        return passed

    def reply(self, frame: Frame, reply: Reply) -> None:
        way = self._ways.pop(frame.id, None)
        if way is not None and self._open:
            self._journal.append(_row(way, frame.id, reply))

    def _try(self, way: Way, frame: Frame) -> None:
        self.tried[way] += 1
        self._ways[frame.id] = way

    def _let_go(self) -> None:
        """What waited goes behind the frame that has just come: a turn of the loop later."""
        loop = asyncio.get_running_loop()
        waiting, self._waiting = self._waiting, []
        for future, forward in waiting:
            loop.call_soon(loop.call_soon, _settle, future, forward)

    async def close(self) -> None:
        self._let_go()
        await asyncio.to_thread(self._ask)
        self._open = False
        self._journal.close()

    def _ask(self) -> None:
        """Its own connections to the server, one way after the other."""
        reach = self._reach
        try:
            self._query("query", LiveOracle(reach.upstream, tls=reach.tls))
            if reach.tls is not None:
                self._query("query in clear text", LiveOracle(reach.upstream))
                self._query("query with own certificate", LiveOracle(reach.upstream, tls=_forged(reach.tls, reach.folder)))
            if reach.token() is not None:
                self._query("query with stolen token", LiveOracle(reach.upstream, tls=reach.tls, credentials=reach.token))
            self._replay()
        except Exception:  # whatever it is, the pass that is being closed ends in order
            log.exception("a probe failed")

    def _query(self, way: Way, oracle: LiveOracle) -> None:
        example = self._example
        for n in range(self._tries):
            frame = Frame(
                id=f"{self._run}/probe-{way.replace(' ', '-')}/{n}", payloads=example.payloads, codec=example.codec,
                shape=example.shape, model=example.model, origin="query",
            )  # fmt: skip
            self._ledger.sent(frame.id, 1, "query", 1, payload_bytes=sum(map(len, frame.payloads)))
            answer = _answer(oracle, frame)
            row = _row(way, frame.id, answer)
            if row["refused"] is None:
                self._ledger.answered(frame.id, 1)
            else:
                self._ledger.lost(frame.id, 1, str(row["refused"]))
            self.tried[way] += 1
            self._journal.append(row)
        oracle.close()

    def _replay(self) -> None:
        """Frames that passed, byte for byte, on a stream of its own: in the books they are the client's, as the server's log
        has them."""
        if not self._seen:
            return
        said = self._reach.token()
        metadata = None if said is None else (("authorization", said),)
        hello = [pack_hello(new_salt())] if b"lb_seal" in self._seen[0] else []
        with sync_channel(self._reach.upstream, tls=self._reach.tls) as channel:
            call = channel.stream_stream(oip.path(oip.STREAM))(
                iter([*hello, *self._seen]), timeout=PATIENCE_S, metadata=metadata
            )
            for reply in _answers(call, len(self._seen)):
                self.tried["replay"] += 1
                self._journal.append(_row("replay", getattr(reply, "id", ""), reply))


def changed(frame: Frame, message: bytes) -> bytes:
    """The frame with one bit of its payload turned, the rest as it was."""
    payload = bytearray(frame.payloads[0])
    if payload:
        payload[len(payload) // 2] ^= 1
    return oip.replace_payloads(message, [bytes(payload)])


def _settle(future: asyncio.Future[Forward], forward: Forward) -> None:
    if not future.done():
        future.set_result(forward)


def _forged(tls: ClientTls, folder: Path) -> ClientTls:
    """A certificate for somebody that the server might know, of an authority that it does not."""
    folder.mkdir(parents=True, exist_ok=True)
    Authority.made("adversary's authority").issue("phone").write(folder, "forged")
    return ClientTls(trust=tls.trust, certificate=folder / "forged.pem", key=folder / "forged.key", name=tls.name)


def _answer(oracle: LiveOracle, frame: Frame) -> Reply | Exception:
    got: list[Reply | Exception] = []
    there = threading.Event()

    def answered(reply: Reply | Exception) -> None:
        got.append(reply)
        there.set()

    oracle.ask(frame, answered, PATIENCE_S)
    there.wait(2 * PATIENCE_S)
    return got[0] if got else TimeoutError("no answer")


def _answers(call: Iterator[bytes], most: int) -> Sequence[Reply | Exception]:
    """One for each frame: its answer, or how the stream ended."""
    answers: list[Reply | Exception] = []
    try:
        for message in call:
            try:
                reply = oip.unpack_stream_reply(message)
            except WireError as error:
                answers.append(error)
                continue
            if reply.id or reply.error:
                answers.append(reply)
            if len(answers) == most:
                break
    except grpc.RpcError as error:
        answers += [error] * (most - len(answers))
    return answers


def _row(way: Way, frame_id: str, reply: Reply | Exception) -> Row:
    """`refused` says how; None: it was answered. A sealed answer is one, though it cannot be read."""
    label = None
    if isinstance(reply, Exception):
        code, details = getattr(reply, "code", None), getattr(reply, "details", None)
        refused = f"{code().name}: {details()}" if callable(code) and callable(details) else f"{type(reply).__name__}: {reply}"
    else:
        refused = reply.error or ""
        label = int(reply.labels[0]) if reply.labels is not None and len(reply.labels) else None
    return {"way": way, "id": frame_id, "label": label, "refused": refused[:300] or None}
