"""The edge server as one process on one event loop: how it starts, and in which order it ends.

Start: listen on the control port, then on the data port, load and warm the tails, then SERVING, then the ready file.
End (Triton's order, and Envoy's): readiness false and health NOT_SERVING; a delay in which load balancers notice, and all is
served as before; new requests are answered `draining`; what is queued is computed and its answers are written; clients get a
grace to half-close; the log closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from edge_server.access import Access, Interceptor, load_tokens
from edge_server.admission import Admission
from edge_server.batch import BatchComputer
from edge_server.batcher import Batcher
from edge_server.choose_tail import Where, choose, record
from edge_server.control import edge_app
from edge_server.describe import Describe
from edge_server.detectors import AnyDetector
from edge_server.detectors.panel import Panel, built
from edge_server.live import live_edge
from edge_server.log import ServerLog
from edge_server.metrics import Counts, Metrics
from edge_server.models import Model, Models
from edge_server.policy import BatchSettings
from edge_server.reflection import add_reflection
from edge_server.repository import Repository, Shelf, VersionPolicy
from edge_server.seals import Seals
from edge_server.service import InferenceService
from edge_server.tail import default_threads
from edge_server.trial import TailKind
from splitcore.artefact import Artefact
from splitcore.control import load_token, serving
from splitcore.errors import ArtefactError, SecurityError
from splitcore.live.serve import serve_live
from splitcore.node import begin, joined, keep_memory, on_end, tell_ready
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.spans import Telemetry
from splitcore.telemetry.tracing import TraceConfig
from splitcore.wire import oip
from splitcore.wire.channel import MAX_SERVER_CALLS, add_port, server_options, split_address
from splitcore.wire.server import aio_server
from splitcore.wire.tls import ServerTls

LOG_FILE, TAIL_FILE = "server.jsonl", "tail.json"
SWITCH_S = 200e-6
"""how long one thread keeps the interpreter from another. Python's 5 ms are as much as a batch of a ResNet-20 takes: its tail
then waited 2 ms a batch to put in the next one (measured: 1.27 times the rows a second with this; a LeNet's are the same)"""
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, kw_only=True)
class EdgeConfig:
    """Everything that the command line decides."""

    state: Path
    artefact: Path | None = None
    """of the model that is meant by whoever names none; None: the repository's first. DIR, or DIR@2 as its version 2"""
    others: tuple[Path, ...] = ()
    """artefacts of further models and versions"""
    repositories: tuple[Path, ...] = ()
    """folders with NAME/VERSION/manifest.json"""
    version_policy: str = "all"
    """`all`, `latest` or `latest:N`: which of a model's versions are served"""
    listen: str = "127.0.0.1:0"
    control: str = "127.0.0.1:0"
    token_file: Path | None = None
    names: frozenset[str] = frozenset()
    telemetry: str | None = None
    trace: TraceConfig | None = None
    node: str = "edge"
    device: str = "auto"
    threads: int = 0
    """0: half the cores"""
    tail: TailKind = "plain"
    """which form of the tails; auto, the command line's default: the fastest, by measurement at load"""
    labels_only: bool = False
    tls: ServerTls | None = None
    """of the data plane; None: clear text"""
    control_tls: ServerTls | None = None
    tokens: Path | None = None
    """who may ask what; None: everybody"""
    seal_key: bytes | None = field(default=None, repr=False)
    """of sealed frames; None: nothing is sealed"""
    require_seal: bool = False
    trust: tuple[str, ...] = ()
    """modules or files whose code may build an artefact's tail, or be a detector"""
    detectors: tuple[AnyDetector, ...] = ()
    """what watches every model's batches before the tail, each model apart"""
    batching: BatchSettings = field(default_factory=BatchSettings)
    drain_delay_s: float = 0.0
    """how long the server goes on taking requests after it said NOT_SERVING, so that load balancers stop sending any"""
    grace_s: float = 3.0
    """how long clients have to half-close their streams at the end"""


class EdgeServer:
    """`start`, then wait for whatever ends it, then `drain`."""

    def __init__(self, config: EdgeConfig) -> None:
        self.config = config
        self.address = self.control = ""
        self._rim = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Returns when clients are served. Raises LatentbedError, OSError, ValueError; then nothing is left open."""
        async with contextlib.AsyncExitStack() as rim:
            await self._start(rim)
            self._rim = rim.pop_all()

    async def _start(self, rim: contextlib.AsyncExitStack) -> None:
        config = self.config
        begin(config.state)
        keep_memory()
        policy = VersionPolicy.parse(config.version_policy)
        given = () if config.artefact is None else (config.artefact, *config.others)
        shelf = Shelf(given, config.repositories, policy)
        names = shelf.names()
        if not names:
            where = " or ".join(map(str, config.repositories)) or "no --artefact and no --repository"
            raise ArtefactError(f"expected a model to serve, found none in {where}: give one with --artefact DIR")
        token = load_token(config.token_file or config.state / "token")
        self._log = log = ServerLog(config.state / LOG_FILE)
        rim.callback(log.close)
        telemetry = Telemetry(config.node, config.telemetry, config.trace)
        rim.callback(telemetry.close)
        self._threads = threads = config.threads or default_threads()
        self._models = models = Models(names[0])
        self.metrics = Metrics(models.counted, self.pending)
        if telemetry.tracer is not None:
            self.metrics.registry.register(telemetry.tracer)
        self.batcher = Batcher(config.batching, models.compute, on_done=models.computed)
        rim.push_async_callback(self.batcher.close)
        self._health = health_aio.HealthServicer()
        repository = Repository(shelf, models, self.batcher, self._model, self._changed)
        rim.push_async_callback(repository.close)
        describe = Describe(models, config.batching, policy, labels_only=config.labels_only)
        access = Access(None if config.tokens is None else load_tokens(config.tokens), certificates=config.tls is not None)
        self.service = InferenceService(
            models,
            self.batcher,
            self.metrics,
            telemetry,
            describe=describe,
            repository=repository,
            token=token,
            access=access,
            seals=_seals(config),
        )
        app = edge_app(
            service=self.service,
            metrics=self.metrics,
            threads=threads,
            settings=config.batching,
            labels_only=config.labels_only,
            log=log.path,
            token=token,
            names=config.names,
        )
        live = live_edge(self.metrics, models, lambda: self.batcher.pending, lambda: self.service.why_not)
        serve_live(app, live)
        await rim.enter_async_context(live.history.kept())
        host, port = split_address(config.control)
        self.control = joined(host, await rim.enter_async_context(serving(app, host, port, tls=config.control_tls)))
        await self._set_health(NOT_SERVING)
        calls = self.metrics.calls
        self._server = aio_server(
            server_options(),
            max_calls=MAX_SERVER_CALLS,
            interceptors=() if config.tokens is None else (Interceptor(access, calls),),
            watch=calls,
        )
        self._server.add_generic_rpc_handlers((self.service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server)
        host, _ = split_address(config.listen)
        try:
            port = add_port(self._server, config.listen, config.tls)
        except RuntimeError as error:
            # only a server that was started can be closed in order
            await self._server.start()
            await self._server.stop(None)
            raise OSError(f"cannot listen on {config.listen}: {error}; choose another --listen") from error
        self.address = joined(host, port)
        await self._server.start()
        rim.push_async_callback(self._server.stop, None)
        await self.batcher.start()
        await repository.start()
        self.service.ready = True
        await self._set_health(SERVING)
        tell_ready(config.state, control=self.control, grpc=self.address)

    def pending(self, name: str, version: str = "") -> tuple[int, int]:
        """(requests, rows) that wait for one version of a model; without one, for the newest."""
        versions = self._models.versions(name)
        model = versions.get(version) if version else next(iter(versions.values()), None)
        return (0, 0) if model is None else self.batcher.pending_for(model.key)

    def _model(self, artefact: Artefact, version: str, key: str) -> Model:
        """On a loader's thread. Raises ArtefactError; ValueError for a device that is not there."""
        config, size = self.config, self.config.batching.max_batch_size
        name = artefact.manifest.name
        where = Where(artefact, config.device, self._threads, size, config.trust, config.state / "tails")
        tail, trials = choose(config.tail, where)
        computer = BatchComputer(
            tail,
            self._log.of(name, version),
            model=name,
            version=version,
            max_batch_size=size,
            labels_only=config.labels_only,
            now_ns=now_ns,
            panel=Panel(built(config.detectors, config.trust), artefact.latent) if config.detectors else None,
        )
        return Model(
            artefact=artefact,
            version=version,
            key=key,
            tail=tail,
            computer=computer,
            admission=Admission(artefact, key, labels_only=config.labels_only),
            trials=trials,
            counts=self._models.counted.get((name, version)) or Counts(),
        )

    async def _changed(self) -> None:
        """The table of models is another one."""
        record(
            self.config.state / TAIL_FILE,
            {f"{model.name}/{model.version}": model.trials for model in self._models},
            self._threads,
        )
        self._log.with_model = self._log.with_model or len(self._models.counted) > 1
        if not self.service.draining:
            for name in {name for name, _ in self._models.states}:
                await self._health.set(name, SERVING if self._models.versions(name) else NOT_SERVING)

    async def drain(self) -> None:
        """Answers what was accepted, refuses what comes now, and closes everything."""
        grace_s = self.config.grace_s
        self.service.leaving = True
        await self._set_health(NOT_SERVING)
        await asyncio.sleep(self.config.drain_delay_s)
        self.service.draining = True
        await self.batcher.flush()
        with contextlib.suppress(TimeoutError):
            # a client that does not read its answers is not waited for
            await asyncio.wait_for(self.service.written(), grace_s)
        await self._server.stop(grace_s)
        await self._rim.aclose()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", oip.SERVICE, *{name for name, _ in self._models.states}):
            await self._health.set(name, status)


def _seals(config: EdgeConfig) -> Seals | None:
    """Raises SecurityError."""
    if config.seal_key is None:
        if config.require_seal:
            raise SecurityError("expected a key to require sealed frames: give --seal-key-file, or LATENTBED_SEAL_KEY")
        return None
    return Seals(config.seal_key, required=config.require_seal)


async def serve(config: EdgeConfig) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    on_end(stop.set)
    sys.setswitchinterval(SWITCH_S)
    server = EdgeServer(config)
    await server.start()
    scheme = "http" if config.control_tls is None else "https"
    print(f"edge server: grpc {server.address}, control {scheme}://{server.control}", flush=True)
    await stop.wait()
    await server.drain()
