"""What a conversation with a server looks like on the wire: ours (`oip`, a module of these functions) or a foreign one's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from splitcore.frame import Frame, Reply


class Form(Protocol):
    """Frames to messages and back. What cannot be read raises WireError."""

    def pack_request(self, frame: Frame) -> bytes: ...

    def unpack_request(self, message: bytes) -> Frame: ...

    def split(self, frame: Frame) -> list[Frame]:
        """A frame of k rows as k of one row each, named `<id>#<row>`."""
        ...

    def replace_payloads(self, message: bytes, payloads: Sequence[bytes | memoryview]) -> bytes:
        """The same message with as many other latents; all else stays."""
        ...

    def unpack_reply(self, message: bytes) -> Reply: ...

    def unpack_stream_reply(self, message: bytes) -> Reply: ...
