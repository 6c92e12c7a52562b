"""How a head can be run on this phone, what each way took, and which to recommend: never a slower head, never a worse one."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime
from pydantic import BaseModel, ConfigDict

from splitcore.artefact import FLOAT32, Artefact, HeadName, Int8Head

FASTER = 1.05
"""times that a head in int8 must be as fast as float32 in the same rounds: below it is noise"""
WORTH_A_CORE = 1.1
"""times that more threads, or spinning ones, must be as fast: codec and network want the cores too"""
WORSE_DB = 3.0
"""decibels that latents may be worse here than where the head was made: some CPUs saturate uint8 times int8"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Setting(_Strict):
    """One way to run a head."""

    head: HeadName = FLOAT32
    threads: int = 1
    spinning: bool = False
    """idle threads burn their core, so that they start at once"""

    def __str__(self) -> str:
        return f"{self.head}, {self.threads} thread{'s' * (self.threads > 1)}{', spinning' * self.spinning}"


class Row(_Strict):
    """What one setting took."""

    setting: Setting
    median_ms: float
    ratio: float
    """times as fast as float32 with the same threads: the median of the rounds' ratios"""
    snr_db: float
    """of its latents here, against float32's"""


class Decision(_Strict):
    """What a phone measured and chose."""

    setting: Setting
    refused: dict[HeadName, str]
    """heads that are not recommended, and why"""
    rows: tuple[Row, ...]
    max_points_lost: float
    made_on: dict[str, Any]

    def holds(self, artefact: Artefact, max_points_lost: float) -> bool:
        """Whether it was made for this artefact on a device like this one."""
        return (self.made_on, self.max_points_lost) == (device(artefact), max_points_lost)


def device(artefact: Artefact) -> dict[str, Any]:
    """What a decision depends on."""
    return {
        "artefact": artefact.manifest.handshake,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": cores(),
        "onnxruntime": str(onnxruntime.__version__),
    }


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settings(heads: Sequence[HeadName], most: int) -> list[Setting]:
    """Each head with 1, 2, 4, ... up to `most` threads; one thread has no others that could spin."""
    threads = sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})
    ways = [(k, spinning) for k in threads for spinning in (False, True) if k > 1 or not spinning]
    return [Setting(head=head, threads=k, spinning=spinning) for k, spinning in ways for head in heads]


def choose(
    rows: Sequence[Row], heads: Mapping[HeadName, Int8Head], max_points_lost: float
) -> tuple[Setting, dict[HeadName, str]]:
    """The plainest setting that is nearly the fastest, of those that are allowed; and the heads that are not, with reasons."""
    of_float32 = [row for row in rows if row.setting.head == FLOAT32]
    fastest_ms = min(row.median_ms for row in of_float32)
    allowed, refused = list(of_float32), dict[HeadName, str]()
    for name, made in heads.items():
        own = [row for row in rows if row.setting.head == name]
        snr_db = min(row.snr_db for row in own)
        faster = [row for row in own if row.ratio >= FASTER and row.median_ms <= fastest_ms]
        if made.points_lost > max_points_lost:
            refused[name] = f"it loses {made.points_lost:.2f} points of accuracy, more than {max_points_lost:g}"
        elif snr_db < made.snr_db - WORSE_DB:
            refused[name] = f"its latents have {snr_db:.1f} dB here, {made.snr_db:.1f} where it was made: this CPU saturates"
        elif not faster:
            best_ms = min(row.median_ms for row in own)
            refused[name] = (
                f"it is not {FASTER:g} times as fast as float32: {best_ms:.3g} ms at best, float32 {fastest_ms:.3g} ms"
            )
        allowed += faster if name not in refused else []
    limit_ms = WORTH_A_CORE * min(row.median_ms for row in allowed)
    plainest = min((row.setting.threads, row.setting.spinning) for row in allowed if row.median_ms <= limit_ms)
    plain = [row for row in allowed if (row.setting.threads, row.setting.spinning) == plainest]
    return min(plain, key=lambda row: row.median_ms).setting, refused
