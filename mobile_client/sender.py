"""One long-lived ModelStreamInfer: frames out through a bounded window, answers in any order, again after a loss.

Delivery to the server is at least once, the line of a frame exactly once: a frame stays in the window until its first
answer, a stream that ends before all are answered is lost, and the next one begins with everything unanswered, in order
of sequence, one attempt higher, under the same ids, each with the payload of the cut that made it. Later answers to an id
are dropped and counted.

A status INTERNAL "Internal error from Core" says nothing of the server (grpc#36066): it is one more lost stream. The
client half-closes, so a good end has no such race.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

import grpc

from mobile_client import foreign, handshake
from mobile_client.backoff import Backoff
from mobile_client.exchange import judge, request_of
from mobile_client.observed import ObservedLink
from mobile_client.policy import Chooser
from mobile_client.record import PassRecord
from mobile_client.shot import Shot
from mobile_client.timing import Watch, way_ms
from splitcore.errors import LatentbedError, SecurityError, WireError
from splitcore.frame import Reply
from splitcore.telemetry.calls import Call
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.frame_spans import lost_attempt
from splitcore.telemetry.spans import Telemetry
from splitcore.wire import oip
from splitcore.wire.channel import aio_channel, split_address
from splitcore.wire.described import EndpointConfig
from splitcore.wire.endpoint import Endpoint
from splitcore.wire.envelope import ClientStream
from splitcore.wire.form import Form
from splitcore.wire.sealing import SealError
from splitcore.wire.tls import ClientTls, not_believed

_OURS: Form = oip
_log = logging.getLogger(__name__)

HALF_CLOSE_S = 2.0
"""how long the server has to end its side once everything is answered"""
DRAINING = "UNAVAILABLE: draining"
"""the edge is stopping: not an answer, the frame is asked again when it is back"""
HANDSHAKE = f"{grpc.StatusCode.FAILED_PRECONDITION.name}:"
"""in-band, the edge's word for another artefact"""


MAX_SILENCES = 3
"""times that a frame may stay without an answer for the whole patience before the pass gives up"""


class StreamLostError(LatentbedError):
    """The stream is of no more use; what was not answered is asked again on another."""


class Sender:
    """The stream of one pass. `submit` shots, `close`, and `run` beside them all until everything is answered."""

    def __init__(
        self,
        *,
        target: str,
        chooser: Chooser,
        window: int,
        record: PassRecord,
        telemetry: Telemetry,
        patience_s: float,
        tls: ClientTls | None = None,
        access_token: str | None = None,
        seal_key: bytes | None = None,
        endpoint: EndpointConfig | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.connected = asyncio.Event()
        """set for good when hands were shaken the first time"""
        self.dropped = 0
        """answers to ids that had one already, or that were never asked"""
        self.forged = 0
        """answers on a sealed stream that the server did not seal: as if they had not come"""
        self.losses = self.silences = 0
        self._target, self._chooser, self._tls = target, chooser, tls
        self._endpoint, self._form = endpoint, _OURS
        self._manifests = [cut.manifest for cut in chooser.cuts]
        self._record, self._telemetry = record, telemetry
        self._token = () if access_token is None else (("authorization", f"Bearer {access_token}"),)
        self._seal_key = seal_key
        self._seal: ClientStream | None = None
        self._watch_ways = watch
        self._timed = watch is not None or chooser.link is not None
        self._backoff = Backoff(patience_s)
        self._room = asyncio.Semaphore(window)
        self._window: dict[str, Shot] = {}
        self._unsent: deque[Shot] = deque()
        self._closed = self._draining = False
        self._wake = asyncio.Event()
        self._channel: grpc.aio.Channel | None = None
        self._call: Call | None = None
        self._ping: asyncio.Task[None] | None = None
        self._pinged_ns = 0

    async def submit(self, shot: Shot) -> None:
        """Waits for room in the window."""
        await self._room.acquire()
        shot.attempt = self._record.earlier_attempts(shot.id)
        if self._telemetry.tracer is not None:
            shot.trace = self._telemetry.tracer.begin()
        self._window[shot.id] = shot
        self._unsent.append(shot)
        self._wake.set()

    def close(self) -> None:
        """No more shots will come."""
        self._closed = True
        self._wake.set()

    @property
    def _finished(self) -> bool:
        return self._closed and not self._window

    async def run(self) -> None:
        """Raises HandshakeError, and StreamLostError when no answer came for `patience_s` of trying."""
        try:
            while not self._finished:
                try:
                    async with aio_channel(self._target, tls=self._tls) as channel:
                        await self._stream(channel)
                except StreamLostError as lost:
                    self._lose(str(lost))
                    self.losses += 1
                    pause_s = self._backoff.pause_s(time.monotonic())
                    if pause_s is None:
                        raise StreamLostError(
                            f"expected an answer from {self._target} within {self._backoff.patience_s:g} s of trying again, "
                            f"got none; the last reason: {lost}; start the server, then post the run again: it goes on "
                            "where it stopped"
                        ) from lost
                    _log.info("%s: %s", self._record.request.run, lost)
                    await asyncio.sleep(pause_s)
        finally:
            self._lose("the pass was ended")

    def _lose(self, reason: str) -> None:
        lost = [shot for shot in self._window.values() if shot.outstanding]
        for shot in lost:
            shot.outstanding = False
            if self._telemetry.tracer is not None and shot.trace is not None:
                self._telemetry.tracer.record(lost_attempt(shot.id, shot.attempt, shot.trace, shot.sent_ns, reason))
        self._record.lost(lost, reason)
        self._unsent = deque(sorted(self._window.values(), key=lambda shot: shot.sequence))

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        """One stream from its handshake to its end. Raises StreamLostError, HandshakeError."""
        try:
            if self._endpoint is not None:
                self._form = await foreign.found(self._target, self._endpoint, self._chooser.cuts[0], self._tls)
            else:
                for manifest in self._manifests:
                    await handshake.shake_hands(channel, manifest, self._token)
            if self._chooser.link is not None:
                self._chooser.link.new_stream()
                await self._round_trip(channel, self._chooser.link)
        except (grpc.aio.AioRpcError, WireError) as error:
            if self._tls is not None and isinstance(error, grpc.aio.AioRpcError) and not_believed(error.details()):
                raise SecurityError(
                    f"expected the server at {self._target} to show a certificate of an authority in {self._tls.trust}, for "
                    f"the name {self._tls.name or split_address(self._target)[0]}, it showed another: somebody is between "
                    f"phone and server, or --tls-trust is not the server's ({_text(error)})"
                ) from error
            raise StreamLostError(f"no handshake: {_text(error)}") from error
        self.connected.set()
        self._draining = False
        self._channel = channel
        call = self._conversation(channel)
        if self._seal_key is not None:
            try:
                self._seal = await self._greet(call, self._seal_key)
            except BaseException:
                call.cancel()
                raise
        self._call = watched = self._record.counts.calls.begin(oip.path(oip.STREAM), "bidi_stream", self._target)
        reader = asyncio.create_task(self._read(call), name="answers in")
        writer = asyncio.create_task(self._write(call), name="frames out")
        watch = asyncio.create_task(self._watch(), name="patience")
        try:
            await asyncio.wait({reader, writer, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done() and writer.done() and writer.exception() is None:
                await asyncio.wait({reader}, timeout=HALF_CLOSE_S)
            for task in (reader, writer, watch):
                if task.done():
                    task.result()
            if not self._finished:
                raise StreamLostError("the server left frames unanswered after it was told the end")
        finally:
            self._channel = None
            tasks = [reader, writer, watch, *([] if self._ping is None else [self._ping])]
            for task in tasks:
                task.cancel()
            call.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            watched.end(await call.code())

    async def _greet(self, call: grpc.aio.StreamStreamCall, key: bytes) -> ClientStream:
        """The stream's seal. Raises SecurityError where whoever answers does not hold the key; StreamLostError."""
        seal = ClientStream(key)
        try:
            await call.write(seal.hello)
            answer = await asyncio.wait_for(call.read(), handshake.TIMEOUT_S)
            if answer is grpc.aio.EOF:
                raise StreamLostError("the server ended the stream before it sealed anything")
            seal.greeted(answer)
        except SealError as error:
            raise SecurityError(
                f"expected the server at {self._target} to hold the phone's key of sealed frames, whoever answers does not "
                f"({error}): give both one key, --seal-key-file, or find out who is between them"
            ) from error
        except grpc.aio.AioRpcError as error:
            raise handshake.refusal_of(error, self._manifests) or StreamLostError(_text(error)) from error
        except (TimeoutError, asyncio.InvalidStateError, WireError) as error:
            raise StreamLostError(f"no seal: {_text(error) or type(error).__name__}") from error
        return seal

    def _conversation(self, channel: grpc.aio.Channel) -> Any:
        """A stream of frames; calls, where a foreign server has none that tells answers apart."""
        if self._endpoint is None:
            said = handshake.metadata_of(self._manifests)
            return channel.stream_stream(oip.path(oip.STREAM))(metadata=(*said, *self._token))
        if isinstance(self._form, Endpoint) and self._form.dialect == "triton":
            return channel.stream_stream(oip.path(oip.STREAM))(metadata=tuple(self._token))
        return foreign.Calls(channel, self._form, tuple(self._token))

    async def _watch(self) -> None:
        """Raises StreamLostError when a frame is out for longer than the patience: others' answers do not hide a lost one.

        After MAX_SILENCES of them in a pass it raises LatentbedError: that frame will not be answered.
        """
        patience_s = self._backoff.patience_s
        while True:
            await asyncio.sleep(min(1.0, patience_s / 4))
            oldest = min((shot for shot in self._window.values() if shot.outstanding), key=lambda s: s.sent_ns, default=None)
            if oldest is None or now_ns() - oldest.sent_ns < patience_s * 1e9:
                continue
            self.silences += 1
            text = f"expected an answer to {oldest.id} within {patience_s:g} s, got none in attempt {oldest.attempt}"
            if self.silences >= MAX_SILENCES:
                raise LatentbedError(
                    f"{text}, after {self.silences} such silences: the server or the way to it swallows frames"
                )
            raise StreamLostError(text)

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        """The only writer. Returns when it has half-closed."""
        try:
            while not (self._finished or self._draining):
                if not self._unsent:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                shot = self._unsent.popleft()
                shot.attempt += 1
                message = request_of(
                    shot, self._record.request.deadline_ms, timed=self._timed, seal=self._seal,
                    form=self._form,
                )  # fmt: skip
                shot.message_bytes = len(message)
                shot.bytes_up += len(message)
                self._record.sent(shot)
                shot.outstanding, shot.sent_ns = True, now_ns()
                await call.write(message)
                if self._call is not None:
                    self._call.put(len(message))
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            # the status is the reader's to tell, it has read what came before it
            _log.debug("%s: writing ended: %s", self._target, error)
            await asyncio.sleep(HALF_CLOSE_S)
            raise StreamLostError(f"could not write: {_text(error)}") from error

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        """Returns when the server has ended its side and nothing is missing."""
        try:
            initial = await call.initial_metadata()
            for manifest in self._manifests:
                handshake.compare(initial, manifest)
            while (message := await call.read()) is not grpc.aio.EOF:
                if self._call is not None:
                    self._call.got(len(message))
                self._take(message, now_ns())
        except grpc.aio.AioRpcError as error:
            if self._finished:
                return
            refusal = handshake.refusal_of(error, self._manifests)
            raise refusal or StreamLostError(_text(error)) from error
        except WireError as error:
            raise StreamLostError(f"an answer that is none: {error}") from error
        if not self._finished:
            raise StreamLostError("the server is draining" if self._draining else "the server ended the stream")

    def _take(self, message: bytes, answered_ns: int) -> None:
        try:
            reply = self._form.unpack_stream_reply(message) if self._seal is None else self._seal.open(message)
        except SealError:
            self.forged += 1
            return
        except WireError as error:
            if self._seal is not None:
                self.forged += 1
                return
            if error.frame_id not in self._window:
                raise
            # whose answer it is can be read: asking again would bring the same
            reply = Reply(id=error.frame_id, error=str(error))
        if reply.error is not None and reply.error.startswith(HANDSHAKE):
            raise handshake.refused(reply.error, self._manifests)
        shot = self._window.get(reply.id)
        if shot is None and not reply.id and reply.error:
            # stock servers leave the id out of an error; with one frame in flight it can only be that one's
            if len(self._window) > 1:
                raise StreamLostError(f"an error that names no frame: {reply.error}")
            shot = next(iter(self._window.values()), None)
        if shot is None or not shot.outstanding:
            self.dropped += 1
            return
        if reply.error is not None and reply.error.startswith(DRAINING):
            self._draining = True
            self._wake.set()
            return
        self._answer(shot, reply, answered_ns)

    def _answer(self, shot: Shot, reply: Reply, answered_ns: int) -> None:
        self._backoff.reset()
        predicted, error = judge(reply, len(shot.cut.manifest.classes))
        if error is None:
            self._chooser.answered(shot, reply.edge_ms, answered_ns)
        timing = None
        if self._watch_ways is not None:
            timing = self._watch_ways.answered(way_ms(shot.sent_ns, answered_ns, reply.edge_ms), shot.message_bytes)
        self._record.answered(shot, predicted, error, answered_ns, timing)
        self._telemetry.span(
            shot.id,
            shot.attempt,
            "" if shot.trace is None else str(shot.trace),
            scheduled=shot.scheduled_ns,
            head_start=shot.head_start_ns,
            head_end=shot.head_end_ns,
            encoded=shot.encoded_ns,
            sent=shot.sent_ns,
            answered=answered_ns,
        )
        del self._window[shot.id]
        shot.outstanding = False
        self._room.release()
        shot.answered.set()
        self._measure_round_trip()
        if self._finished:
            self._wake.set()

    def _measure_round_trip(self) -> None:
        """Beside the stream, when no frame is out: behind one it would measure that one's bytes."""
        link, channel = self._chooser.link, self._channel
        if link is None or channel is None or self._window or (self._ping is not None and not self._ping.done()):
            return
        if now_ns() - self._pinged_ns >= self._chooser.ping_ms * 1e6:
            self._ping = asyncio.create_task(self._round_trip(channel, link), name="round trip")

    async def _round_trip(self, channel: grpc.aio.Channel, link: ObservedLink) -> None:
        self._pinged_ns = now_ns()
        try:
            await channel.unary_unary(oip.path(oip.LIVE))(b"", timeout=handshake.TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:  # a refusal is a round trip too
                return
        link.round_trip((now_ns() - self._pinged_ns) / 1e6)


def _text(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"[:300]
    return str(error)[:300]
