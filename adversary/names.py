"""Names for the frames of clients that are none of ours: in the books each of their messages is a frame of its own.

A stock client gives no id, or the same one every time, and never says that it sends something again. So its frames get a name
in the books, `run/stock-<process>/<n>`, and the message that passes keeps what the client wrote.
"""

from __future__ import annotations

import itertools
import secrets
from dataclasses import replace

from splitcore.frame import Frame, FrameId


class Names:
    """For one process."""

    def __init__(self) -> None:
        self.run = "idle"
        """of the behaviour that is in force"""
        self._client = f"stock-{secrets.token_hex(3)}"
        self._next = itertools.count()

    def booked(self, frame: Frame) -> Frame:
        """The frame under the name that it has in the books."""
        if frame.numbered and frame.id:
            return frame
        return replace(frame, id=str(FrameId(self.run, self._client, next(self._next))), attempt=1)
