"""Who is whose parent: W3C trace context, https://www.w3.org/TR/trace-context/, per call in metadata, per frame on streams.

The id of a span that a node makes of a frame is derived from the context that came with it and the span's name. So the relay
can tell the edge who its parent is before the relay's own span has ended, and no node keeps a table of frames for it.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

METADATA = "traceparent"
"""call metadata of the context"""
_FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Context:
    """A span's place: which trace, which span. Only sampled ones are made here."""

    trace_id: str
    """32 hexadecimal digits"""
    span_id: str
    """16 hexadecimal digits"""

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"

    def child(self, name: str) -> Context:
        """The place of the span of that name below this one."""
        digest = hashlib.blake2b(f"{self.trace_id}{self.span_id}{name}".encode(), digest_size=8).hexdigest()
        return Context(self.trace_id, digest)


def new_context() -> Context:
    """The root of a trace."""
    return Context(os.urandom(16).hex(), os.urandom(8).hex())


def sampled(traceparent: str) -> Context | None:
    """The sender's span; None where there is none, it is not to be traced, or malformed, which W3C wants ignored."""
    match = _FORM.fullmatch(traceparent)
    if match is None or not int(match[3], 16) & 1:
        return None
    return Context(match[1], match[2])
