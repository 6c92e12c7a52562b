"""Who is next among clients, and whose requests make room: start-time fair queueing by rows, and push-out of the longest.

Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996: a client's request starts, in virtual time, when its last one
ended or now, whichever is later; it ends so many rows later; the earliest start is next. Of two clients that both always have
requests waiting, neither gets more than a request of each ahead of the other, whatever the sizes; a round robin would favour
large ones.

A full queue holds at most a fair share of a flooder: whoever holds less than another gets the place of the other's newest
request (longest queue drop). One client alone may fill the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

IDLE = 64
"""clients without requests that are remembered beside as many as have some"""


class Sized(Protocol):
    """A request, as far as fairness is concerned."""

    @property
    def rows(self) -> int: ...

    @property
    def payload_bytes(self) -> int: ...


R = TypeVar("R", bound=Sized)


@dataclass(slots=True, eq=False)
class Flow(Generic[R]):
    """The requests of one client, oldest first."""

    start: int = 0
    """virtual time, in rows, at which the oldest starts: where the one before ended"""
    requests: deque[R] = field(default_factory=deque)
    rows: int = 0
    payload_bytes: int = 0
    listed: bool = False
    """in the heap"""


class FairQueue(Generic[R]):
    """Requests by client. Counts nothing that it does not hold."""

    def __init__(self) -> None:
        self.rows = self.payload_bytes = 0
        self._flows: dict[Hashable, Flow[R]] = {}
        self._heap: list[tuple[int, int, Flow[R]]] = []
        self._pushed = 0
        self._now = 0
        """virtual time: the start of the request that left last"""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[R]:
        """The oldest of each client."""
        return (flow.requests[0] for flow in self._flows.values() if flow.requests)

    def put(self, client: Hashable, request: R) -> None:
        flow = self._flows.get(client)
        if flow is None:
            flow = self._flows[client] = Flow(self._now)
        flow.requests.append(request)
        self._count(flow, request, 1)
        if not flow.listed:
            flow.start = max(flow.start, self._now)
            self._list(flow)

    def head(self) -> R | None:
        """Who is next."""
        while self._heap and not self._heap[0][2].requests:
            heappop(self._heap)[2].listed = False  # its requests were pushed out
        return self._heap[0][2].requests[0] if self._heap else None

    def pop(self) -> R:
        """Takes the one who is next."""
        if self.head() is None:
            raise IndexError("expected a request that waits, there is none")
        self._now, _, flow = heappop(self._heap)
        flow.listed = False
        request = flow.requests.popleft()
        self._count(flow, request, -1)
        flow.start += request.rows
        if flow.requests:
            self._list(flow)
        if not self._length:
            self._flows.clear()
            self._heap.clear()
            self._now = 0
        elif len(self._flows) > 2 * len(self._heap) + IDLE:
            # who has had its share, and no more, is as good as new
            self._flows = {key: flow for key, flow in self._flows.items() if flow.listed or flow.start > self._now}
        return request

    def before(self, client: Hashable, rows: int) -> int:
        """Rows that will leave before a request of so many rows by this client: of each other client as many as this one has
        then, or twice what waits of it now, for some that are on their way will be ahead of it."""
        own = self._flows.get(client)
        held = rows + (own.rows if own else 0)
        return sum(min(2 * flow.rows, held) for flow in self._flows.values() if flow is not own) + held - rows

    def make_room(self, client: Hashable, request: R, rows: int, payload_bytes: int) -> list[R] | None:
        """Pushes out newest requests of those who hold most, for so many rows and bytes; None: nobody holds more than the
        client would, nothing is pushed out."""
        if rows <= 0 and payload_bytes <= 0:
            return []
        taken: dict[Flow[R], int] = {}
        out: list[tuple[Flow[R], R]] = []
        for short, of in ((rows, _rows), (payload_bytes, _bytes)):
            left = short - sum(of(one) for _, one in out)
            if left <= 0:
                continue
            held = {flow: of(flow) for flow in self._flows.values() if flow.requests}
            for flow, one in out:
                held[flow] -= of(one)
            own = self._flows.get(client)
            mine = of(request) + (held.pop(own, 0) if own else 0)
            while left > 0:
                longest = max(held, key=held.__getitem__, default=None)
                if longest is None or taken.get(longest, 0) == len(longest.requests):
                    return None
                newest = longest.requests[-1 - taken.get(longest, 0)]
                if held[longest] - of(newest) < mine:
                    return None
                taken[longest] = taken.get(longest, 0) + 1
                out.append((longest, newest))
                held[longest] -= of(newest)
                left -= of(newest)
        for flow, one in out:
            flow.requests.pop()
            self._count(flow, one, -1)
        return [one for _, one in out]

    def _list(self, flow: Flow[R]) -> None:
        flow.listed = True
        self._pushed += 1
        heappush(self._heap, (flow.start, self._pushed, flow))

    def _count(self, flow: Flow[R], request: R, sign: int) -> None:
        rows, payload_bytes = sign * request.rows, sign * request.payload_bytes
        flow.rows += rows
        flow.payload_bytes += payload_bytes
        self.rows += rows
        self.payload_bytes += payload_bytes
        self._length += sign


_rows: Callable[[Sized], int] = lambda one: one.rows  # noqa: E731
_bytes: Callable[[Sized], int] = lambda one: one.payload_bytes  # noqa: E731
