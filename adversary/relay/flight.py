"""The frames of one call that are at the server, found again by their answers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adversary.relay.passage import Passage


class Flight:
    """By what their client calls them, and of one name the oldest; by their order alone where answers do not say."""

    __slots__ = ("_correlates", "_out")

    def __init__(self, correlates: bool) -> None:
        self._correlates = correlates
        self._out: dict[str, deque[Passage]] = {}

    def __bool__(self) -> bool:
        return bool(self._out)

    def add(self, passage: Passage) -> Passage | None:
        """Gives the one that it takes the place of: the same frame, sent again."""
        same = self._out.setdefault(passage.wire_id if self._correlates else "", deque())
        before = same.popleft() if same and self._correlates and passage.frame.numbered else None
        same.append(passage)
        return before

    def take(self, wire_id: str) -> Passage | None:
        """The one that an answer with this id is for."""
        key = wire_id if self._correlates else ""
        same = self._out.get(key)
        if same is None:
            return None
        passage = same.popleft()
        if not same:
            del self._out[key]
        return passage

    def only(self) -> Passage:
        """Of a call that has one frame."""
        _, [passage] = self._out.popitem()
        return passage

    def drain(self) -> list[Passage]:
        """All that are left."""
        out, self._out = self._out, {}
        return [passage for same in out.values() for passage in same]
