"""In how many sections a search for a boundary cuts its interval.

Bisection asks the fewest rows, more sections need fewer round trips. Chosen once, when the first answers are there, from what
a round trip and a row cost on this link and this server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CHOICES = (2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Pace:
    round_trip_s: float
    """of a request without rows"""
    row_s: float
    """of a row at the server"""
    sessions: int
    """that share each round"""

    def round_s(self, rows: int) -> float:
        """Of a round in which every session asks so many rows: the link's time, or the server's where that is more."""
        return max(self.round_trip_s + rows * self.row_s, self.sessions * rows * self.row_s)

    @property
    def sections(self) -> int:
        """m that takes the least time for a bit of the search: log2(m) of them come with a round of m - 1 rows."""
        return min(CHOICES, key=lambda m: self.round_s(m - 1) / math.log2(m))
