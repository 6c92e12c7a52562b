"""Signal to noise: how far a latent that was computed otherwise is from the one that was meant."""

from __future__ import annotations

import math

MOST_DB = 200.0
"""what is given where nothing differs: no float32 is nearer"""


def snr_db(power: float, noise: float) -> float:
    """10 log10(power / noise), of sums of squares."""
    if noise <= 0:
        return MOST_DB
    return min(MOST_DB, 10 * math.log10(max(power, 1e-300) / noise))
