"""One direction of a pair of connections: from whom frames come, to whom they go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adversary.relay import frames as h2
from adversary.relay.window import Window

if TYPE_CHECKING:
    from adversary.relay.stream import Stream

ASK, ANSWER = 0, 1
"""what the client sends, what the server does"""

Out = list[bytes | memoryview]
"""frames, in their order"""


class Lane:
    """One direction of the connection."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.out: Out = []
        self.window = Window(h2.DEFAULT_WINDOW)
        self.initial = h2.DEFAULT_WINDOW
        """of a new stream, as the receiver has it"""
        self.largest = h2.DEFAULT_FRAME
        """bytes of a frame that the receiver takes"""
        self.limit = h2.DEFAULT_FRAME
        """the largest that it ever took: the sender may not know of less yet"""
        self.waiting: dict[int, Stream] = {}
        """streams with content that waits for windows"""
        self.keeping = 0
        self.next: int | None = h2.SETTINGS
        """the only type of frame that may come now"""
        self.partial: list[bytes] = []
        self.have = self.need = 0
        self.block: tuple[int, int, int, bytearray, bytearray] | None = None
        """(stream, type, flags, block, frames) of a header block that goes on in CONTINUATION frames"""
        self._early: Out = []

    def say(self, frames: Out) -> None:
        """Frames of the relay's own to the receiver: behind the sender's first SETTINGS, with which a connection begins."""
        if self.next == h2.SETTINGS:
            self._early += frames
        else:
            self.out += frames

    def settled(self) -> Out:
        """The first SETTINGS pass: what may follow them."""
        early, self._early = self._early, []
        return early
