"""The Open Inference Protocol v2 over grpc.aio, with Triton's ModelStreamInfer: raw bytes in, raw bytes out.

Every call starts with our handshakes as initial metadata, one a model, so that a client can compare before it sends a
frame. A client that sends its own and holds another artefact is refused: in a unary call by status, in a stream by an
in-band answer to each frame, because a stream that the server ends while the client writes shows INTERNAL there instead of
the reason (grpc#36066).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc

from edge_server.admission import VERSION
from edge_server.batcher import Batcher
from edge_server.metrics import Metrics
from edge_server.models import Model, Models
from edge_server.queue import Job, Outcome
from edge_server.refusal import Refused, draining, invalid
from edge_server.stream import Stream
from splitcore.errors import WireError
from splitcore.frame import Reply
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import oip

EXTENSIONS = ("binary_tensor_data", "parameters")

Context: TypeAlias = "grpc.aio.ServicerContext"


class Unary:
    """Who waits for the answer of one ModelInfer."""

    def __init__(self) -> None:
        self.gone = False
        self.future: asyncio.Future[tuple[Job, Outcome]] = asyncio.get_running_loop().create_future()

    def answer(self, job: Job, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result((job, outcome))


class InferenceService:
    """The methods of `inference.GRPCInferenceService` for the models there are."""

    def __init__(
        self, models: Models, batcher: Batcher, metrics: Metrics, telemetry: Telemetry, *, labels_only: bool = False
    ) -> None:
        self.models = models
        self.ready = False
        self.draining = False
        self._batcher, self._metrics, self._telemetry = batcher, metrics, telemetry
        self._streams: set[Stream] = set()
        self._labels_only = labels_only
        self._server = oip.pack_server_metadata("latentbed", importlib.metadata.version("latentbed"), EXTENSIONS)

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods under the protocol's public path; no serialisers: messages stay bytes."""
        unary: dict[str, Callable[[bytes, Context], Awaitable[bytes]]] = {
            oip.LIVE: self.server_live,
            oip.READY: self.server_ready,
            oip.MODEL_READY: self.model_ready,
            oip.SERVER_METADATA: self.server_metadata,
            oip.MODEL_METADATA: self.model_metadata,
            oip.INFER: self.model_infer,
        }
        methods = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in unary.items()}
        methods[oip.STREAM] = grpc.stream_stream_rpc_method_handler(self.model_stream_infer)
        return grpc.method_handlers_generic_handler(oip.SERVICE, methods)

    async def server_live(self, message: bytes, context: Context) -> bytes:
        await context.send_initial_metadata(self.models.handshakes)
        return oip.pack_flag(oip.LIVE, True)

    async def server_ready(self, message: bytes, context: Context) -> bytes:
        await context.send_initial_metadata(self.models.handshakes)
        return oip.pack_flag(oip.READY, self.accepting)

    async def server_metadata(self, message: bytes, context: Context) -> bytes:
        await context.send_initial_metadata(self.models.handshakes)
        return self._server

    async def model_ready(self, message: bytes, context: Context) -> bytes:
        await self._model_of(message, context)
        return oip.pack_flag(oip.MODEL_READY, self.accepting)

    async def model_metadata(self, message: bytes, context: Context) -> bytes:
        model = await self._model_of(message, context)
        return oip.pack_model_metadata(_described(model, self._labels_only))

    async def model_infer(self, message: bytes, context: Context) -> bytes:
        received_ns = now_ns()
        await context.send_initial_metadata(self.models.handshakes)
        mismatch = self.models.check_handshake(context.invocation_metadata())
        caller = Unary()
        refusal = self._submit(message, caller, received_ns, mismatch, context.time_remaining())
        if refusal is not None:
            await context.abort(refusal[1].code, refusal[1].text)
        try:
            job, outcome = await caller.future
        except asyncio.CancelledError:
            caller.gone = True
            raise
        if isinstance(outcome, Refused):
            await context.abort(outcome.code, outcome.text)
        assert isinstance(outcome, Reply)
        reply = oip.pack_reply(outcome)
        self.replied(job)
        return reply

    async def model_stream_infer(self, requests: object, context: Context) -> None:
        await context.send_initial_metadata(self.models.handshakes)
        mismatch = self.models.check_handshake(context.invocation_metadata())
        stream = Stream(context, self.replied)

        def take(message: bytes) -> None:
            refusal = self._submit(message, stream, now_ns(), mismatch, None)
            if refusal is None:
                stream.submitted()
            else:
                stream.refuse(*refusal)

        self._streams.add(stream)
        self._metrics.open_streams += 1
        try:
            await stream.run(take)
        finally:
            self._metrics.open_streams -= 1
            self._streams.discard(stream)

    @property
    def accepting(self) -> bool:
        """Whether a request that came now would be computed."""
        return self.ready and not self.draining and self._batcher.alive

    async def written(self) -> None:
        """Returns when every open stream has written what it owes."""
        for stream in tuple(self._streams):
            await stream.written()

    def replied(self, job: Job) -> None:
        """An answer has left: the times of a client's own frames go to telemetry, an adversary's queries do not."""
        frame = job.frame
        if frame.origin == "client" and job.tail_done_ns:
            self._telemetry.span(
                frame.id,
                frame.attempt,
                received=job.received_ns,
                dequeued=job.dequeued_ns,
                decoded=job.decoded_ns,
                tail_done=job.tail_done_ns,
                replied=now_ns(),
            )

    def _submit(
        self,
        message: bytes,
        caller: Unary | Stream,
        received_ns: int,
        mismatch: Refused | None,
        remaining_s: float | None,
    ) -> tuple[str, Refused] | None:
        """None when the request is in the queue, else (its id, why not)."""
        frame_id = model = ""
        try:
            frame = oip.unpack_request(message)
            frame_id, model = frame.id, frame.model
            if mismatch is not None:
                raise mismatch
            if self.draining:
                raise draining()
            job = self.models.find(frame.model, frame.version).admission.job(frame, caller, received_ns)
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
            return None
        self.models.counts(model).refused(refusal.reason)
        return frame_id, refusal

    async def _model_of(self, message: bytes, context: Context) -> Model:
        """Initial metadata, then the checks of a call that names a model, and that model."""
        await context.send_initial_metadata(self.models.handshakes)
        refusal = self.models.check_handshake(context.invocation_metadata())
        try:
            model = self.models.find(*oip.unpack_model_name(message))
        except WireError as error:
            refusal = refusal or invalid(str(error))
        except Refused as error:
            refusal = refusal or error
        if refusal is not None:
            await context.abort(refusal.code, refusal.text)
        return model


def _described(model: Model, labels_only: bool) -> oip.ModelMetadata:
    manifest = model.artefact.manifest
    outputs = (
        oip.TensorMetadata(oip.SCORES, "FP32", (-1, len(manifest.classes))),
        oip.TensorMetadata(oip.LABEL, "INT64", (-1,)),
    )
    return oip.ModelMetadata(
        name=manifest.name,
        versions=(VERSION,),
        platform="latentbed_torch",
        inputs=(oip.TensorMetadata(oip.INPUT, "FP32", (-1, *manifest.latent.shape)),),
        outputs=outputs[1:] if labels_only else outputs,
    )
