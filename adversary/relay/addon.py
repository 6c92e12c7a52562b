"""The seam between the relay and what is done to the frames: all that the rest of the adversary knows of it."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Literal, Protocol

from adversary.ledger import Kind
from splitcore.frame import Frame, Reply

Order = Literal["overtake", "keep"]
"""whether a held frame is overtaken by those behind it, or holds them too"""


@dataclass(frozen=True, slots=True)
class Forward:
    """What goes on in place of a message, and why."""

    message: bytes
    why: str
    payload_bytes: int


def foreign(frame: Frame, model: str) -> bool:
    """Whether a frame is for another model than the one that an addon knows: it passes as it is, and is in the books.

    A frame that names no model leaves it to the server, and is taken for ours.
    """
    return bool(frame.model and model) and frame.model != model


class Addon(Protocol):
    """A behaviour on the path.

    One that has `holds = False` besides is only told of what passes, while it passes: `request` is then answered at once, with
    the message as it came, and no byte of it waits. With `looks = False` as well it is not even told. Without these, a message
    is kept until `request` has said what goes on.
    """

    kind: Kind
    """what its frames are in the ledger"""
    order: Order

    def request(self, frame: Frame, message: bytes) -> Forward | Awaitable[Forward]:
        """A frame of the client on its way to the server: at once, or held until the awaitable is done."""
        ...

    async def close(self) -> None:
        """No frame will come any more; those that are held are let go."""
        ...


class Listener(Addon, Protocol):
    """An addon that looks at the answers too. The relay knows it by this method; one without it costs no look."""

    def reply(self, frame: Frame, reply: Reply) -> None:
        """What the server said to a frame, on its way to the client, which gets it whatever becomes of this."""
        ...


class Answerer(Addon, Protocol):
    """An addon that may change the answers. The relay knows it by this method."""

    def answer(self, frame: Frame, message: bytes) -> Forward | Awaitable[Forward]:
        """The serialised answer to a frame, as the method has it, on its way to the client: at once, or held."""
        ...
