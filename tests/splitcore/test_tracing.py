"""Where spans go: trace contexts as W3C has them, and a collector that takes nothing."""

from __future__ import annotations

import time

import pytest
from otlp import Receiver, Silent

from splitcore.frame import Frame
from splitcore.telemetry.context import Context, new_context, sampled
from splitcore.telemetry.tracing import HIGH_WATER, Span, TraceConfig, Tracer
from splitcore.wire import oip


def span() -> Span:
    now = time.monotonic_ns()
    return Span(name="frame", at=new_context(), start_ns=now - 1_000_000, end_ns=now)


def test_a_context_comes_back_as_it_was_written() -> None:
    context = new_context()
    assert sampled(str(context)) == context and sampled(f"00-{context.trace_id}-{context.span_id}-00") is None


@pytest.mark.parametrize("text", ["", "00-0-0-01", f"00-{'0' * 32}-{'1' * 16}-01", f"01-{'1' * 32}-{'1' * 16}-01", "x" * 9999])
def test_a_context_that_is_none_is_ignored(text: str) -> None:
    assert sampled(text) is None


def test_a_child_stays_in_the_trace_and_has_the_same_place_wherever_it_is_computed() -> None:
    parent = new_context()
    child = parent.child("relay")
    assert child.trace_id == parent.trace_id and child.span_id != parent.span_id
    assert child == Context(parent.trace_id, parent.span_id).child("relay") != parent.child("edge")


def test_a_frame_carries_its_context_and_another_parent_changes_nothing_else() -> None:
    mine = new_context()
    frame = Frame(id="r/c/1", payloads=(bytes(range(256)),), codec="zstd", shape=(4, 4, 4), traceparent=str(mine))
    message = oip.pack_request(frame)
    assert oip.unpack_request(message) == frame
    relay = mine.child("relay")
    onward = oip.with_traceparent(message, str(mine), str(relay))
    assert len(onward) == len(message)
    assert oip.unpack_request(onward) == Frame(**{**{f: getattr(frame, f) for f in frame.__slots__}, "traceparent": str(relay)})


def test_a_frame_that_is_not_traced_has_the_bytes_it_had_before_there_was_tracing() -> None:
    frame = Frame(id="r/c/1", payloads=(b"x",), codec="zstd", shape=(4, 4, 4))
    assert oip.TRACE_KEY.encode() not in oip.pack_request(frame)


def test_spans_arrive_with_their_times_on_the_wall_clock() -> None:
    receiver = Receiver()
    tracer = Tracer("edge", TraceConfig(endpoint=receiver.endpoint))
    try:
        tracer.record(span())
        [arrived] = receiver.until(bool)
        assert arrived["end"] - arrived["start"] == 1_000_000
        assert abs(arrived["end"] / 1e9 - time.time()) < 60
    finally:
        tracer.close()
        receiver.close()
    assert (tracer.exported, tracer.dropped) == (1, 0)


def test_a_collector_that_stops_reading_costs_nothing_but_spans_which_are_counted() -> None:
    silent = Silent()
    tracer = Tracer("edge", TraceConfig(endpoint=silent.endpoint))
    try:
        made, slowest = 3 * HIGH_WATER, 0.0
        one = span()
        for _ in range(made):
            began = time.monotonic()
            tracer.record(one)
            slowest = max(slowest, time.monotonic() - began)
    finally:
        began = time.monotonic()
        tracer.close()
    silent.close()
    assert time.monotonic() - began < 10
    assert (tracer.exported, tracer.dropped) == (0, made)
    assert slowest < 2  # never as long as one try to export


@pytest.mark.parametrize("endpoint", ["collector:4318", "tcp://collector:4318", "http://"])
def test_an_endpoint_that_is_none_is_refused_in_words(endpoint: str) -> None:
    with pytest.raises(ValueError, match="expected an OTLP endpoint"):
        TraceConfig(endpoint=endpoint)
