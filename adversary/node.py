"""The adversary's process: relay, campaign and control plane on one event loop, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

from adversary.addons.attacker import Attacker
from adversary.behaviour import PassBehaviour, Workshop
from adversary.campaign import STACK_MIB
from adversary.control import build_control
from adversary.ledger import Ledger
from adversary.live import live_adversary
from adversary.metrics import Deeds
from adversary.relay import Addon, Relay
from adversary.relay.interception import Interception
from adversary.targets import check_target
from splitcore.artefact import Artefact
from splitcore.control import load_token, serving
from splitcore.errors import ScenarioError
from splitcore.node import begin, joined, keep_memory, on_end, tell_ready
from splitcore.telemetry.spans import Telemetry
from splitcore.telemetry.tracing import TraceConfig, Tracer
from splitcore.wire.channel import split_address, sync_channel
from splitcore.wire.described import EndpointConfig
from splitcore.wire.endpoint import Endpoint
from splitcore.wire.look import look
from splitcore.wire.tls import ClientTls, ServerTls

PATIENCE_S = 30.0
"""for a server that is not there yet, or has not loaded its model"""


class Adversary:
    """What the process holds, and the one thing that changes while it runs: the behaviour."""

    def __init__(self, relay: Relay, workshop: Workshop, ledger: Ledger, deeds: Deeds, tracer: Tracer | None = None) -> None:
        self.relay = relay
        self.workshop = workshop
        self.ledger = ledger
        self.behaviour: object = PassBehaviour()
        self._changing = asyncio.Lock()
        self._retired: Counter[str] = Counter()
        """of workers that are gone"""
        self.deeds, self.tracer = deeds, tracer
        deeds.books, deeds.unaccounted, deeds.held_now = lambda: self.counts, lambda: relay.unaccounted, lambda: self.held

    @property
    def held(self) -> int:
        """Frames held now."""
        return self.relay.addon.held if isinstance(self.relay.addon, Attacker) else 0

    @property
    def counts(self) -> Counter[str]:
        """Of every ledger there is."""
        addon = self.relay.addon
        working = addon.engine.counts if isinstance(addon, Attacker) else Counter()
        return self.ledger.counts + self._retired + working

    async def behave(self, behaviour: object) -> None:
        """Frames that arrive from now on meet the new behaviour; those held go on as soon as their sessions end.

        A run that is put again ends first, because two engines cannot have one record: meanwhile frames pass.
        """
        async with self._changing:
            if getattr(behaviour, "run", None) == getattr(self.behaviour, "run", None):
                await self._change(await self.workshop.addon(PassBehaviour()), PassBehaviour())
            await self._change(await self.workshop.addon(behaviour), behaviour)  # type: ignore[arg-type]

    async def _change(self, addon: Addon, behaviour: object) -> None:
        before, self.relay.addon, self.behaviour = self.relay.addon, addon, behaviour
        self.relay.books.names.run = getattr(behaviour, "run", "idle")
        await before.close()
        if isinstance(before, Attacker):
            self._retired += before.engine.counts


async def _known(
    artefact: Path | None, endpoint: EndpointConfig | None, upstream: str, tls: ClientTls | None
) -> Artefact | Endpoint:
    """What there is to know of the model: all, from its artefact, or what its server says of it."""
    if (artefact is None) == (endpoint is None):
        raise ScenarioError("expected --artefact, of a model of ours, or --model, one of the server behind")
    if artefact is not None:
        return Artefact(artefact)
    assert endpoint is not None

    def ask() -> Endpoint:
        with sync_channel(upstream, tls=tls) as channel:
            return look(channel, endpoint, patience_s=PATIENCE_S)

    return await asyncio.to_thread(ask)


async def run(
    *, artefact: Path | None, endpoint: EndpointConfig | None = None,
    listen: str, upstream: str, control: str, state: Path, token_file: Path, names: frozenset[str],
    telemetry: str | None, trace: TraceConfig | None, node: str, allow: frozenset[str], data_dir: Path | None,
    trust: frozenset[str] = frozenset(), upstream_tls: ClientTls | None = None, control_tls: ServerTls | None = None,
    intercepting: Interception | None = None,
) -> None:  # fmt: skip
    """Serves until SIGTERM or SIGINT. Raises LatentbedError, OSError, ValueError before it is ready."""
    check_target(upstream, allow)
    begin(state)
    keep_memory(STACK_MIB)
    stop = asyncio.Event()
    on_end(stop.set)
    with contextlib.ExitStack() as closing:
        ledger = Ledger(state / "queries.jsonl")
        closing.callback(ledger.close)
        deeds = Deeds()
        spans = Telemetry(node, telemetry, trace)
        spans.heard = deeds.heard
        closing.callback(spans.close)
        known = await _known(artefact, endpoint, upstream, upstream_tls)
        workshop = Workshop(
            known, upstream, state, ledger, data_dir, trusted=trust, tls=upstream_tls, overheard=lambda: relay.overheard,
            tracer=spans.tracer, deeds=deeds,
        )  # fmt: skip
        correlates = known.correlates if isinstance(known, Endpoint) else True
        relay = Relay(
            upstream, await workshop.addon(PassBehaviour()), ledger, spans, tls=upstream_tls, intercepting=intercepting,
            form=workshop.victim.form, correlates=correlates, calls=deeds.server,
        )  # fmt: skip
        adversary = Adversary(relay, workshop, ledger, deeds, spans.tracer)
        live = live_adversary(adversary, deeds)
        app = build_control(adversary, live, token=load_token(token_file), names=names)
        host, port = split_address(control)
        grpc_port = await relay.start(listen)
        try:
            async with live.history.kept(), serving(app, host, port, tls=control_tls) as control_port:
                here, there = joined(split_address(listen)[0], grpc_port), joined(host, control_port)
                tell_ready(state, control=there, grpc=here)
                scheme = "http" if control_tls is None else "https"
                print(f"adversary: grpc {here}, control {scheme}://{there}, upstream {upstream}", flush=True)
                await stop.wait()
                await adversary.behave(PassBehaviour())
        finally:
            await relay.close(grace_s=2)
