"""The phone: heads that are loaded once, and passes of samples through it, one after another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from mobile_client.camera import Arrival, Camera
from mobile_client.cuts import Cut, Cuts
from mobile_client.exchange import request_of
from mobile_client.load import arrivals_ns
from mobile_client.passes import Fixed, PassRequest, Replan
from mobile_client.policy import Chooser, FixedChooser, Replanner
from mobile_client.record import PassRecord
from mobile_client.sender import Sender
from mobile_client.settings import Setting
from mobile_client.timing import Watch
from splitcore.data.source import open_source
from splitcore.errors import ScenarioError
from splitcore.link import shaped
from splitcore.plan import CutProfile
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.spans import Telemetry
from splitcore.wire.channel import split_address
from splitcore.wire.described import EndpointConfig
from splitcore.wire.tls import ClientTls

_log = logging.getLogger(__name__)

AT_ONCE = 8
"""shots made in one turn of the head's thread, when so many are due: they are beside the window in memory"""
COARSE_NS = 3_000_000
PROFILE_SHOTS = 12
"""shots of its own samples from which the phone learns what a cut costs, after one that is not counted"""


@dataclass(frozen=True, kw_only=True)
class PhoneConfig:
    """Everything of the command line that a pass needs."""

    artefact: Path
    """of the cut that a pass uses unless told otherwise"""
    target: str
    others: tuple[Path, ...] = ()
    """artefacts of further cuts that a pass may use"""
    endpoint: EndpointConfig | None = None
    """the model of a server that is none of ours, which serves the tail; None: an edge server"""
    tls: ClientTls | None = None
    """how the server at `target` is reached; None: in clear text"""
    access_token: str | None = field(default=None, repr=False)
    """what the phone says of itself to a server that knows its clients by tokens"""
    seal_key: bytes | None = field(default=None, repr=False)
    """of sealed frames; None: they go as they are"""
    node: str = "client"
    data_dir: Path | None = None
    setting: Setting = field(default_factory=Setting)
    """which head runs, and how"""
    patience_s: float = 60.0
    """how long the phone tries to reach a server that does not answer"""
    direct: str | None = None
    """where the frames of a pass go that says `direct`"""


class Phone:
    """Raises ArtefactError where the artefact is none."""

    def __init__(self, config: PhoneConfig, telemetry: Telemetry) -> None:
        self.config, self.telemetry = config, telemetry
        self._cuts = Cuts((config.artefact, *config.others), config.setting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="head")

    async def run(self, record: PassRecord) -> None:
        """The frames of a pass that have no line yet. Raises LatentbedError, OSError."""
        request, config = record.request, self.config
        remaining = record.remaining()
        if not remaining:
            return
        if config.endpoint is not None and not isinstance(request.policy, Fixed):
            raise ScenarioError("expected policy fixed before a foreign server, got replan: it does not say how long it took")
        if config.endpoint is not None and config.seal_key is not None:
            raise ScenarioError("expected frames in clear before a foreign server, got a key to seal them: it has none")
        watch = None if request.timing is None else Watch.of(request.timing, record.folder.parent)
        cuts = self._cuts.for_pass(request.policy, request.codec)
        loop = asyncio.get_running_loop()
        samples = await loop.run_in_executor(self._thread, open_source, request.source, self._cuts.first, config.data_dir)
        camera = Camera(samples, request.run, config.node, self._thread)
        chooser = await _chooser(record, cuts, camera)
        async with contextlib.AsyncExitStack() as path:
            target, tls = self._target(request), config.tls
            if request.link is not None:
                relay = await path.enter_async_context(shaped(target, request.link, request.seed))
                # the server's certificate has the name by which it is known, not that of the link's near end
                tls = None if tls is None else tls.named(split_address(target)[0])
                target = relay.address
            sender = Sender(
                target=target,
                tls=tls,
                access_token=config.access_token,
                seal_key=config.seal_key,
                endpoint=config.endpoint,
                chooser=chooser,
                window=request.window,
                record=record,
                telemetry=self.telemetry,
                patience_s=config.patience_s,
                watch=watch,
            )
            arrivals = arrivals_ns(request.load, request.count, request.seed)

            def cut_of(sequence: int) -> Cut:
                """The present one; a frame that a process before this one sent keeps its own."""
                earlier = record.earlier_cut(camera.id_of(sequence))
                return next((cut for cut in chooser.cuts if cut.name == earlier), chooser.current)

            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(sender.run(), name="sender")
                    group.create_task(_feed(camera, sender, remaining, arrivals, cut_of), name="feed")
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None
            finally:
                _log.info("%s: %d streams lost, %d answers dropped", request.run, sender.losses, sender.dropped)
                if sender.forged:
                    _log.warning("%s: %d answers that the server did not seal were dropped", request.run, sender.forged)

    def _target(self, request: PassRequest) -> str:
        if not request.direct:
            return self.config.target
        if self.config.direct is None:
            raise ScenarioError(f"run {request.run} says direct: expected a phone that was started with --direct host:port")
        return self.config.direct

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


async def _chooser(record: PassRecord, cuts: list[Cut], camera: Camera) -> Chooser:
    """What the pass's policy makes of the cuts; their heads are warm then."""
    policy = record.request.policy
    if not isinstance(policy, Replan):
        await camera.warm_up(cuts[0])
        return FixedChooser(cuts[0])
    profiles = [await _profile(cut, camera, record.request.deadline_ms) for cut in cuts]
    return Replanner(policy, cuts, profiles, record.planned)


async def _profile(cut: Cut, camera: Camera, deadline_ms: float | None) -> CutProfile:
    """Medians over the phone's own samples. The time at the edge comes with the replies."""
    await camera.warm_up(cut)
    shots = await camera.shots([Arrival(sequence, 0, cut) for sequence in range(PROFILE_SHOTS)])
    return CutProfile(
        name=cut.name,
        head_ms=median((shot.head_end_ns - shot.head_start_ns) / 1e6 for shot in shots),
        encode_ms=median((shot.encoded_ns - shot.head_end_ns) / 1e6 for shot in shots),
        bytes_up=fmean(len(request_of(shot, deadline_ms, timed=True)) for shot in shots),
        edge_ms=0.0,
    )


async def _feed(
    camera: Camera,
    sender: Sender,
    remaining: list[int],
    arrivals_ns: NDArray[np.int64] | None,
    cut_of: Callable[[int], Cut],
) -> None:
    """Shots at their times; the clock starts when the server was reached for the first time."""
    await sender.connected.wait()
    if arrivals_ns is None:
        for sequence in remaining:
            [shot] = await camera.shots([Arrival(sequence, now_ns(), cut_of(sequence))])
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
            due = [Arrival(remaining[at], first_ns, cut_of(remaining[at]))]
            for sequence in remaining[at + 1 : at + AT_ONCE]:
                scheduled_ns = start_ns + int(arrivals_ns[sequence])
                if scheduled_ns > now_ns():
                    break
                due.append(Arrival(sequence, scheduled_ns, cut_of(sequence)))
            at += len(due)
            for shot in await camera.shots(due):
                await sender.submit(shot)
    sender.close()
