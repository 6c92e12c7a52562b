"""Spans and their collector: what arrives, what is dropped and counted, and that a node never waits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from splitcore.journal import read
from splitcore.telemetry.clock import Offset, now_ns
from splitcore.telemetry.collector import MAX_RECORD_BYTES, Collector
from splitcore.telemetry.spans import HIGH_WATER, Telemetry, clock_endpoint


def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come; only a hang ends it otherwise."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited a minute in vain")


def test_spans_arrive_with_their_times_and_the_nodes_clock(tmp_path: Path) -> None:
    collector = Collector(tmp_path / "spans.jsonl")
    telemetry = Telemetry("client", collector.endpoint)
    for i in range(500):
        telemetry.span(f"r/c/{i}", 1, sent=now_ns(), answered=2**62 + i)
    until(lambda: "client" in collector.offsets)
    telemetry.close()
    until(lambda: "client" in collector.dropped)
    until(lambda: collector.received == 502)
    collector.close()
    rows = list(read(tmp_path / "spans.jsonl"))
    spans = [row for row in rows if row["kind"] == "span"]
    assert [row["frame"] for row in spans] == [f"r/c/{i}" for i in range(500)]
    assert spans[3]["node"] == "client" and spans[3]["attempt"] == 1 and spans[3]["t"]["answered"] == 2**62 + 3
    assert collector.offsets == {"client": Offset(0, 0)}, "one host has one clock"
    assert collector.dropped == {"client": 0} and collector.malformed == 0
    assert sorted(row["kind"] for row in rows if row["kind"] != "span") == ["bye", "node"]


def test_without_an_endpoint_nothing_happens() -> None:
    telemetry = Telemetry("client", None)
    telemetry.span("r/c/1", 1, sent=1)
    telemetry.close()
    assert (telemetry.sent, telemetry.dropped) == (0, 0)


@pytest.mark.parametrize(
    "endpoint", ["", "localhost:5", "tcp://localhost", "http://h:1", "tcp://:5", "tcp://h:0", "tcp://h:1/x"]
)
def test_an_endpoint_that_cannot_be_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(ValueError, match="expected a telemetry endpoint tcp://host:port"):
        Telemetry("client", endpoint)


def test_the_clock_is_one_port_above_the_spans() -> None:
    assert clock_endpoint("tcp://testbed:5600") == "tcp://testbed:5601"


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_an_absent_collector_never_blocks_and_what_does_not_fit_is_counted() -> None:
    telemetry = Telemetry("client", f"tcp://127.0.0.1:{closed_port()}")
    for i in range(10 * HIGH_WATER):
        telemetry.span("r/c/1", i, sent=i)
    assert telemetry.sent + telemetry.dropped == 10 * HIGH_WATER
    assert telemetry.sent <= HIGH_WATER and telemetry.dropped >= 9 * HIGH_WATER
    telemetry.close()
    telemetry.close()
    telemetry.span("r/c/1", 1, sent=1)


def test_a_name_that_is_not_known_never_blocks_either() -> None:
    telemetry = Telemetry("client", "tcp://no-such-host.invalid:5600")
    telemetry.span("r/c/1", 1, sent=1)
    telemetry.close()


def test_a_collector_that_stops_reading_never_blocks_and_hears_of_the_losses_when_it_reads_again() -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as spans:
        spans.setsockopt(zmq.LINGER, 0)
        port = spans.bind_to_random_port("tcp://127.0.0.1")
        telemetry = Telemetry("client", f"tcp://127.0.0.1:{port}")
        telemetry.span("r/c/first", 1, sent=1)
        assert orjson.loads(spans.recv())["frame"] == "r/c/first"
        while telemetry.dropped < HIGH_WATER:
            telemetry.span("r/c/1", 1, sent=1)
        closing = threading.Thread(target=telemetry.close, kwargs={"linger_ms": 30_000})
        closing.start()
        records: list[dict[str, object]] = []
        while not any(record["kind"] == "bye" for record in records):
            assert spans.poll(30_000)
            records.append(orjson.loads(spans.recv()))
        bye = next(record for record in records if record["kind"] == "bye")
        assert bye["dropped"] == telemetry.dropped >= HIGH_WATER and bye["sent"] == telemetry.sent
        while closing.is_alive():
            while spans.poll(10):
                records.append(orjson.loads(spans.recv()))
        while spans.poll(200):
            records.append(orjson.loads(spans.recv()))
        assert len(records) == telemetry.sent, "all that was counted as sent has come: first, spans and goodbye"


def test_losses_are_told_with_the_spans_that_follow_while_the_node_lives_on(tmp_path: Path) -> None:
    port = closed_port()
    telemetry = Telemetry("client", f"tcp://127.0.0.1:{port}")
    while telemetry.dropped < 100:
        telemetry.span("r/c/1", 1, sent=1)
    collector = Collector(tmp_path / "spans.jsonl", port=port)
    until(lambda: collector.received >= telemetry.sent)
    telemetry.span("r/c/2", 1, sent=1)
    until(lambda: "client" in collector.dropped)
    assert collector.dropped["client"] == telemetry.dropped
    telemetry.close()
    collector.close()


def test_a_node_may_start_long_before_its_collector(tmp_path: Path) -> None:
    port = closed_port()
    telemetry = Telemetry("edge", f"tcp://127.0.0.1:{port}")
    telemetry.span("r/c/1", 1, received=1)
    time.sleep(1.2)  # a whole round of the greeter is in vain
    collector = Collector(tmp_path / "spans.jsonl", port=port)
    until(lambda: "edge" in collector.offsets and collector.received == 2)
    telemetry.close()
    collector.close()


def test_the_clock_is_answered_while_spans_flood_in(tmp_path: Path) -> None:
    collector = Collector(tmp_path / "spans.jsonl")
    flooding = threading.Event()

    def flood() -> None:
        telemetry = Telemetry("flood", collector.endpoint)
        while not flooding.is_set():
            telemetry.span("r/c/1", 1, sent=1)
        telemetry.close(0)

    thread = threading.Thread(target=flood)
    thread.start()
    until(lambda: collector.received > 2000)
    late = Telemetry("late", collector.endpoint)
    until(lambda: "late" in collector.offsets)
    flooding.set()
    thread.join()
    late.close()
    collector.close()


GOOD = {"kind": "span", "node": "n", "frame": "f", "attempt": 1, "t": {"a": 1}}
MALFORMED: list[bytes] = [
    b"",
    b"\xff",
    b"null",
    b"[]",
    b"{}",
    b'"span"',
    orjson.dumps({**GOOD, "kind": "other"}),
    orjson.dumps({**GOOD, "kind": ["span"]}),
    orjson.dumps({**GOOD, "node": 1}),
    orjson.dumps({**GOOD, "node": {}}),
    orjson.dumps({**GOOD, "attempt": "1"}),
    orjson.dumps({**GOOD, "t": [1]}),
    orjson.dumps({**GOOD, "t": {"a": 1.5}}),
    orjson.dumps({**GOOD, "t": {"a": {"b": 1}}}),
    b'{"kind":"node","node":"n","offset_ns":1e300,"uncertainty_ns":0}',
    b'{"kind":"node","node":"n","offset_ns":99999999999999999999999,"uncertainty_ns":0}',
    b'{"kind":"bye","node":"n","dropped":null}',
    # reads, but is too deep to be written again
    b'{"kind":"span","node":"n","frame":"f","attempt":1,"t":' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}",
]


def test_malformed_records_are_counted_and_the_collector_goes_on(tmp_path: Path) -> None:
    collector = Collector(tmp_path / "spans.jsonl")
    with zmq.Context() as context, context.socket(zmq.PUSH) as stranger:
        stranger.setsockopt(zmq.LINGER, 10_000)
        stranger.connect(collector.endpoint)
        for record in MALFORMED:
            stranger.send(record)
        # what is not known is left out, however deep it is
        stranger.send(orjson.dumps(GOOD)[:-1] + b',"more":' + b"[" * 500 + b"]" * 500 + b"}")
        until(lambda: collector.received == 1)
        stranger.send(b"x" * (MAX_RECORD_BYTES + 1))  # libzmq itself hangs up on this one
        until(lambda: collector.malformed == len(MALFORMED))
    with zmq.Context() as context, context.socket(zmq.REQ) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(clock_endpoint(collector.endpoint))
        stranger.send_multipart([b"many", b"parts", b""])
        assert stranger.poll(30_000) and set(orjson.loads(stranger.recv())) == {"host", "t1", "t2"}
    telemetry = Telemetry("client", collector.endpoint)
    telemetry.span("r/c/1", 1, sent=1)
    until(lambda: collector.received == 3)
    telemetry.close()
    collector.close()
    rows = list(read(tmp_path / "spans.jsonl"))
    assert rows[0] == GOOD and collector.malformed == len(MALFORMED)


@given(record=st.binary(max_size=100) | st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["kind", "node", "frame", "attempt", "t", "dropped", "sent", "offset_ns",
                                       "uncertainty_ns", "x"]), inner | st.sampled_from(["span", "node", "bye"]), max_size=8),
    max_leaves=15).map(orjson.dumps))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_record_is_taken_or_counted_and_what_is_taken_can_be_written(shared_collector: Collector, record: bytes) -> None:
    row = shared_collector._take(record)
    assert row is None or orjson.loads(orjson.dumps(row)) == row


@pytest.fixture(scope="module")
def shared_collector(tmp_path_factory: pytest.TempPathFactory) -> object:
    collector = Collector(tmp_path_factory.mktemp("telemetry") / "spans.jsonl")
    yield collector
    collector.close()


def test_an_answer_that_is_no_time_is_asked_for_again(tmp_path: Path) -> None:
    """Somebody else's service stands where the clock should be, and then the clock comes."""
    with zmq.Context() as context, context.socket(zmq.REP) as clock, context.socket(zmq.PULL) as spans:
        for end in (clock, spans):
            end.setsockopt(zmq.LINGER, 0)
        port = bind_neighbours(spans, clock)
        telemetry = Telemetry("client", f"tcp://127.0.0.1:{port}")
        for nonsense in (b"", b'{"host":"h","t1":"1","t2":2}'):
            assert clock.poll(30_000)
            clock.recv()
            clock.send(nonsense)
        while not spans.poll(0):
            if clock.poll(10):
                clock.recv()
                t1 = now_ns()
                clock.send(orjson.dumps({"host": "another", "t1": t1 + 5_000_000_000, "t2": now_ns() + 5_000_000_000}))
        record = orjson.loads(spans.recv())
        telemetry.close()
    assert record["kind"] == "node" and abs(record["offset_ns"] - 5_000_000_000) <= record["uncertainty_ns"]


def bind_neighbours(lower: zmq.Socket[bytes], upper: zmq.Socket[bytes]) -> int:
    while True:
        port = int(lower.bind_to_random_port("tcp://127.0.0.1"))
        try:
            upper.bind(f"tcp://127.0.0.1:{port + 1}")
        except zmq.ZMQError:
            lower.unbind(f"tcp://127.0.0.1:{port}")
            continue
        return port


def test_closing_does_not_wait_for_a_clock_that_never_answers() -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as clock, context.socket(zmq.PULL) as spans:
        for end in (clock, spans):
            end.setsockopt(zmq.LINGER, 0)
        port = bind_neighbours(spans, clock)
        telemetry = Telemetry("client", f"tcp://127.0.0.1:{port}")
        assert clock.poll(30_000)
        clock.recv()  # and no answer
        telemetry.close()
        assert spans.poll(30_000) and orjson.loads(spans.recv())["kind"] == "bye"


def test_a_taken_port_is_an_error_and_a_free_pair_is_found(tmp_path: Path) -> None:
    first = Collector(tmp_path / "a.jsonl")
    with pytest.raises(zmq.ZMQError, match="in use"):
        Collector(tmp_path / "b.jsonl", port=first.port)
    with pytest.raises(zmq.ZMQError, match="in use"):
        Collector(tmp_path / "b.jsonl", port=first.port - 1)
    second = Collector(tmp_path / "b.jsonl")
    assert second.port not in (first.port, first.port + 1)
    first.close()
    second.close()


def test_a_journal_that_cannot_be_written_is_told_when_the_collector_closes() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full, a disk that is always full")
    collector = Collector(full)
    telemetry = Telemetry("client", collector.endpoint)
    telemetry.span("r/c/1", 1, sent=1)
    until(lambda: not collector._thread.is_alive())
    telemetry.close()
    with pytest.raises(OSError, match="No space left"):
        collector.close()


def test_what_has_arrived_when_the_collector_closes_is_kept(tmp_path: Path) -> None:
    collector = Collector(tmp_path / "spans.jsonl")
    telemetry = Telemetry("client", collector.endpoint)
    for i in range(15_000):
        telemetry.span("r/c/1", i, sent=i)
    telemetry.close(linger_ms=30_000)  # returns when all has left
    until(lambda: "client" in collector.dropped)
    collector.close()
    spans = [row for row in read(tmp_path / "spans.jsonl") if row["kind"] == "span"]
    assert [row["attempt"] for row in spans] == list(range(15_000))
    assert collector.dropped == {"client": 0}


def test_spans_that_were_sent_and_never_came_are_counted_as_dropped(tmp_path: Path) -> None:
    collector = Collector(tmp_path / "spans.jsonl")
    with zmq.Context() as context, context.socket(zmq.PUSH) as node:
        node.setsockopt(zmq.LINGER, 10_000)
        node.connect(collector.endpoint)
        for _ in range(3):
            node.send(orjson.dumps(GOOD))
        node.send(orjson.dumps({"kind": "bye", "node": "n", "sent": 10, "dropped": 5}))
    until(lambda: collector.received == 4)
    assert collector.dropped == {"n": 5}
    collector.close()
    assert collector.dropped == {"n": 5 + 7}
