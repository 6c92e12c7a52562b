"""The ledger of one flow-control window (RFC 9113, section 5.2): what the sender was granted against what the receiver takes.

Let H be what the receiver granted and F what was forwarded to it, G what the sender was granted and R what came from it. Bytes
that an addon keeps are on loan: they take nothing from the sender, so that a held frame delays no other. So the sender's window
is to be the receiver's, less what is ready and waits for it:

    G - R  =  H - F - queued

Where nothing was changed both sides are equal at every moment, and the receiver's WINDOW_UPDATE frames pass as they are. What
was granted cannot be taken back: where the sender has more than it should (`skew`), the receiver's next grants are kept.
Pure arithmetic; a ledger is kept for each direction of each stream, and of the connection.
"""

from __future__ import annotations

MAX_WINDOW = (1 << 31) - 1


class Window:
    """One direction of one stream, or of the connection."""

    __slots__ = ("allowance", "queued", "skew")

    def __init__(self, initial: int) -> None:
        self.allowance = initial
        """H - F: bytes that the receiver would still take; below 0 when it took some back by its settings"""
        self.skew = 0
        """(G - R) - (H - F): bytes that the sender may send above that"""
        self.queued = 0
        """bytes that wait for the receiver's window"""

    @property
    def even(self) -> bool:
        """Whether sender and receiver have the same window, and nothing waits: then every grant passes as it is."""
        return not (self.skew or self.queued)

    def fits(self, n: int) -> bool:
        """Whether n bytes that the sender was entitled to send may go on at once."""
        return self.skew <= 0 or n <= self.allowance

    def passed(self, n: int) -> None:
        """n bytes of the sender went on as they were."""
        self.allowance -= n

    def received(self, n: int) -> None:
        """n bytes of the sender were taken from it, whatever becomes of them."""
        self.skew -= n

    def sent(self, n: int) -> None:
        """n bytes went to the receiver."""
        self.allowance -= n
        self.skew += n

    def granted(self, n: int) -> None:
        """The receiver's WINDOW_UPDATE."""
        self.allowance += n
        self.skew -= n

    def resized(self, n: int) -> None:
        """The receiver's SETTINGS_INITIAL_WINDOW_SIZE changed by n, and the sender is told so by the same frame."""
        self.allowance += n

    def due(self, kept: int = 0, floor: int = 0) -> int:
        """What the sender is to be granted now, by a WINDOW_UPDATE of this size; 0: none.

        `kept` bytes are of messages that are not whole yet: they are lent only when `floor` bytes would not fit else.
        """
        n = -self.queued - self.skew
        if kept and self.allowance + self.skew >= floor:
            n -= kept
        if n <= 0:
            return 0
        self.skew += n
        return n
