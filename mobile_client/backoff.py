"""How long to wait before a lost server is tried again: 100 ms, doubling, 1 s at most, until patience ends."""

from __future__ import annotations

FIRST_S, MAX_S = 0.1, 1.0


class Backoff:
    """Takes times and returns times: it has no clock of its own. An answer resets it, a mere connection does not."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.reset()

    def reset(self) -> None:
        self._next_s = FIRST_S
        self._since_s: float | None = None

    def pause_s(self, now_s: float) -> float | None:
        """After a loss: the pause before the next try; None when the first loss is longer ago than the patience."""
        if self._since_s is None:
            self._since_s = now_s
        elif now_s - self._since_s > self.patience_s:
            return None
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, MAX_S)
        return pause_s
