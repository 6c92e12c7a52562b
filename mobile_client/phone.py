"""The phone: a head that is loaded once, and passes of samples through it, one after another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobile_client.camera import Arrival, Camera
from mobile_client.load import arrivals_ns
from mobile_client.record import PassRecord
from mobile_client.sender import Sender
from mobile_client.settings import Setting
from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.data.source import open_source
from splitcore.head import Head
from splitcore.link import profile_of, shaped
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.spans import Telemetry

_log = logging.getLogger(__name__)

AT_ONCE = 8
"""shots made in one turn of the head's thread, when so many are due: they are beside the window in memory"""
COARSE_NS = 3_000_000


@dataclass(frozen=True, kw_only=True)
class PhoneConfig:
    """Everything of the command line that a pass needs."""

    artefact: Path
    target: str
    node: str = "client"
    data_dir: Path | None = None
    setting: Setting = field(default_factory=Setting)
    """which head runs, and how"""
    patience_s: float = 60.0
    """how long the phone tries to reach a server that does not answer"""


class Phone:
    """Raises ArtefactError where the artefact is none."""

    def __init__(self, config: PhoneConfig, telemetry: Telemetry) -> None:
        self.config, self.telemetry = config, telemetry
        self.artefact = Artefact(config.artefact)
        self._head = Head(self.artefact, config.setting.threads, name=config.setting.head, spinning=config.setting.spinning)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="head")

    async def run(self, record: PassRecord) -> None:
        """The frames of a pass that have no line yet. Raises LatentbedError, OSError."""
        request, config = record.request, self.config
        remaining = record.remaining()
        if not remaining:
            return
        codec = fit(request.codec or self.artefact.manifest.codec, self.artefact.latent)
        loop = asyncio.get_running_loop()
        samples = await loop.run_in_executor(self._thread, open_source, request.source, self.artefact, config.data_dir)
        camera = Camera(self._head, codec, samples, request.run, config.node, self._thread)
        await camera.warm_up()
        async with contextlib.AsyncExitStack() as path:
            target = config.target
            if request.link is not None:
                relay = await path.enter_async_context(shaped(target, profile_of(request.link), request.seed))
                target = relay.address
            sender = Sender(
                target=target,
                manifest=self.artefact.manifest,
                codec=codec.name,
                window=request.window,
                record=record,
                telemetry=self.telemetry,
                patience_s=config.patience_s,
            )
            arrivals = arrivals_ns(request.load, request.count, request.seed)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(sender.run(), name="sender")
                    group.create_task(_feed(camera, sender, remaining, arrivals), name="feed")
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            finally:
                _log.info("%s: %d streams lost, %d answers dropped", request.run, sender.losses, sender.dropped)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


async def _feed(camera: Camera, sender: Sender, remaining: list[int], arrivals_ns: NDArray[np.int64] | None) -> None:
    """Shots at their times; the clock starts when the server was reached for the first time."""
    await sender.connected.wait()
    if arrivals_ns is None:
        for sequence in remaining:
            [shot] = await camera.shots([Arrival(sequence, now_ns())])
            await sender.submit(shot)
            await shot.answered.wait()
    else:
        # a resumed pass goes on with the gaps that were drawn for it, from now
        start_ns = now_ns() - int(arrivals_ns[remaining[0]])
        at = 0
        while at < len(remaining):
            first_ns = start_ns + int(arrivals_ns[remaining[at]])
            ahead_ns = first_ns - now_ns() - COARSE_NS
            if ahead_ns > 0:
                await asyncio.sleep(ahead_ns / 1e9)
            due = [Arrival(remaining[at], first_ns)]
            for sequence in remaining[at + 1 : at + AT_ONCE]:
                scheduled_ns = start_ns + int(arrivals_ns[sequence])
                if scheduled_ns > now_ns():
                    break
                due.append(Arrival(sequence, scheduled_ns))
            at += len(due)
            for shot in await camera.shots(due):
                await sender.submit(shot)
    sender.close()
