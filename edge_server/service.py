"""The Open Inference Protocol v2 over grpc.aio, with Triton's extensions: raw bytes in, raw bytes out.

Every call starts with our handshakes as initial metadata, one a version of a model, so that a client can compare before it
sends a frame; ModelInfer, whose frame is there already, ends with them. A client that sends its own and holds another artefact
is refused: in a unary call by status, in a stream by an in-band answer to each frame, because a stream that the server ends
while the client writes shows INTERNAL there instead of the reason (grpc#36066). Who asks for it by Triton's metadata
`triton_grpc_error: true` gets the status all the same.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc

from edge_server.access import Access, Who
from edge_server.batcher import Batcher
from edge_server.describe import Describe
from edge_server.metrics import Metrics
from edge_server.models import Holder, Models
from edge_server.queue import Job, Outcome
from edge_server.refusal import Refused, draining, invalid
from edge_server.repository import Repository
from edge_server.seals import NotOpened, Seals, unauthenticated
from edge_server.stream import Stream
from splitcore.errors import WireError
from splitcore.frame import Reply
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import catalogue, oip

STATUS_ERRORS = "triton_grpc_error"
"""metadata of a stream that shall end with a status at its first error"""

Context: TypeAlias = "grpc.aio.ServicerContext"
Asked: TypeAlias = dict[str, Any]
Answer: TypeAlias = Callable[[Asked, Holder, Context], Awaitable[Mapping[str, Any]]]


class Unary:
    """Who waits for the answer of one ModelInfer."""

    def __init__(self, identity: str = "") -> None:
        self.gone = False
        self.identity = identity
        self.trace = ""
        self.future: asyncio.Future[tuple[Job, Outcome]] = asyncio.get_running_loop().create_future()

    def answer(self, job: Job, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result((job, outcome))


class InferenceService:
    """The methods of `inference.GRPCInferenceService` for the models there are."""

    def __init__(
        self,
        models: Models,
        batcher: Batcher,
        metrics: Metrics,
        telemetry: Telemetry,
        *,
        describe: Describe,
        repository: Repository,
        token: str,
        access: Access | None = None,
        seals: Seals | None = None,
    ) -> None:
        """`token`: what changes want, as on the control plane. `access`: who may ask what; None: everybody everything.
        `seals`: None where frames come as they are."""
        self.models, self.describe, self.repository = models, describe, repository
        self.ready = False
        self.leaving = False
        """told to end: not ready any more, but requests are still taken while load balancers look elsewhere"""
        self.draining = False
        """and now they are refused"""
        self._batcher, self._metrics, self._telemetry = batcher, metrics, telemetry
        self._streams: set[Stream] = set()
        self._bearer = f"Bearer {token}".encode()
        self.access = access or Access()
        self._seals = seals

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods under the protocol's public path; no serialisers: messages stay bytes."""
        unary: dict[str, Callable[[bytes, Context], Awaitable[bytes]]] = {
            oip.LIVE: self.server_live,
            oip.READY: self.server_ready,
            oip.INFER: self.model_infer,
        }
        answers: dict[str, Answer] = {
            oip.SERVER_METADATA: self._server_metadata,
            oip.MODEL_READY: self._model_ready,
            oip.MODEL_METADATA: self._model_metadata,
            oip.CONFIG: self._model_config,
            oip.STATISTICS: self._model_statistics,
            oip.INDEX: self._index,
            oip.LOAD: self._load,
            oip.UNLOAD: self._unload,
        }
        unary |= {method: self._answering(method, answer) for method, answer in answers.items()}
        methods = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in unary.items()}
        methods[oip.STREAM] = grpc.stream_stream_rpc_method_handler(self.model_stream_infer)
        return grpc.method_handlers_generic_handler(oip.SERVICE, methods)

    async def server_live(self, message: bytes, context: Context) -> bytes:
        await context.send_initial_metadata(self.models.handshakes)
        return oip.pack_flag(oip.LIVE, True)

    async def server_ready(self, message: bytes, context: Context) -> bytes:
        await context.send_initial_metadata(self.models.handshakes)
        return oip.pack_flag(oip.READY, self.accepting)

    async def model_infer(self, message: bytes, context: Context) -> bytes:
        received_ns = now_ns()
        # as initial metadata they would be an operation of their own, a fifth of what a small request costs
        context.set_trailing_metadata(self.models.handshakes)
        holder, who = Holder(self.models, context.invocation_metadata()), self.access.of(context)
        pack: Callable[[Reply], bytes] = oip.pack_reply
        job: Job | None
        outcome: Outcome
        try:
            if self._seals is not None:
                if (hello := self._seals.greet(message)) is not None:
                    return hello
                message, pack = self._seals.open(message)
            job, outcome = await self._infer(message, holder, who, received_ns, context.time_remaining())
        except NotOpened as error:
            job, (_, outcome) = None, self._not_opened(error)
        if isinstance(outcome, Refused):
            await context.abort(outcome.code, outcome.text, outcome.trailers)
        assert isinstance(outcome, Reply) and job is not None
        reply = pack(outcome)
        self.replied(job)
        return reply

    async def infer(
        self, message: bytes, holder: Holder, received_ns: int, remaining_s: float | None = None, *, who: Who | None = None
    ) -> tuple[Job | None, Outcome]:
        """One request that is not sealed, and its answer; no job where it never was in the queue. Who gives up cancels.

        `who`: who asks; None: somebody who said nothing of himself.
        """
        if self._seals is not None and self._seals.required:
            return None, self._not_opened(NotOpened(*unauthenticated()))[1]
        return await self._infer(message, holder, who or self.access.bearer(None), received_ns, remaining_s)

    async def _infer(
        self, message: bytes, holder: Holder, who: Who, received_ns: int, remaining_s: float | None
    ) -> tuple[Job | None, Outcome]:
        caller = Unary(who.identity)
        caller.trace = holder.trace
        submitted = self._submit(message, caller, received_ns, holder, who, remaining_s)
        if isinstance(submitted, tuple):
            return None, submitted[1]
        try:
            return await caller.future
        except asyncio.CancelledError:
            caller.gone = True
            raise

    async def model_stream_infer(self, requests: object, context: Context) -> None:
        await context.send_initial_metadata(self.models.handshakes)
        metadata = context.invocation_metadata()
        holder, who = Holder(self.models, metadata), self.access.of(context)
        by_status = any(key == STATUS_ERRORS and value == "true" for key, value in metadata or ())
        seal = None if self._seals is None else self._seals.stream()
        pack = oip.pack_stream_reply if seal is None else seal.pack
        in_order = self._batcher.settings.preserve_ordering
        stream = Stream(context, self.replied, pack=pack, identity=who.identity, by_status=by_status, in_order=in_order)

        def take(message: bytes) -> None:
            received_ns = now_ns()
            try:
                if seal is not None:
                    if (hello := seal.greet(message)) is not None:
                        stream.say(hello)
                        return
                    message = seal.open(message)
                submitted = self._submit(message, stream, received_ns, holder, who, None)
            except NotOpened as error:
                submitted = self._not_opened(error)
            if isinstance(submitted, Job):
                stream.submitted(submitted)
            else:
                stream.refuse(*submitted)

        self._streams.add(stream)
        self._metrics.open_streams += 1
        try:
            await stream.run(take)
        finally:
            self._metrics.open_streams -= 1
            self._streams.discard(stream)
        if stream.failure is not None:
            await context.abort(stream.failure.code, stream.failure.text)

    @property
    def accepting(self) -> bool:
        """Whether new requests should be sent here."""
        return self.ready and not (self.leaving or self.draining) and self._batcher.alive

    @property
    def why_not(self) -> str:
        """Why nothing is accepted; empty when it is."""
        return "" if self.accepting else "draining" if self.leaving or self.draining else "the model is not loaded"

    async def written(self) -> None:
        """Returns when every open stream has written what it owes."""
        for stream in tuple(self._streams):
            await stream.written()

    def replied(self, job: Job) -> None:
        """An answer has left: the times of a client's own frames go to telemetry, an adversary's queries do not."""
        frame, now = job.frame, now_ns()
        if not job.tail_done_ns:
            return
        self._batcher.left(job)
        self.models.replied(job, now)
        theirs = frame.origin == "client"
        trace = frame.traceparent or job.caller.trace
        if theirs or trace:
            self._telemetry.span(
                frame.id,
                frame.attempt,
                trace or None,
                theirs,
                received=job.received_ns,
                dequeued=job.dequeued_ns,
                decoded=job.decoded_ns,
                tail_done=job.tail_done_ns,
                replied=now,
            )

    def _not_opened(self, error: NotOpened) -> tuple[str, Refused]:
        self.models.counts("", "").refused(error.refusal.reason)
        return error.frame_id, error.refusal

    def _submit(
        self, message: bytes, caller: Unary | Stream, received_ns: int, holder: Holder, who: Who, remaining_s: float | None
    ) -> Job | tuple[str, Refused]:
        """The request as it is in the queue, else (its id, why it is not)."""
        frame_id = model = version = ""
        try:
            frame = oip.unpack_request(message)
            frame_id, model, version = frame.id, frame.model, frame.version
            who.check("infer")
            if self.draining:
                holder.check()
                raise draining()
            model_asked = holder.find(model, version)
            who.check("infer", model_asked.name)
            job = model_asked.admission.job(frame, caller, received_ns)
            who.spend(frame.rows)
            if remaining_s is not None:
                until_ns = received_ns + int(remaining_s * 1e9)
                job.deadline_ns = until_ns if job.deadline_ns is None else min(until_ns, job.deadline_ns)
            self._batcher.submit(job)
        except WireError as error:
            frame_id, refusal = error.frame_id, invalid(str(error))
        except Refused as error:
            # its traceback holds this call's frame, and with it the whole message, in a cycle that only the collector ends
            refusal = error.with_traceback(None)
        else:
            return job
        self.models.counts(model, version).refused(refusal.reason)
        return frame_id, refusal

    def _answering(self, method: str, answer: Answer) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """A method that says something of the server: initial metadata, then the answer or the refusal."""

        async def call(message: bytes, context: Context) -> bytes:
            await context.send_initial_metadata(self.models.handshakes)
            holder = Holder(self.models, context.invocation_metadata())
            try:
                return catalogue.pack(method, await answer(catalogue.unpack(method, message), holder, context))
            except WireError as error:
                refusal = invalid(str(error))
            except Refused as error:
                refusal = error.with_traceback(None)
            await context.abort(refusal.code, refusal.text)
            raise AssertionError("abort raises")

        return call

    async def _server_metadata(self, asked: Asked, holder: Holder, context: Context) -> Mapping[str, Any]:
        return self.describe.server()

    async def _model_ready(self, asked: Asked, holder: Holder, context: Context) -> Mapping[str, Any]:
        return {"ready": self.model_ready(asked["name"], asked["version"], holder)}

    async def _model_metadata(self, asked: Asked, holder: Holder, context: Context) -> Mapping[str, Any]:
        return dataclasses.asdict(self.describe.model(holder.find(asked["name"], asked["version"])))

    async def _model_config(self, asked: Asked, holder: Holder, context: Context) -> Mapping[str, Any]:
        return {"config": self.describe.config(holder.find(asked["name"], asked["version"]))}

    async def _model_statistics(self, asked: Asked, holder: Holder, context: Context) -> Mapping[str, Any]:
        return self.describe.statistics(asked["name"], asked["version"])

    async def _index(self, asked: Asked, holder: Holder, context: Context) -> Mapping[str, Any]:
        return {"models": self.describe.index(ready=asked["ready"])}

    async def _load(self, asked: Asked, holder: Holder, context: Context) -> Mapping[str, Any]:
        self._authorise(context)
        await self.change(oip.LOAD, asked["model_name"], asked["repository_name"], asked["parameters"])
        return {}

    async def _unload(self, asked: Asked, holder: Holder, context: Context) -> Mapping[str, Any]:
        self._authorise(context)
        await self.change(oip.UNLOAD, asked["model_name"], asked["repository_name"], asked["parameters"])
        return {}

    def model_ready(self, name: str, version: str, holder: Holder) -> bool:
        """A model that is not served is not ready, as Triton has it. Raises Refused for another artefact alone."""
        holder.check()
        try:
            holder.find(name, version)
        except Refused:
            return False
        return self.accepting

    async def change(self, method: str, name: str, repository: str, parameters: Mapping[str, Any]) -> None:
        """Loads or unloads a model, for whoever may. Raises Refused."""
        # tritonclient says `unload_dependents: False` with every unload
        unknown = sorted(set(parameters) - {"unload_dependents"})
        if repository or unknown:
            raise invalid(
                f"expected no repository name and no parameters of {method}, got {repository[:64]!r} and {unknown[:8]}: "
                "what is loaded lies in this server's folders, as it is there"
            )
        if self.draining:
            raise draining()
        await (self.repository.load(name) if method == oip.LOAD else self.repository.unload(name))

    def _authorise(self, context: Context) -> None:
        """Raises Refused."""
        for key, value in context.invocation_metadata() or ():
            said = value if isinstance(value, bytes) else value.encode()
            if key == "authorization" and hmac.compare_digest(said, self._bearer):
                return
        if self.access.needed:
            self.access.of(context).check("repository")
            return
        raise Refused(
            grpc.StatusCode.UNAUTHENTICATED,
            "INVALID",
            "expected metadata `authorization: Bearer <the token in this node's token file>`: changes want it",
        )
