"""What a request must be to enter the queue: for this model, of the latent's shape, in a codec that is known."""

from __future__ import annotations

import grpc

from edge_server.queue import Caller, Job
from edge_server.refusal import Refused, invalid
from splitcore import artefact as artefacts
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.errors import CodecError, HandshakeError
from splitcore.frame import Frame
from splitcore.wire import oip

VERSION = "1"
"""an artefact is one version of one model: its digest tells it from others"""


class Admission:
    """Checks requests against one artefact before they cost a place in the queue."""

    def __init__(self, artefact: Artefact) -> None:
        self.model = artefact.manifest.name
        self.handshake = artefact.manifest.handshake
        self.latent = artefact.latent
        # bounded without eviction: `fit` knows 32 canonical names, and a name that it refuses is not kept
        self._codecs: dict[str, Codec] = {}

    def job(self, frame: Frame, caller: Caller, received_ns: int) -> Job:
        """Raises Refused."""
        self.check_model(frame.model, frame.version)
        if frame.shape != self.latent.shape:
            raise invalid(
                f"expected latents of shape {list(self.latent.shape)} for model {self.model}, got {list(frame.shape)}: "
                "sender and server hold different artefacts"
            )
        codec = self.codec(frame.codec)
        bound, payload_bytes = codec.max_payload_bytes, 0
        for payload in frame.payloads:
            if len(payload) > bound:
                raise invalid(f"expected at most {bound} bytes a latent with codec {codec.name}, got {len(payload)}")
            payload_bytes += len(payload)
        deadline_ns = None if frame.timeout_us is None else received_ns + frame.timeout_us * 1000
        return Job(frame, codec, caller, received_ns, deadline_ns, payload_bytes)

    def codec(self, name: str) -> Codec:
        """The codec of a canonical name, its parameters frozen for the artefact's latent. Raises Refused."""
        codec = self._codecs.get(name)
        if codec is None:
            try:
                codec = self._codecs[name] = fit(name, self.latent)
            except CodecError as error:
                raise invalid(str(error)) from error
        return codec

    def check_model(self, name: str, version: str) -> None:
        """An empty name or version leaves the choice to the server. Raises Refused."""
        if name not in ("", self.model) or version not in ("", VERSION):
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                "INVALID",
                f"expected model {self.model!r} version {VERSION!r}, got {name[:100]!r} version {version[:32]!r}",
            )

    def check_handshake(self, metadata: grpc.aio.Metadata | None) -> Refused | None:
        """What to answer to a caller whose metadata name another artefact. Whoever names none is not checked."""
        for key, theirs in metadata or ():
            if key == oip.ARTEFACT_METADATA:
                try:
                    artefacts.agree(self.handshake, str(theirs), we="edge server", they="client")
                except HandshakeError as error:
                    return Refused(grpc.StatusCode.FAILED_PRECONDITION, "HANDSHAKE", str(error))
        return None
