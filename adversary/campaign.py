"""Many sessions, one conversation with the server: every round trip carries the asks of all that are ready.

Sessions join at any time and leave when they are done; requests are cut at `max_rows` and up to `in_flight` are on their way at
once. The campaign runs in a thread of its own, so that the relay's event loop never waits for an attack's arithmetic.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adversary.ledger import Ledger
from adversary.oracle import Oracle
from adversary.session import Outcome, Rows, Session
from splitcore.frame import Frame, Reply

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"""sendings of one request before its rows are given up: a retry has the same id and is no new query"""
MIN_ROWS = 32
"""of a request, where so many wait: smaller ones cost the server more than they save in waiting"""
BACKOFF_S = 0.1

Done = Callable[[Outcome], None]


@dataclass(eq=False)
class _Member:
    """A session in the campaign, with what of its ask is still out."""

    session: Session
    done: Done
    rows: list[Rows | None]


@dataclass(eq=False)
class _Request:
    """One request on its way: slices of several sessions' asks."""

    frame: Frame
    parts: list[tuple[_Member, int, int]]
    """(member, index of the part in its `rows`, rows)"""
    attempt: int = 1


class Campaign:
    """Submit sessions from any thread; `done` is called from the campaign's thread with each outcome."""

    def __init__(
        self, oracle: Oracle, ledger: Ledger, *, run: str, nonce: str,
        max_rows: int = 256, in_flight: int = 4, model: str = ""
    ) -> None:  # fmt: skip
        self._oracle = oracle
        self._ledger = ledger
        self._prefix = f"{run}/query-{nonce}"
        self._max_rows = max_rows
        self._in_flight = in_flight
        self._model = model
        self._numbers = itertools.count()
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._members: set[_Member] = set()
        self._ready: deque[_Member] = deque()
        self._out: set[_Request] = set()
        self._waiting: list[tuple[float, _Request]] = []
        """requests to be sent again, with the time when"""
        self._thread = threading.Thread(target=self._run, name=f"campaign {run}", daemon=True)
        self._thread.start()

    def submit(self, session: Session, done: Done) -> None:
        self._events.put(lambda: self._join(session, done))

    def submit_made(self, make: Callable[[], Session], done: Done, refused: Callable[[Exception], None]) -> None:
        """As `submit`, for a session that this thread makes; `refused` gets why it could not."""

        def join() -> None:
            try:
                session = make()
            except Exception as error:
                refused(error)
                return
            self._join(session, done)

        self._events.put(join)

    def close(self) -> None:
        """Ends all sessions that are left, as errors, the thread, and the way to the server."""
        self._events.put(None)
        self._thread.join()
        self._oracle.close()

    def _run(self) -> None:
        """A failure that is no session's own (a full disk under the ledger) ends the sessions that are there, with its reason;
        the thread goes on, so that no frame is ever held by a campaign that is dead."""
        while True:
            try:
                self._converse()
                self._end_all("the campaign was closed")
                return
            except Exception as error:
                log.exception("the campaign failed")
                self._end_all(f"{type(error).__name__}: {error}")

    def _converse(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=self._patience())
                while event is not None:
                    event()
                    event = self._events.get_nowait()
                return
            except queue.Empty:
                pass
            self._expire()
            self._send_again()
            self._dispatch()

    def _end_all(self, reason: str) -> None:
        out, self._out = self._out, set()
        self._ready.clear()
        self._waiting.clear()
        for member in list(self._members):
            member.session.end("error", reason)
            self._leave(member)
        for request in out:
            try:
                self._ledger.lost(request.frame.id, request.frame.attempt, reason)
            except OSError as error:
                log.error("%s: the ledger cannot be written: %s", request.frame.id, error)

    def _patience(self) -> float | None:
        """Seconds until something is due without an event; None: nothing is."""
        due = min((member.session.deadline for member in self._members), default=float("inf"))
        due = min([due, *(at for at, _ in self._waiting)])
        return None if due == float("inf") else max(0.0, due - time.monotonic())

    def _join(self, session: Session, done: Done) -> None:
        member = _Member(session, done, [])
        self._members.add(member)
        self._step(member, session.begin)

    def _step(self, member: _Member, step: Callable[[], None]) -> None:
        """Runs a session's own code; a failure there ends that session alone, and is told."""
        try:
            step()
        except Exception as error:
            log.exception("%s: attack %s failed", member.session.frame, member.session.attack.kind)
            member.session.end("error", f"{type(error).__name__}: {error}")
        if member.session.finished:
            self._leave(member)
        else:
            self._ready.append(member)

    def _leave(self, member: _Member) -> None:
        self._members.discard(member)
        member.done(member.session.outcome)

    def _expire(self) -> None:
        now = time.monotonic()
        for member in [member for member in self._members if member.session.deadline <= now]:
            member.session.end("deadline")
            self._leave(member)

    def _dispatch(self) -> None:
        """Fills the free places among the requests in flight, with about equal shares of the rows that wait."""
        while self._ready and len(self._out) < self._in_flight:
            waiting = sum(len(member.session.asked.points) for member in self._ready if not member.session.finished)
            share = max(1, -(-waiting // (self._in_flight - len(self._out))))
            self._send_batch(min(max(share, MIN_ROWS), self._max_rows))

    def _send_batch(self, rows: int) -> None:
        """One stack of the asks of sessions that encode alike; cut into requests, so that one ask may span several."""
        members, others, taken = list[_Member](), list[_Member](), 0
        while self._ready and taken < rows:
            member = self._ready.popleft()
            if member.session.finished:
                continue
            # one request has one codec and one set of outputs
            if members and _manner(member) != _manner(members[0]):
                others.append(member)
                continue
            members.append(member)
            taken += len(member.session.asked.points)
        self._ready.extendleft(reversed(others))
        if not members:
            return
        payloads = self._encode(members)
        parts: list[tuple[_Member, int, int]] = []
        room, first = self._max_rows, 0
        for member in members:
            left = len(member.session.asked.points)
            member.rows = []
            while left:
                cut = min(left, room)
                parts.append((member, len(member.rows), cut))
                member.rows.append(None)
                left, room = left - cut, room - cut
                if not room:
                    first = self._send_parts(parts, payloads, first)
                    parts, room = [], self._max_rows
        if parts:
            self._send_parts(parts, payloads, first)

    def _encode(self, members: list[_Member]) -> list[bytes]:
        """All their asks as payloads, in order; every session has counted and keeps its own."""
        space = members[0].session.space
        stack = space.snap(np.concatenate([member.session.asked.points for member in members]))
        at = 0
        for member in members:
            k = len(member.session.asked.points)
            member.session.place(stack[at : at + k])
            at += k
        payloads = space.encode(stack)
        at = 0
        for member in members:
            k = len(member.session.asked.points)
            member.session.count(payloads[at : at + k])
            at += k
        return payloads

    def _send_parts(self, parts: list[tuple[_Member, int, int]], payloads: list[bytes], first: int) -> int:
        """One request with the rows of `parts`, from payload `first` on; gives the payload after its last."""
        session = parts[0][0].session
        end = first + sum(rows for _, _, rows in parts)
        frame = Frame(
            id=f"{self._prefix}/{next(self._numbers)}",
            payloads=tuple(payloads[first:end]),
            codec=session.space.codec.name,
            shape=session.space.codec.latent.shape,
            origin="query",
            model=self._model,
            labels_only=session.attack.feedback == "label",
        )
        self._send(_Request(frame, parts))
        return end

    def _send(self, request: _Request) -> None:
        frame = request.frame
        self._ledger.sent(
            frame.id, frame.attempt, "query", frame.rows,
            payload_bytes=sum(map(len, frame.payloads)),
            asks=[(member.session.frame, member.session.asked.phase, rows) for member, _, rows in request.parts],
        )  # fmt: skip
        self._out.add(request)
        for member, _, _ in request.parts:
            member.session.outcome.requests += 1
        self._oracle.ask(frame, lambda reply: self._events.put(lambda: self._answered(request, reply)), timeout_s=30.0)

    def _answered(self, request: _Request, reply: Reply | Exception) -> None:
        if request not in self._out:
            return  # an answer came twice: the second is no observation
        self._out.remove(request)
        frame = request.frame
        if isinstance(reply, Exception):
            self._ledger.lost(frame.id, frame.attempt, _reason(reply))
            if request.attempt < MAX_ATTEMPTS and any(not member.session.finished for member, _, _ in request.parts):
                self._waiting.append((time.monotonic() + BACKOFF_S * 2 ** (request.attempt - 1), request))
                return
            for member in {member for member, _, _ in request.parts if not member.session.finished}:
                member.session.end("error", f"no answer in {request.attempt} attempts: {_reason(reply)}")
                self._leave(member)
            return
        if reply.error is not None:
            self._ledger.lost(frame.id, frame.attempt, reply.error)
            rows = _nothing(frame.rows)
        else:
            rows = _rows(reply, frame)
            if rows.answered.all():
                self._ledger.answered(frame.id, frame.attempt)
            else:
                self._ledger.lost(frame.id, frame.attempt, f"an answer of another size than {frame.rows} rows")
        at = 0
        for member, part, count in request.parts:
            member.rows[part] = Rows(
                rows.answered[at : at + count],
                rows.labels[at : at + count],
                None if rows.scores is None else rows.scores[at : at + count],
            )
            at += count
            if all(part is not None for part in member.rows) and not member.session.finished:
                parts = [part for part in member.rows if part is not None]
                self._step(member, lambda member=member, parts=parts: member.session.tell(_join(parts)))  # type: ignore[misc]

    def _send_again(self) -> None:
        now = time.monotonic()
        due = [request for at, request in self._waiting if at <= now]
        self._waiting = [(at, request) for at, request in self._waiting if at > now]
        for old in due:
            frame = old.frame
            again = Frame(
                id=frame.id, payloads=frame.payloads, codec=frame.codec, shape=frame.shape, attempt=frame.attempt + 1,
                origin=frame.origin, model=frame.model, labels_only=frame.labels_only
            )  # fmt: skip
            self._send(_Request(again, old.parts, old.attempt + 1))


def _manner(member: _Member) -> tuple[object, ...]:
    session = member.session
    return (session.attack.feedback == "label", *session.space.encoder)


def _reason(error: Exception) -> str:
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    return f"{code().name}: {details()}" if callable(code) and callable(details) else f"{type(error).__name__}: {error}"


def _nothing(k: int) -> Rows:
    return Rows(np.zeros(k, bool), np.full(k, -1, np.int64), None)


def _rows(reply: Reply, frame: Frame) -> Rows:
    """The reply's rows, as far as the threat model looks: labels alone when those were asked for."""
    scores = None if frame.labels_only else reply.scores
    labels = reply.labels
    if labels is None and reply.scores is not None:
        labels = reply.scores.argmax(axis=1)
    if labels is None or len(labels) != frame.rows or (scores is not None and len(scores) != frame.rows):
        return _nothing(frame.rows)
    return Rows(np.ones(frame.rows, bool), labels, scores)


def _join(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    # a part that was lost has no scores: then none of it can be judged by score, its rows count as not answered
    scores = [part.scores for part in parts if part.scores is not None]
    classes = scores[0].shape[1] if scores else 0
    return Rows(
        np.concatenate([part.answered for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate(
            [np.zeros((len(part.labels), classes), np.float32) if part.scores is None else part.scores
             for part in parts]
        ) if scores else None,
    )  # fmt: skip
