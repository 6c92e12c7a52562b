"""Which requests go into a batch: by hand for the rules, by Hypothesis for the bookkeeping. Time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.queue import BatchQueue, BatchSettings, Job
from edge_server.refusal import Refused
from splitcore.codec import fit
from splitcore.frame import Frame
from splitcore.latent import LatentSpec

CODEC = fit("identity", LatentSpec((1,), (0.0,), (1.0,), 1.0))


@dataclass
class Someone:
    gone: bool = False

    def answer(self, job, outcome):
        raise AssertionError("a queue answers nobody")


def job(
    name: str, rows: int = 1, *, received_ns: int = 0, deadline_ns: int | None = None, caller: Someone | None = None
) -> Job:
    frame = Frame(id=name, payloads=(bytes(4),) * rows, shape=(1,))
    return Job(frame, CODEC, caller or Someone(), received_ns, deadline_ns, 4 * rows)


def filled(settings: BatchSettings, *jobs: Job) -> BatchQueue:
    queue = BatchQueue(settings)
    for one in jobs:
        queue.put(one)
    return queue


def names(jobs: list[Job]) -> list[str]:
    return [one.frame.id for one in jobs]


def test_whole_requests_fill_a_batch_in_the_order_of_their_coming():
    queue = filled(BatchSettings(max_batch_size=8), job("a", 3), job("b", 4), job("c", 2), job("d", 1))
    assert names(queue.take(0).batch) == ["a", "b"]
    assert names(queue.take(0).batch) == ["c", "d"]
    assert queue.take(0).batch == [] and queue.rows == queue.bytes == len(queue) == 0


def test_a_request_larger_than_a_batch_goes_alone():
    queue = filled(BatchSettings(max_batch_size=4), job("a"), job("large", 9), job("b"))
    assert [names(queue.take(0).batch) for _ in range(3)] == [["a"], ["large"], ["b"]]


def test_a_full_queue_refuses_at_once_and_says_how_full_it_is():
    queue = filled(BatchSettings(max_queue_size=5), job("a", 4))
    with pytest.raises(Refused, match=r"Exceeds maximum queue size: 4 rows .* 2 more .* max_queue_size 5") as refused:
        queue.put(job("b", 2))
    assert refused.value.in_band.startswith("RESOURCE_EXHAUSTED: ") and refused.value.reason == "REJECTED_FULL"
    queue.put(job("c", 1))
    assert queue.rows == 5
    queue.take(0)
    queue.put(job("d", 5))


def test_bytes_bound_the_queue_too():
    queue = filled(BatchSettings(max_queue_bytes=16), job("a", 3))
    with pytest.raises(Refused, match="16 bytes"):
        queue.put(job("b", 2))


def test_without_a_delay_a_batch_is_due_at_once_and_with_one_when_its_oldest_has_waited():
    assert filled(BatchSettings(), job("a", received_ns=700)).due_ns() == 700
    delayed = BatchSettings(max_batch_size=4, max_queue_delay_microseconds=2)
    queue = filled(delayed, job("a", received_ns=700), job("b", received_ns=900))
    assert queue.due_ns() == 2700
    queue.put(job("c", 2, received_ns=950))
    assert queue.due_ns() == 0  # full: nothing to wait for


def test_an_expired_request_leaves_with_the_reason_and_never_enters_a_batch():
    queue = filled(BatchSettings(), job("late", received_ns=1_000_000, deadline_ns=3_000_000), job("b", deadline_ns=3_000_001))
    taken = queue.take(3_000_000)
    assert names(taken.batch) == ["b"]
    [(late, refusal)] = taken.refused
    assert late.frame.id == "late" and refusal.reason == "REJECTED_DEADLINE"
    assert refusal.in_band.startswith("DEADLINE_EXCEEDED: Request timeout expired: waited 2000 us")


def test_a_request_whose_caller_has_gone_is_dropped():
    gone = Someone()
    queue = filled(BatchSettings(), job("a", caller=gone), job("b"), job("c", caller=gone))
    gone.gone = True
    taken = queue.take(0)
    assert (names(taken.batch), names(taken.cancelled)) == (["b"], ["a", "c"])


def test_dead_requests_do_not_close_a_batch():
    gone = Someone(gone=True)
    queue = filled(BatchSettings(max_batch_size=4), job("a", 3), job("dead", 4, caller=gone), job("b", 1), job("c", 1))
    taken = queue.take(0)
    assert (names(taken.batch), names(taken.cancelled)) == (["a", "b"], ["dead"])


@pytest.mark.parametrize("wrong", [{"max_batch_size": 0}, {"max_queue_size": 0}, {"max_queue_delay_microseconds": -1}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BatchSettings(**wrong)


@given(
    rows=st.lists(st.integers(1, 12), max_size=40),
    dead=st.sets(st.integers(0, 39)),
    late=st.sets(st.integers(0, 39)),
    size=st.integers(1, 8),
)
def test_every_request_leaves_once_in_order_and_no_batch_is_larger_than_allowed(rows, dead, late, size):
    jobs = [job(str(n), k, deadline_ns=5 if n in late else None, caller=Someone(gone=n in dead)) for n, k in enumerate(rows)]
    queue = filled(BatchSettings(max_batch_size=size), *jobs)
    batched, refused, cancelled = [], [], []
    while queue:
        taken = queue.take(10)
        assert sum(one.rows for one in taken.batch) <= size or len(taken.batch) == 1
        assert taken.batch or taken.refused or taken.cancelled
        batched += taken.batch
        refused += [one for one, _ in taken.refused]
        cancelled += taken.cancelled
    assert queue.rows == queue.bytes == 0
    assert cancelled == [one for n, one in enumerate(jobs) if n in dead]
    assert refused == [one for n, one in enumerate(jobs) if n in late - dead]
    assert batched == [one for n, one in enumerate(jobs) if n not in late | dead]
