"""When frames arrive: MLPerf's load patterns (Reddi et al., "MLPerf Inference Benchmark", ISCA 2020, section III-C).

Arrivals are numbers, fixed before the first frame is sent. A phone that is behind keeps no queue of frames: it takes the
next number when it has room, and latency counts from that number all the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mobile_client.passes import Load, Offline, Server, SingleStream


def arrivals_ns(load: Load, count: int, seed: int) -> NDArray[np.int64] | None:
    """Arrival of each frame after the start of the pass, int64 [count]; None: when the one before is answered."""
    match load:
        case SingleStream():
            return None
        case Server():
            return poisson_ns(load.rate_hz, count, np.random.default_rng(seed))
        case Offline():
            return np.zeros(count, np.int64)


def poisson_ns(rate_hz: float, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The first `count` arrivals of a Poisson process: sums of exponential gaps with mean 1 / rate."""
    return (np.cumsum(rng.exponential(1 / rate_hz, count)) * 1e9).astype(np.int64)
