"""What a detector is: it sees the latents of a model's batch before the tail does, and says which of them are no client's.

A detector sees what a server really has: the latents, who asked by the name that the server gives it, and when. It does not
see what is there for the books alone (frame ids, attempts, `lb_origin`): one that looked at these would measure nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from splitcore.latent import F32, LatentSpec

Action: TypeAlias = Literal["reject", "flag"]
"""what becomes of a detected row: it is answered `rejected` and not computed, or computed and only written down"""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a batch: its rows lie one after the other, requests in their order."""

    rows: int
    client: str
    """who asked, as far as the server knows: the peer's host, or the identity that it proved"""
    received_ns: int
    """when it arrived, on the server's monotonic clock"""


class Detector(Protocol):
    """Watches one model. Called on the tail's thread, batch after batch in the order of their computation; it keeps what it
    has seen, within bounds of its own."""

    def look(self, latents: F32, requests: Sequence[Asked]) -> Mapping[int, str]:
        """The rows of `latents` [rows, *shape] that are detected, each with the reason in words."""
        ...

    def forget(self) -> None:
        """Forgets what it has seen of queries, as if the server had just started."""
        ...


class DetectorConfig(Protocol):
    """A detector's settings: a frozen dataclass whose `kind` is its name in scenarios, log and metrics."""

    @property
    def kind(self) -> str: ...

    @property
    def action(self) -> Action: ...

    def for_model(self, latent: LatentSpec) -> Detector:
        """One for a model with such latents. Raises ValueError where it cannot be."""
        ...
