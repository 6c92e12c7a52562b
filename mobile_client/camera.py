"""Sample to payload: the head in ONNX Runtime and the codec, on a thread of their own, one image at a time.

One at a time also when many wait: a latent must not depend on what happened to be computed beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from mobile_client.shot import Shot
from splitcore.codec import Codec
from splitcore.data.source import Samples
from splitcore.frame import FrameId
from splitcore.head import Head
from splitcore.telemetry.clock import now_ns


class Arrival(NamedTuple):
    """A frame that is due."""

    sequence: int
    scheduled_ns: int


class Camera:
    """Makes the shots of one pass."""

    def __init__(self, head: Head, codec: Codec, samples: Samples, run: str, client: str, thread: ThreadPoolExecutor) -> None:
        self._head, self._codec, self._samples = head, codec, samples
        self._run, self._client, self._thread = run, client, thread

    async def warm_up(self) -> None:
        """The first inference allocates; no frame shall pay for it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._shoot, Arrival(0, 0))

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
        latents = self._head.from_uint8(self._samples.images[sample : sample + 1])
        head_end_ns = now_ns()
        [payload] = self._codec.encode(latents)
        return Shot(
            id=str(FrameId(self._run, self._client, arrival.sequence)),
            sequence=arrival.sequence,
            sample=sample,
            label=self._samples.label_of(sample),
            payload=payload,
            head=self._head.name,
            scheduled_ns=arrival.scheduled_ns,
            head_start_ns=head_start_ns,
            head_end_ns=head_end_ns,
            encoded_ns=now_ns(),
        )
