"""The spans of a frame, made of the times that its node took anyway: no second set of clocks.

frame                                        phone, the root: scheduled to answered
  head, encode
  inference.GRPCInferenceService/ModelStreamInfer, kind client          one sending; its context travels
    relay                                    where one is on the path and traces
      hold, attack session
      edge                                   kind server, with Triton's timestamps as events
        queue, compute input, compute infer, compute output
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.context import Context
from splitcore.telemetry.tracing import Kind, Span

CALL = "inference.GRPCInferenceService/ModelStreamInfer"
RELAY, SESSION = "relay", "attack session"
TRITON = {
    "REQUEST_START": "received", "QUEUE_START": "received", "COMPUTE_START": "dequeued", "COMPUTE_INPUT_END": "decoded",
    "COMPUTE_OUTPUT_START": "tail_done", "COMPUTE_END": "tail_done", "REQUEST_END": "replied",
}  # fmt: skip
"""its name for a time, ours"""


def attempt_of(root: Context, attempt: int) -> Context:
    """The place of one sending of a frame, which goes with it."""
    return root.child(f"attempt {attempt}")


def spans_of(frame: str, attempt: int, context: Context, times: Mapping[str, int]) -> list[Span]:
    """By what times there are: `context` is the root at the phone, and what came with the frame at the others."""
    if "scheduled" in times:
        return _phone(frame, attempt, context, times)
    if "relay_in" in times:
        relay = context.child(RELAY)
        return [
            _span(RELAY, relay, context, times, "relay_in", "reply_out", frame, attempt, "SERVER"),
            _span("hold", relay.child("hold"), relay, times, "relay_in", "relay_out", frame, attempt),
        ]
    edge = context.child("edge")
    events = tuple((triton, times[ours]) for triton, ours in TRITON.items())
    steps = {
        "queue": ("received", "dequeued"), "compute input": ("dequeued", "decoded"), "compute infer": ("decoded", "tail_done"),
        "compute output": ("tail_done", "replied"),
    }  # fmt: skip
    return [
        _span("edge", edge, context, times, "received", "replied", frame, attempt, "SERVER", events),
        *(_span(name, edge.child(name), edge, times, *ends, frame, attempt) for name, ends in steps.items()),
    ]


def lost_attempt(frame: str, attempt: int, root: Context, sent_ns: int, reason: str) -> Span:
    """A sending that got no answer: what relay and edge did of it has a parent all the same."""
    times = {"sent": sent_ns, "lost": now_ns()}
    span = _span(CALL, attempt_of(root, attempt), root, times, "sent", "lost", frame, attempt, "CLIENT")
    return replace(span, error=reason)


def _phone(frame: str, attempt: int, root: Context, times: Mapping[str, int]) -> list[Span]:
    return [
        _span("frame", root, None, times, "scheduled", "answered", frame, attempt),
        _span("head", root.child("head"), root, times, "head_start", "head_end", frame, attempt),
        _span("encode", root.child("encode"), root, times, "head_end", "encoded", frame, attempt),
        _span(CALL, attempt_of(root, attempt), root, times, "sent", "answered", frame, attempt, "CLIENT"),
    ]


def _span(
    name: str, at: Context, parent: Context | None, times: Mapping[str, int], start: str, end: str, frame: str, attempt: int,
    kind: Kind = "INTERNAL", events: tuple[tuple[str, int], ...] = (),
) -> Span:  # fmt: skip
    said: dict[str, str | int | float | bool] = {"latentbed.frame": frame, "latentbed.attempt": attempt}
    return Span(
        name=name, at=at, parent=parent, start_ns=times[start], end_ns=times[end], kind=kind, attributes=said, events=events
    )
