"""A shot: one sample on its way from the camera to its answer, with its times on the node's monotonic clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mobile_client.cuts import Cut
from splitcore.telemetry.context import Context


@dataclass(slots=True, kw_only=True, eq=False)
class Shot:
    """What becomes a frame. The payload is kept until the answer is there, for it may have to be sent again."""

    id: str
    sequence: int
    sample: int
    label: int | None
    cut: Cut
    """what it was made by, for all of its sendings"""
    payload: bytes
    head: str
    """which head computed it"""
    scheduled_ns: int
    head_start_ns: int
    head_end_ns: int
    encoded_ns: int
    trace: Context | None = None
    """the root of its trace; None: it is not traced"""
    attempt: int = 0
    """sendings so far, those of a killed process before this one included"""
    sent_ns: int = 0
    outstanding: bool = False
    """sent on the stream that is open, and not answered"""
    bytes_up: int = 0
    """request messages of all its sendings"""
    message_bytes: int = 0
    """of the last one"""
    answered: asyncio.Event = field(default_factory=asyncio.Event)
