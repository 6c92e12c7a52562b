"""Sample to payload: the head in ONNX Runtime and the codec, on a thread of their own, one image at a time.

One at a time also when many wait: a latent must not depend on what happened to be computed beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from mobile_client.cuts import Cut
from mobile_client.shot import Shot
from splitcore.data.source import Samples
from splitcore.frame import FrameId
from splitcore.telemetry.clock import now_ns


class Arrival(NamedTuple):
    """A frame that is due."""

    sequence: int
    scheduled_ns: int
    cut: Cut
    """what it goes through"""


class Camera:
    """Makes the shots of one pass."""

    def __init__(self, samples: Samples, run: str, client: str, thread: ThreadPoolExecutor) -> None:
        self._samples = samples
        self._run, self._client, self._thread = run, client, thread

    def id_of(self, sequence: int) -> str:
        return str(FrameId(self._run, self._client, sequence))

    async def warm_up(self, cut: Cut) -> None:
        """The first inference allocates; no frame shall pay for it."""
        await self.shots([Arrival(0, 0, cut)])

    async def shots(self, arrivals: Sequence[Arrival]) -> list[Shot]:
        """One shot an arrival, none before its time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._shoot_all, arrivals)

    def _shoot_all(self, arrivals: Sequence[Arrival]) -> list[Shot]:
        return [self._shoot(arrival) for arrival in arrivals]

    def _shoot(self, arrival: Arrival) -> Shot:
        early_ns = arrival.scheduled_ns - now_ns()
        if early_ns > 0:
            # a thread's sleep is good to some 60 us, an event loop's timer to a millisecond
            time.sleep(early_ns / 1e9)
        sample = self._samples.sample_of(arrival.sequence)
        head_start_ns = now_ns()
        latents = arrival.cut.head.from_uint8(self._samples.images[sample : sample + 1])
        head_end_ns = now_ns()
        [payload] = arrival.cut.codec.encode(latents)
        return Shot(
            id=self.id_of(arrival.sequence),
            sequence=arrival.sequence,
            sample=sample,
            label=self._samples.label_of(sample),
            cut=arrival.cut,
            payload=payload,
            head=arrival.cut.head.name,
            scheduled_ns=arrival.scheduled_ns,
            head_start_ns=head_start_ns,
            head_end_ns=head_end_ns,
            encoded_ns=now_ns(),
        )
