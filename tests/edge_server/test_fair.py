"""Fairness among clients against a slow plain twin, and what a full queue pushes out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from edge_server.fair import FairQueue


@dataclass(frozen=True)
class Request:
    client: str
    number: int
    rows: int
    payload_bytes: int = 1


class Twin:
    """The paper's rule, by looking at everything each time: of the oldest of each client, the earliest start is next."""

    def __init__(self) -> None:
        self.waiting: list[Request] = []
        self.ended: dict[str, int] = {}
        self.now = self.turn = 0
        self.since: dict[str, int] = {}

    def put(self, request: Request) -> None:
        if not any(one.client == request.client for one in self.waiting):
            self.begin(request.client)
        self.waiting.append(request)

    def begin(self, client: str) -> None:
        self.ended[client] = max(self.ended.get(client, self.now), self.now)
        self.again(client)

    def again(self, client: str) -> None:
        self.turn += 1
        self.since[client] = self.turn

    def pop(self) -> Request:
        clients = {one.client for one in self.waiting}
        client = min(clients, key=lambda one: (self.ended[one], self.since[one]))
        request = next(one for one in self.waiting if one.client == client)
        self.waiting.remove(request)
        self.now = self.ended[client]
        self.ended[client] += request.rows
        if any(one.client == client for one in self.waiting):
            self.again(client)
        if not self.waiting:
            self.ended, self.now = {}, 0
        return request


steps = st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abcd"), st.integers(1, 9))), max_size=120)


@given(steps)
def test_the_queue_serves_in_the_order_of_its_slow_twin(ops):
    queue, twin, waiting = FairQueue[Request](), Twin(), 0
    for number, op in enumerate(ops):
        if op is not None:
            request = Request(op[0], number, op[1])
            queue.put(request.client, request)
            twin.put(request)
            waiting += 1
        elif waiting:
            assert queue.head() == twin.pop()
            queue.pop()
            waiting -= 1
        assert len(queue) == waiting and queue.rows == sum(one.rows for one in twin.waiting)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(1, 9), min_size=30, max_size=60), min_size=2),
    st.integers(0, 120),
)
def test_of_clients_that_all_wait_none_is_further_ahead_than_a_request_of_each(demands, served):
    queue = FairQueue[Request]()
    for client, sizes in demands.items():
        for number, rows in enumerate(sizes):
            queue.put(client, Request(client, number, rows))
    got = dict.fromkeys(demands, 0)
    left = {client: len(sizes) for client, sizes in demands.items()}
    largest = max(max(sizes) for sizes in demands.values())
    for _ in range(served):
        if not all(left.values()):
            return
        request = queue.pop()
        got[request.client] += request.rows
        left[request.client] -= 1
        assert max(got.values()) - min(got.values()) <= 2 * largest


@given(steps)
def test_every_request_leaves_once_and_those_of_a_client_in_their_order(ops):
    queue, put, out = FairQueue[Request](), defaultdict(list), defaultdict(list)
    for number, op in enumerate(ops):
        if op is not None:
            put[op[0]].append(Request(op[0], number, op[1]))
            queue.put(op[0], put[op[0]][-1])
        elif len(queue):
            request = queue.pop()
            out[request.client].append(request)
    while len(queue):
        request = queue.pop()
        out[request.client].append(request)
    assert out == put and queue.rows == queue.payload_bytes == 0 and queue.head() is None


def test_a_client_that_rested_gets_no_more_than_the_others_for_its_rest():
    queue = FairQueue[Request]()
    for number in range(20):
        queue.put("steady", Request("steady", number, 1))
    for _ in range(10):
        queue.pop()
    for number in range(10):
        queue.put("rested", Request("rested", number, 1))
    assert [queue.pop().client for _ in range(6)].count("rested") == 3


def test_one_request_at_a_time_of_many_rows_does_not_beat_many_of_one_row():
    queue, rows = FairQueue[Request](), {"large": 0, "small": 0}
    for number in range(600):
        queue.put("small", Request("small", number, 1))
    queue.put("large", Request("large", 0, 64))
    for _ in range(400):
        request = queue.pop()
        rows[request.client] += request.rows
        if request.client == "large":  # asks again when it is answered: it is never among those that wait when it is served
            queue.put("large", Request("large", 0, 64))
    assert abs(rows["large"] - rows["small"]) <= 65


def test_before_says_how_many_rows_leave_first():
    queue = FairQueue[Request]()
    for number in range(100):
        queue.put("flood", Request("flood", number, 1))
    queue.put("other", Request("other", 0, 3))
    assert queue.before("other", 2) == 3 + 5  # its own three, and as many of the flood's as it would hold
    assert queue.before("flood", 1) == 100 + 2 * 3
    assert queue.before("new", 4) == 4 + 4


def test_who_holds_more_makes_room_with_its_newest():
    queue = FairQueue[Request]()
    for number in range(10):
        queue.put("flood", Request("flood", number, 1))
    [out] = queue.make_room("new", Request("new", 0, 1), 1, 0)
    assert (out.client, out.number) == ("flood", 9) and queue.rows == 9


def test_nobody_makes_room_for_who_holds_as_much():
    queue = FairQueue[Request]()
    for number in range(4):
        queue.put("a", Request("a", number, 1))
        queue.put("b", Request("b", number, 1))
    assert queue.make_room("a", Request("a", 9, 1), 1, 0) is None
    assert queue.make_room("new", Request("new", 0, 5), 5, 0) is None, "five would be more than the four that each holds"
    assert queue.rows == 8


@given(steps, st.integers(1, 12))
def test_pushing_out_leaves_all_within_the_room_and_takes_from_who_holds_most(ops, room):
    queue, held = FairQueue[Request](), defaultdict(list)
    for number, op in enumerate(ops):
        if op is None:
            if len(queue):
                one = queue.pop()
                held[one.client].remove(one)
            continue
        request = Request(op[0], number, op[1])
        out = queue.make_room(request.client, request, queue.rows + request.rows - room, 0)
        if out is None:
            continue
        for one in out:
            assert held[one.client].pop() == one, "the newest"
        queue.put(request.client, request)
        held[request.client].append(request)
        mine = sum(each.rows for each in held[request.client])
        for one in out:
            assert one.client != request.client and sum(each.rows for each in held[one.client]) >= mine
        assert queue.rows == sum(one.rows for each in held.values() for one in each) <= room
