"""What a request must be to enter a model's queue: of the latent's shape, in a codec that is known, for our outputs."""

from __future__ import annotations

from edge_server.queue import Caller, Job
from edge_server.refusal import invalid
from splitcore.artefact import Artefact
from splitcore.codec import Codec, fit
from splitcore.errors import CodecError
from splitcore.frame import Frame
from splitcore.wire.oip import INPUT, LABEL, SCORES


class Admission:
    """Checks requests against one artefact before they cost a place in the queue."""

    def __init__(self, artefact: Artefact, key: str, *, labels_only: bool = False) -> None:
        """`key`: names the model's queue."""
        self.model = artefact.manifest.name
        self.key = key
        self.latent = artefact.latent
        self.outputs = (LABEL,) if labels_only else (SCORES, LABEL)
        # bounded without eviction: `fit` knows 32 canonical names, and a name that it refuses is not kept
        self._codecs: dict[str, Codec] = {}

    def job(self, frame: Frame, caller: Caller, received_ns: int) -> Job:
        """Of a frame for this model. Raises Refused."""
        if frame.tensor != INPUT:
            raise invalid(f"expected the input {INPUT!r} of model {self.model}, got {frame.tensor[:64]!r}")
        for name in frame.outputs:
            if name not in self.outputs:
                have = " and ".join(map(repr, self.outputs))
                raise invalid(f"expected outputs of model {self.model}, which are {have}, got {name[:64]!r}")
        if frame.stateful:
            raise invalid(f"expected no sequence_id: model {self.model} keeps no state between requests; leave sequence_* out")
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
        return Job(frame, codec, caller, received_ns, payload_bytes=payload_bytes, model=self.key)

    def codec(self, name: str) -> Codec:
        """The codec of a canonical name, its parameters frozen for the artefact's latent. Raises Refused."""
        codec = self._codecs.get(name)
        if codec is None:
            try:
                codec = self._codecs[name] = fit(name, self.latent)
            except CodecError as error:
                raise invalid(str(error)) from error
        return codec
