"""Many sessions, one conversation with the server: every round trip carries the asks of all that are ready.

Sessions join at any time and leave when they are done; requests are cut at `max_rows` and up to `in_flight` are on their way at
once. The campaign runs in a thread of its own, so that the relay's event loop never waits for an attack's arithmetic.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adversary.ledger import Ledger
from adversary.oracle import Oracle
from adversary.pace import Pace
from adversary.record import Past, Piece, Record
from adversary.session import Outcome, Session, doubtful
from adversary.spans import query_spans
from adversary.verdict import Rows, judge
from splitcore.frame import Frame, Reply
from splitcore.latent import F32, all_finite
from splitcore.telemetry.context import new_context
from splitcore.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
"""sendings of one request before its rows are given up: a retry has the same id and is no new query"""
MAX_SILENCES, MAX_REFUSALS = 3, 20
"""asks of one session that all of MAX_ATTEMPTS lost, or that the server refused, one after the other, before it ends"""
SILENCE = "no answer in"
MIN_ROWS = 32
"""of a request, where so many wait: smaller ones cost the server more than they save in waiting"""
MIN_S = 0.004
"""of the server's time in a request, where all rows that there are would be too few for two of MIN_ROWS: two that take turns
keep the server busy"""
FULL_ROWS = 96
"""of a request from which on more rows save the server nothing: such a one waits for no company"""
LARGE_BYTES = 256 << 10
"""of a session's ask, from which on it is placed by itself"""
MAX_REQUEST_BYTES = 8 << 20
"""of payloads, whatever `max_rows` says: half of what a message may hold"""
STACK_MIB = 16
"""for `keep_memory`: the asks of several sessions, stacked, are larger than anything else that a node holds for a moment"""
BACKOFF_S = 0.1
REJECTED_ROW = -1
"""the label of a row that a detector rejected"""
REJECTED = "PERMISSION_DENIED: rejected"
"""how the error begins of a request that a detector rejected as a whole: an answer, where a token's refusal is none"""

Done = Callable[[Outcome], None]
Sections = int | Literal["auto"]


@dataclass(eq=False, slots=True)
class _Member:
    """A session in the campaign, with what of its ask is still out."""

    session: Session
    done: Done
    pieces: list[Piece] = field(default_factory=list)
    fruitless: int = 0
    """asks in a row of which nothing came back"""

    @property
    def whole(self) -> bool:
        """Everything of its ask is answered."""
        return len(self.pieces) == 1 or all(piece.rows is not None for piece in self.pieces)


@dataclass(eq=False, slots=True)
class _Request:
    """One request on its way: pieces of several sessions' asks."""

    frame: Frame
    pieces: list[Piece]
    slot: int = -1
    attempt: int = 1
    own: NDArray[np.int64] | None = None
    """[rows]: the class that each row is judged by; None in a request of an earlier process"""
    targeted: bool = False
    sent_s: float = 0.0


class Campaign:
    """Submit sessions from any thread; `done` is called from the campaign's thread with each outcome."""

    def __init__(
        self, oracle: Oracle, ledger: Ledger, *, run: str, nonce: str, max_rows: int = 256, in_flight: int = 8,
        model: str = "", sections: Sections = 2, timeout_s: float = 30.0,
        record: Record | None = None, past: Past | None = None, tracer: Tracer | None = None,
    ) -> None:  # fmt: skip
        """`sections`: of section searches; `auto` measures. `record` and the `past` it gave: to go on after SIGKILL."""
        self._oracle = oracle
        self._ledger = ledger
        self._tracer = tracer
        self._record = record
        self._past = past if past is not None and past.pieces else None
        self._prefix = f"{run}/query-{nonce}"
        self._max_rows = max_rows
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._model = model
        self._sections: int | None = sections if sections != "auto" else None
        self._round_trip_s = 0.0
        self._row_s = 0.0
        """of the server's time, lately; 0: not known"""
        self._heard_s = 0.0
        """when the last answer came"""
        if past is not None and past.sections is not None:
            self._sections = past.sections
        self._numbers = itertools.count()
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._members: set[_Member] = set()
        self._deadlines: list[tuple[float, int, _Member]] = []
        self._ready: deque[_Member] = deque()
        self._out: set[_Request] = set()
        self._waiting: list[tuple[float, _Request]] = []
        """requests to be sent again, with the time when; they keep their places in flight"""
        for frame, pieces, slot in past.out if past is not None else ():
            self._waiting.append((0.0, _Request(frame, pieces, slot)))
        self._thread = threading.Thread(target=self._run, name=f"campaign {run}", daemon=True)
        self._thread.start()

    @property
    def sections(self) -> int | None:
        """Of section searches; None while they are not measured."""
        return self._sections

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
        if self._record is not None:
            self._record.close(forget=True)

    def _run(self) -> None:
        if self._sections is None:
            # pings ask nothing, and what comes after them finds the connection open
            self._round_trip_s = self._oracle.round_trip_s()
        self._serve()

    def _serve(self) -> None:
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
            self._send_again()
            self._dispatch()
            try:
                event = self._events.get(timeout=self._patience())
                while event is not None:
                    event()
                    event = self._events.get_nowait()
                return
            except queue.Empty:
                pass
            self._expire()

    def _end_all(self, reason: str) -> None:
        out = [*self._out, *(request for _, request in self._waiting)]
        self._out.clear()
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
        while self._deadlines and self._deadlines[0][2] not in self._members:
            heapq.heappop(self._deadlines)
        due = [at for at, _ in self._waiting]
        if self._deadlines:
            due.append(self._deadlines[0][0])
        return max(0.0, min(due) - time.monotonic()) if due else None

    # sessions

    def _join(self, session: Session, done: Done) -> None:
        member = _Member(session, done)
        self._members.add(member)
        if session.deadline != float("inf"):
            heapq.heappush(self._deadlines, (session.deadline, next(self._numbers), member))
        self._step(member, session.begin)

    def _step(self, member: _Member, step: Callable[[], None]) -> None:
        """Runs a session's own code; a failure there ends that session alone, and is told. What is on record is not asked."""
        session = member.session
        while True:
            try:
                step()
                if not session.finished and self._past is not None:
                    pieces = self._past.take(session.frame, session.asked.phase, len(session.asked.points))
                    if pieces is not None:
                        payloads = self._place([member], _stack([member]))
                        member.pieces = pieces
                        for piece in pieces:
                            piece.member = member
                        self._send_rest(member, payloads)
                        if any(piece.rows is None for piece in pieces):
                            return
                        step = lambda: self._tell(member)  # noqa: E731
                        continue
            except Exception as error:
                log.exception("%s: attack %s failed", session.frame, session.attack.kind)
                session.end("error", f"{type(error).__name__}: {error}")
            if session.finished:
                self._leave(member)
            else:
                self._ready.append(member)
            return

    def _tell(self, member: _Member) -> None:
        session, pieces = member.session, member.pieces
        rows = pieces[0].rows if len(pieces) == 1 else Rows.join([piece.rows for piece in pieces if piece.rows is not None])
        assert rows is not None
        if session.outcome.label is None:
            session.sections = self._sections or 2
        if not rows.why or rows.answered.any() or rows.rejected.any():
            member.fruitless = 0
        else:
            member.fruitless += 1
            if member.fruitless >= (MAX_SILENCES if rows.why.startswith(SILENCE) else MAX_REFUSALS):
                session.end("error", f"nothing came back for {member.fruitless} asks in a row: {rows.why}")
                return
        verdict = pieces[0].verdict if len(pieces) == 1 else None
        if verdict is None:
            session.tell(rows)
        else:
            session.hear(rows, verdict)

    def _leave(self, member: _Member) -> None:
        self._members.discard(member)
        member.done(member.session.outcome)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            member = heapq.heappop(self._deadlines)[2]
            if member in self._members:
                member.session.end("deadline")
                self._leave(member)

    # requests

    def _dispatch(self) -> None:
        """Fills the free places among the requests in flight, with about equal shares of the rows that wait."""
        while self._ready and (free := self._free) > 0:
            waiting, least = self._waiting_rows(), MIN_ROWS
            if not self._out and self._row_s:
                least = min(least, max(math.ceil(MIN_S / self._row_s), -(-waiting // 2)))
            self._send_batch(min(max(-(-waiting // free), least), self._max_rows))

    @property
    def _free(self) -> int:
        """Requests that may be sent before one of those on their way is answered."""
        return self._in_flight - len(self._out) - len(self._waiting)

    def _waiting_rows(self) -> int:
        return sum(len(member.session.asked.points) for member in self._ready if not member.session.finished)

    def _send_batch(self, rows: int) -> None:
        """One stack of the asks of sessions that encode alike; cut into requests, so that one ask may span several."""
        members, others, taken = list[_Member](), list[_Member](), 0
        while self._ready and taken < rows:
            member = self._ready.popleft()
            if member.session.finished:
                continue
            # one request has one codec, one set of outputs, one way to be judged
            if members and _manner(member.session) != _manner(members[0].session):
                others.append(member)
                continue
            members.append(member)
            taken += len(member.session.asked.points)
        self._ready.extendleft(reversed(others))
        if not members:
            return
        # small asks share one pass over all of them; of large ones a copy would cost more than a pass for each
        large = sum(member.session.asked.points.nbytes for member in members) > LARGE_BYTES * len(members)
        payloads, sound = list[bytes](), list[_Member]()
        for company in [[member] for member in members] if large else [members]:
            placed, encoded = self._placed(company)
            sound += placed
            payloads += encoded
        if not sound:
            return
        most = max(1, min(self._max_rows, MAX_REQUEST_BYTES // max(1, max(map(len, payloads)))))
        pieces: list[Piece] = []
        room, first = most, 0
        for member in sound:
            ask = member.session.asked
            left = len(ask.points)
            member.pieces = []
            while left:
                piece = Piece(member.session.frame, ask.phase, min(left, room), member=member)
                pieces.append(piece)
                member.pieces.append(piece)
                left, room = left - piece.count, room - piece.count
                if not room:
                    first = self._send_pieces(pieces, payloads, first)
                    pieces, room = [], most
        if pieces:
            self._send_pieces(pieces, payloads, first)

    def _placed(self, members: list[_Member]) -> tuple[list[_Member], list[bytes]]:
        """Those that ask for numbers, and all that they ask as payloads."""
        asked = _stack(members)
        if not all_finite(asked):
            members = self._sound(members)
            if not members:
                return [], []
            asked = _stack(members)
        return members, self._place(members, asked)

    def _sound(self, members: list[_Member]) -> list[_Member]:
        """Those that ask for numbers; the others end, each with the reason."""
        sound = []
        for member in members:
            session = member.session
            if np.isfinite(session.asked.points).all():
                sound.append(member)
                continue
            session.end(
                "error",
                f"attack {session.attack.kind} asked for NaN or infinity in phase {session.asked.phase}: it is at fault",
            )
            self._leave(member)
        return sound

    def _place(self, members: list[_Member], asked: F32) -> list[bytes]:
        """All their asks [k, *shape] as payloads; every session has counted, and knows what of its ask arrives."""
        sessions = [member.session for member in members]
        space = sessions[0].space
        counts = [len(session.asked.points) for session in sessions]
        ends = list(itertools.accumulate(counts))
        spans = list(zip([0, *ends], ends, strict=False))
        stack = space.snap(asked)
        if len(sessions) == 1:
            distance = sessions[0].ball.distance(stack)
        else:
            offsets = np.empty_like(stack)
            for session, (first, end) in zip(sessions, spans, strict=True):
                np.subtract(stack[first:end], session.ball.centre, out=offsets[first:end])
            distance = sessions[0].ball.lengths(offsets)
        reach = np.repeat(np.array([session.ball.reach for session in sessions], np.float32), counts)
        rounding = np.repeat(np.array([session.rounding for session in sessions], np.float32), counts)
        doubts = np.logical_or.reduceat(doubtful(distance, reach, rounding), [0, *ends[:-1]]).tolist()
        if any(doubts) and np.may_share_memory(stack, asked):
            stack = stack.copy()  # some of it will be pulled back, and what the attack asked stays as it wrote it
        for session, (first, end), doubt in zip(sessions, spans, doubts, strict=True):
            session.place(stack[first:end], None if doubt else distance[first:end])
        payloads = space.encode(stack)
        for session, (first, end) in zip(sessions, spans, strict=True):
            session.count(payloads[first:end])
        return payloads

    def _send_rest(self, member: _Member, payloads: list[bytes]) -> None:
        """What an earlier process had not sent of an ask that it had begun to send."""
        at = 0
        for piece in member.pieces:
            if not piece.sent:
                piece.sent = True
                self._send_pieces([piece], payloads, at)
            at += piece.count

    def _send_pieces(self, pieces: list[Piece], payloads: list[bytes], first: int) -> int:
        """One request with the rows of `pieces`, from payload `first` on; gives the payload after its last."""
        session: Session = pieces[0].member.session
        end = first + sum(piece.count for piece in pieces)
        frame = Frame(
            id=f"{self._prefix}/{next(self._numbers)}",
            payloads=tuple(payloads[first:end]),
            codec=session.space.codec.name,
            shape=session.space.codec.latent.shape,
            origin="query",
            model=self._model,
            labels_only=session.attack.feedback == "label",
            template=session.space.template,
            traceparent=self._traceparent(pieces),
        )
        own = np.repeat(np.array([piece.member.session.own for piece in pieces], np.int64), [piece.count for piece in pieces])
        slot = -1 if self._record is None else self._record.keep(frame)
        self._send(_Request(frame, pieces, slot, own=own, targeted=session.threat.target is not None))
        return end

    def _traceparent(self, pieces: list[Piece]) -> str:
        """A trace of its own for a request that asks for a traced frame; requests carry rows of many."""
        traced = self._tracer is not None and any(piece.member.session.trace for piece in pieces)
        return str(new_context()) if traced else ""

    def _send(self, request: _Request) -> None:
        frame = request.frame
        self._ledger.sent(
            frame.id, frame.attempt, "query", frame.rows,
            payload_bytes=sum(map(len, frame.payloads)),
            asks=[(piece.frame, piece.phase, piece.count) for piece in request.pieces],
        )  # fmt: skip
        self._out.add(request)
        request.sent_s = time.monotonic()
        self._oracle.ask(frame, lambda reply: self._events.put(lambda: self._answered(request, reply)), self._timeout_s)

    def _answered(self, request: _Request, reply: Reply | Exception) -> None:
        if request not in self._out:
            return  # an answer came twice: the second is no observation
        self._out.remove(request)
        frame = request.frame
        if self._tracer is not None and frame.traceparent:
            self._tracer.record(*query_spans(frame, request.pieces, request.sent_s, reply))
        if isinstance(reply, Exception) and self._again(request, reply):
            return
        rows = _rows(reply, frame)
        if self._record is not None:
            self._record.answered(frame.id, rows, request.slot)
        if isinstance(reply, Exception):
            pass  # its end stands in the ledger
        elif rows.why and not rows.rejected.any():
            self._ledger.lost(frame.id, frame.attempt, rows.why)
        else:
            self._ledger.answered(frame.id, frame.attempt)
            self._measure(request)
        self._hand_out(request, rows)

    def _again(self, request: _Request, failure: Exception) -> bool:
        """Whether the request will be sent once more: the link failed, and somebody still waits for it."""
        frame = request.frame
        self._ledger.lost(frame.id, frame.attempt, _reason(failure))
        if request.attempt >= MAX_ATTEMPTS or not any(
            piece.member is None or not piece.member.session.finished for piece in request.pieces
        ):
            return False
        self._waiting.append((time.monotonic() + BACKOFF_S * 2 ** (request.attempt - 1), request))
        return True

    def _hand_out(self, request: _Request, rows: Rows) -> None:
        verdict = None if request.own is None else judge(rows, request.own, targeted=request.targeted)
        at = 0
        for piece in request.pieces:
            end = at + piece.count
            piece.rows = rows.part(at, end)
            piece.verdict = None if verdict is None else verdict.part(at, end)
            at = end
            member = piece.member
            if member is not None and not member.session.finished and member.whole:
                self._step(member, lambda member=member: self._tell(member))  # type: ignore[misc]
                if self._free > 0 and self._waiting_rows() >= FULL_ROWS:
                    self._dispatch()  # the server need not wait until all of these have thought of what they ask next

    def _measure(self, request: _Request) -> None:
        """What a row costs lately; by the first answer and by pings what a round trip does, before the first search begins."""
        now_s = time.monotonic()
        row_s = (now_s - max(self._heard_s, request.sent_s)) / request.frame.rows
        self._heard_s, self._row_s = now_s, 0.9 * self._row_s + 0.1 * row_s if self._row_s else row_s
        if self._sections is not None:
            return
        took_s = now_s - request.sent_s
        row_s = max((took_s - self._round_trip_s) / request.frame.rows, 1e-6)
        self._sections = Pace(self._round_trip_s, row_s, max(1, len(self._members))).sections
        if self._record is not None:
            self._record.sections(self._sections)

    def _send_again(self) -> None:
        now = time.monotonic()
        due = [request for at, request in self._waiting if at <= now]
        self._waiting = [(at, request) for at, request in self._waiting if at > now]
        for old in due:
            # one that an earlier process sent has its due attempt already
            frame = old.frame if old.own is None and old.sent_s == 0.0 else _once_more(old.frame)
            attempt = old.attempt if frame is old.frame else old.attempt + 1
            self._send(_Request(frame, old.pieces, old.slot, attempt, old.own, old.targeted))


def _stack(members: list[_Member]) -> F32:
    """What they ask, one after the other [k, *shape]; the very points of one that asks alone."""
    if len(members) == 1:
        return np.ascontiguousarray(members[0].session.asked.points, np.float32)
    return np.concatenate([member.session.asked.points for member in members], dtype=np.float32)


def _once_more(frame: Frame) -> Frame:
    return replace(frame, attempt=frame.attempt + 1, traceparent=str(new_context()) if frame.traceparent else "")


def _manner(session: Session) -> tuple[object, ...]:
    return (session.attack.feedback == "label", session.threat.norm, session.threat.target is None, *session.space.encoder)


def _reason(error: Exception) -> str:
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    return f"{code().name}: {details()}" if callable(code) and callable(details) else f"{type(error).__name__}: {error}"


def _rows(reply: Reply | Exception, frame: Frame) -> Rows:
    """The reply's rows, as far as the threat model looks: labels alone when those were asked for."""
    if isinstance(reply, Exception):
        return Rows.none(frame.rows, f"{SILENCE} {MAX_ATTEMPTS} attempts: {_reason(reply)}")
    if reply.error is not None:
        return Rows.none(frame.rows, reply.error, rejected=reply.error.startswith(REJECTED))
    scores = None if frame.labels_only else reply.scores
    labels = reply.labels
    if labels is None and reply.scores is not None:
        labels = reply.scores.argmax(axis=1)
    if labels is None or len(labels) != frame.rows or (scores is not None and len(scores) != frame.rows):
        return Rows.none(frame.rows, f"an answer of another size than {frame.rows} rows")
    rejected = labels == REJECTED_ROW
    return Rows(~rejected, labels, scores, rejected)
