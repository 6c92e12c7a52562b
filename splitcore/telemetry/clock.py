"""One clock for all nodes: the monotonic clock of one host, or an offset between two with its uncertainty.

Four timestamps as in RFC 5905 (NTP), section 8: offset = ((t1 - t0) + (t2 - t3)) / 2, and the true offset lies within
half the round trip ((t3 - t0) - (t2 - t1)) / 2 of it, whatever the asymmetry of the path.
"""

from __future__ import annotations

import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

now_ns = time.monotonic_ns


@dataclass(frozen=True)
class Offset:
    """What to add to a node's clock to get the collector's, and how far that may be off."""

    offset_ns: int
    uncertainty_ns: int


def host_identity() -> str:
    """Equal for two processes exactly when they share a monotonic clock; '' where that cannot be known.

    Linux: the boot and the time namespace (containers on one host share both). macOS: the boot session.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        namespace = Path("/proc/self/ns/time")
        return f"{boot.read_text().strip()}/{namespace.readlink() if namespace.exists() else 'one'}"
    if platform.system() == "Darwin":
        asked = ["sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def offset_of(t0: int, t1: int, t2: int, t3: int) -> Offset:
    """One exchange: sent t0, received t1, answered t2, back t3 (t0 and t3 on our clock, t1 and t2 on theirs), in ns."""
    return Offset(((t1 - t0) + (t2 - t3)) // 2, max(0, -(-((t3 - t0) - (t2 - t1)) // 2)))


def hull(earlier: Offset | None, later: Offset) -> Offset:
    """What holds for a whole run: the interval that covers both, so that clocks that drift apart widen the uncertainty."""
    if earlier is None:
        return later
    low = min(earlier.offset_ns - earlier.uncertainty_ns, later.offset_ns - later.uncertainty_ns)
    high = max(earlier.offset_ns + earlier.uncertainty_ns, later.offset_ns + later.uncertainty_ns)
    return Offset((low + high) // 2, -(-(high - low) // 2))


def best_of(exchanges: list[Offset]) -> Offset:
    """The exchange with the shortest round trip, which bounds the offset the tightest."""
    return min(exchanges, key=lambda exchange: exchange.uncertainty_ns)
