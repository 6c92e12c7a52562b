"""An attack in traces: a session lies in its frame's trace, below the relay's span; a request of queries is a trace of its own,
because it carries rows of many sessions, and links to each of them that is traced."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from adversary.record import Piece
from adversary.session import Outcome
from splitcore.frame import Frame, Reply
from splitcore.telemetry.context import Context, sampled
from splitcore.telemetry.frame_spans import RELAY, SESSION
from splitcore.telemetry.tracing import Span


def place_of_session(frame: Frame) -> Context | None:
    """Of a held frame's session; None where the frame is not traced."""
    sender = sampled(frame.traceparent)
    return None if sender is None else sender.child(RELAY).child(SESSION)


def session_spans(frame: Frame, outcome: Outcome, arrived_s: float) -> Sequence[Span]:
    """From the frame's arrival (monotonic seconds) to its session's end."""
    sender = sampled(frame.traceparent)
    if sender is None:
        return ()
    relay, start_ns = sender.child(RELAY), round(arrived_s * 1e9)
    said: dict[str, str | int | float | bool] = {
        "latentbed.frame": frame.id, "latentbed.attack": outcome.attack, "latentbed.queries": outcome.queries,
        "latentbed.end": outcome.reason, "latentbed.success": outcome.success,
    }  # fmt: skip
    if outcome.distance is not None:
        said["latentbed.distance"] = outcome.distance
    end_ns = start_ns + round((outcome.held_ms or 0.0) * 1e6)
    return (
        Span(
            name=SESSION, at=relay.child(SESSION), parent=relay, start_ns=start_ns, end_ns=end_ns, attributes=said,
            error=outcome.error or "",
        ),
    )  # fmt: skip


def query_spans(frame: Frame, pieces: Iterable[Piece], sent_s: float, reply: Reply | Exception) -> Sequence[Span]:
    """One request of queries, from its sending (monotonic seconds) until now."""
    at = sampled(frame.traceparent)
    if at is None:
        return ()
    sessions = [piece.member.session for piece in pieces if piece.member is not None]
    links = dict.fromkeys(session.trace for session in sessions if session.trace is not None)
    said: dict[str, str | int | float | bool] = {
        "latentbed.frame": frame.id, "latentbed.attempt": frame.attempt, "latentbed.rows": frame.rows,
        "latentbed.sessions": len(sessions),
    }  # fmt: skip
    failure = f"{type(reply).__name__}: {reply}" if isinstance(reply, Exception) else reply.error or ""
    return (
        Span(
            name="query", at=at, start_ns=round(sent_s * 1e9), end_ns=time.monotonic_ns(), kind="CLIENT", attributes=said,
            links=tuple(links), error=failure[:300],
        ),
    )  # fmt: skip
