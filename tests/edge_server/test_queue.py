"""Which requests go into a batch: by hand for the rules, by Hypothesis for the bookkeeping. Time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_server.batch import Done
from edge_server.batcher import MAX_SLIP, Batcher
from edge_server.forecast import Line
from edge_server.policy import BatchSettings, QueuePolicy, policy_of
from edge_server.queue import BatchQueue, Job
from edge_server.refusal import Refused
from splitcore.codec import fit
from splitcore.frame import Frame
from splitcore.latent import LatentSpec

CODEC = fit("identity", LatentSpec((1,), (0.0,), (1.0,), 1.0))


@dataclass
class Someone:
    gone: bool = False
    identity: str = "a phone"
    trace: str = ""

    def answer(self, job, outcome):
        raise AssertionError("a queue answers nobody")


US = 1000


def job(
    name: str, rows: int = 1, *, received_ns: int = 0, deadline_ns: int | None = None, caller: Someone | None = None,
    client: str = "a phone", **fields: int,
) -> Job:  # fmt: skip
    frame = Frame(id=name, payloads=(bytes(4),) * rows, shape=(1,), **fields)
    caller = caller or Someone(identity=client)
    return Job(frame, CODEC, caller, received_ns, deadline_ns, 4 * rows)


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
    assert filled(BatchSettings(), job("a", received_ns=700)).due_ns() <= 700
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


def test_a_higher_level_of_priority_goes_first_and_what_asks_for_none_or_an_unknown_one_is_at_the_default():
    settings = BatchSettings(max_batch_size=1, priority_levels=3, default_priority_level=2)
    queue = filled(
        settings,
        job("low", priority=3),
        job("none"),
        job("unknown", priority=9),
        job("high", priority=1),
        job("two", priority=2),
    )
    assert [names(queue.take(0).batch)[0] for _ in range(5)] == ["high", "none", "unknown", "two", "low"]


def test_each_level_has_a_room_of_its_own():
    policies = {1: QueuePolicy(max_queue_size=1)}
    settings = BatchSettings(max_queue_size=2, priority_levels=2, default_priority_level=2, priority_queue_policy=policies)
    queue = filled(settings, job("a"), job("b"), job("urgent", priority=1))
    for one in (job("c"), job("more", priority=1)):
        with pytest.raises(Refused, match="Exceeds maximum queue size"):
            queue.put(one)


def test_a_request_whose_timeout_delays_goes_behind_the_others_of_its_level_and_before_the_next():
    policy = QueuePolicy(timeout_action="DELAY", default_timeout_microseconds=2)
    settings = BatchSettings(max_batch_size=1, priority_levels=2, default_priority_level=1, priority_queue_policy={1: policy})
    queue = filled(settings, job("late"), job("fresh", received_ns=9 * US), job("low", priority=2))
    order = []
    while queue:
        taken = queue.take(10 * US)
        assert not taken.refused
        order += names(taken.batch)
    assert order == ["fresh", "late", "low"] and queue.rows == queue.bytes == 0


def test_the_default_timeout_holds_for_who_says_none_and_a_request_may_only_shorten_it():
    policy = QueuePolicy(default_timeout_microseconds=100)
    assert [policy.timeout_us(asked) for asked in (None, 40, 400)] == [100, 40, 100]
    assert QueuePolicy().timeout_us(400) == 400 and QueuePolicy().timeout_us(None) is None
    assert QueuePolicy(default_timeout_microseconds=100, allow_timeout_override=False).timeout_us(40) == 100


LINE = Line(row_ns=10.0 * US, batch_ns=100.0 * US)


def test_what_cannot_make_its_deadline_is_refused_when_it_comes_and_told_what_was_predicted():
    queue = filled(BatchSettings(max_batch_size=8), *(job(str(n), 4) for n in range(4)))
    with pytest.raises(Refused, match="16 rows wait before it, so it would take 540 us, allowed were 500 us") as refused:
        queue.put(job("late", 4, timeout_us=500), 0, LINE, lambda: 40.0 * US)
    assert refused.value.reason == "REJECTED_DEADLINE" and queue.rows == 16
    queue.put(job("in time", 4, timeout_us=540), 0, LINE, lambda: 40.0 * US)
    queue.put(job("of another", 4, timeout_us=500, client="another"), 0, LINE, lambda: 40.0 * US)


def test_where_forecasts_fell_short_lately_more_time_is_asked_for():
    queue = filled(BatchSettings(max_batch_size=8), *(job(str(n), 4) for n in range(4)))
    with pytest.raises(Refused, match="it would take 648 us, allowed were 600 us"):
        queue.put(job("late", 4, timeout_us=600), 0, LINE, lambda: 40.0 * US, 1.2)
    one = job("in time", 4, timeout_us=660)
    queue.put(one, 0, LINE, lambda: 40.0 * US, 1.2)
    assert one.promised_ns == 540 * US, "what it is compared with later is the forecast itself"


async def test_a_batcher_remembers_for_a_while_by_how_much_its_forecasts_fell_short():
    clock = [0]
    batcher = Batcher(BatchSettings(), lambda taken: Done(), now_ns=lambda: clock[0])

    def answered(promised_us: float, took_us: float) -> float:
        one = job("a", 1)
        one.promised_ns, clock[0] = int(one.received_ns + promised_us * US), int(one.received_ns + took_us * US)
        batcher.left(one)
        return batcher.slip

    assert answered(100, 80) == 1.0, "sooner than promised promises nothing"
    assert answered(100, 120) == pytest.approx(1.2)
    assert 1.19 < answered(100, 90) < 1.2
    assert answered(100, 900) == MAX_SLIP, "one stall should not refuse everybody"
    for _ in range(2000):
        answered(100, 90)
    assert batcher.slip == pytest.approx(1.0, abs=1e-3)


def test_a_batch_ends_where_one_more_would_make_another_late():
    queue = filled(BatchSettings(), job("a", 4, timeout_us=150), job("b", 4), job("c", 1))
    assert names(queue.take(0, LINE).batch) == ["a"]
    assert names(queue.take(0, LINE).batch) == ["b", "c"]


def test_what_would_be_late_is_refused_when_its_batch_is_formed():
    queue = filled(BatchSettings(), job("late", timeout_us=200), job("b"))
    taken = queue.take(100 * US, LINE)
    assert names(taken.batch) == ["b"]
    [(_, refusal)] = taken.refused
    assert "waited 100 us in the queue and would take 110 us more, allowed were 200 us" in refusal.text


def test_a_full_queue_says_when_to_ask_again_and_in_triton_s_words_if_told_to():
    for status, code in (("grpc", "RESOURCE_EXHAUSTED"), ("triton", "UNAVAILABLE")):
        queue = filled(BatchSettings(max_queue_size=100, status=status), *(job(str(n), 10) for n in range(10)))
        with pytest.raises(Refused) as refused:
            queue.put(job("more"), 0, LINE, lambda: 5e6)
        # 5 ms until the tail is free, then 100 rows in two batches
        assert refused.value.in_band.startswith(f"{code}: ") and refused.value.trailers == (("grpc-retry-pushback-ms", "6"),)


def test_a_flooder_s_newest_make_room_for_another_and_are_told_so():
    queue = filled(BatchSettings(max_queue_size=4), *(job(str(n), client="flood") for n in range(4)))
    [(out, refusal)] = queue.put(job("other", client="another"))
    assert out.frame.id == "3" and refusal.reason == "REJECTED_FULL" and "made room" in refusal.text
    assert names(queue.take(0).batch) == ["0", "other", "1", "2"] and queue.rows == 0


def test_preferred_sizes_leave_at_once_and_the_rest_when_the_oldest_has_waited():
    settings = BatchSettings(max_batch_size=16, preferred_batch_size=(4, 8), max_queue_delay_microseconds=50)
    queue = filled(settings, *(job(str(n)) for n in range(3)))
    assert queue.due_ns() == 50 * US
    for n in range(3, 10):
        queue.put(job(str(n)))
    assert queue.due_ns() == 0 and len(queue.take(0).batch) == 8
    assert queue.due_ns() == 50 * US and len(queue.take(50 * US).batch) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"preferred_batch_size": (65,)},
        {"priority_levels": 2},
        {"priority_levels": 2, "default_priority_level": 3},
        {"priority_queue_policy": {1: QueuePolicy()}},
        {"timeout_action": "WAIT"},
        {"status": "http"},
    ],
)
def test_settings_that_contradict_one_another_are_refused(wrong):
    with pytest.raises(ValueError, match="expected "):
        BatchSettings(**wrong)


def test_a_policy_of_one_level_is_read_from_the_command_line():
    default = QueuePolicy(max_queue_size=9)
    assert policy_of("2:timeout_action=DELAY,allow_timeout_override=false", default) == (
        2, QueuePolicy(timeout_action="DELAY", allow_timeout_override=False, max_queue_size=9),
    )  # fmt: skip
    for wrong in ("2", "x:max_queue_size=1", "1:size=1", "1:max_queue_size=x", "1:allow_timeout_override=1"):
        with pytest.raises(ValueError, match=r"expected|invalid literal"):
            policy_of(wrong, default)


@given(
    requests=st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 4), st.sampled_from("abc"), st.sampled_from([None, 50, 400])), max_size=40
    ),
    size=st.integers(1, 8),
    room=st.integers(4, 40),
    action=st.sampled_from(["REJECT", "DELAY"]),
)
def test_every_request_of_whatever_priority_client_and_timeout_ends_in_exactly_one_way(requests, size, room, action):
    settings = BatchSettings(
        max_batch_size=size, max_queue_size=room, priority_levels=3, default_priority_level=2, timeout_action=action
    )
    queue, ended, put, level_of = BatchQueue(settings), [], [], {}
    now_ns = 0
    for n, (rows, priority, client, timeout_us) in enumerate(requests):
        one = job(str(n), rows, priority=priority, client=client, timeout_us=timeout_us, received_ns=now_ns)
        put.append(one)
        level_of[one] = settings.level(priority)
        try:
            ended += [pushed for pushed, _ in queue.put(one, now_ns, LINE)]
        except Refused:
            ended.append(one)
        now_ns += 20 * US
        if n % 5 == 4:
            taken = queue.take(now_ns, LINE)
            ended += [*taken.batch, *(late for late, _ in taken.refused)]
            assert sum(each.rows for each in taken.batch) <= size or len(taken.batch) == 1
            levels = [level_of[each] for each in taken.batch]
            assert levels == sorted(levels), "no lower level before a higher one"
            assert all(each.deadline_ns is None or now_ns < each.deadline_ns for each in taken.batch)
    while queue:
        taken = queue.take(now_ns, LINE)
        assert taken.batch or taken.refused
        ended += [*taken.batch, *(late for late, _ in taken.refused)]
    assert sorted(map(id, ended)) == sorted(map(id, put)) and queue.rows == queue.bytes == 0
