"""A frame: one request of one node, with an id that never changes, and its reply."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import WireError
from splitcore.latent import F32

Origin = Literal["client", "query"]
"""who asked: the phone (its frames, also when a relay passes them on), or an adversary's own queries"""

EDGE_US = "lb_edge_us"
"""parameter of a reply to a frame that asked for it: microseconds from the frame's arrival at the server to its scores"""

WORD = r"[A-Za-z0-9_.:+-]{1,96}"
"""what a run and a client may be called, as a regular expression"""
_ID = re.compile(rf"(?P<run>{WORD})/(?P<client>{WORD})/(?P<sequence>0|[1-9][0-9]{{0,11}})")


@dataclass(frozen=True, slots=True, order=True)
class FrameId:
    """(run, client, sequence), written run/client/sequence. Retries keep it; the attempt number counts them."""

    run: str
    client: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.run}/{self.client}/{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> FrameId:
        """Raises WireError."""
        match = _ID.fullmatch(text)
        if match is None:
            raise WireError(f"expected a frame id run/client/sequence, got {text[:120]!r}", frame_id=text[:120])
        return cls(match["run"], match["client"], int(match["sequence"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """k encoded latents under one id: one request on the wire, k rows at the tail."""

    id: str
    payloads: tuple[bytes | memoryview, ...]
    """one a latent, as the codec wrote them"""
    codec: str = "identity"
    """canonical codec name"""
    shape: tuple[int, ...]
    """of one latent"""
    attempt: int = 1
    """1 for the first sending, one more for each retry"""
    origin: Origin = "client"
    model: str = ""
    version: str = ""
    timeout_us: int | None = None
    """the frame's deadline, relative, in microseconds; Triton's `timeout`. None: no deadline"""
    labels_only: bool = False
    """ask for the output `label` alone"""
    tensor: str = "latent"
    """what the sender calls the input; our servers take `latent` alone"""
    outputs: tuple[str, ...] = ()
    """outputs asked for by name, where it is not `label` alone; (): all there are"""
    priority: int = 0
    """Triton's `priority`: 1 is the highest, 0 leaves it to the server"""
    stateful: bool = False
    """said to belong to a sequence (`sequence_id`), as for a model with a state between requests"""
    mark_final: bool = False
    """ask that an answer says whether it is its request's last (`triton_enable_empty_final_response`)"""
    timed: bool = False
    """ask the server to say how long the frame was with it"""
    numbered: bool = True
    """its client numbers its attempts, as ours do: the same id again is the same frame again. Of others nobody knows"""
    template: bytes = b""
    """of a foreign endpoint: the request around the tensor that is attacked, with everything else that it carries"""
    traceparent: str = ""
    """W3C trace context of whoever sent it; empty: not traced"""

    @property
    def rows(self) -> int:
        return len(self.payloads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back for one frame: scores, labels, or an error in-band."""

    id: str
    scores: F32 | None = None
    """logits [k, classes], None where the server gives labels alone"""
    labels: NDArray[np.int64] | None = None
    """[k]"""
    error: str | None = None
    """`CODE: text` of an in-band error; the stream goes on"""
    model: str = ""
    version: str = ""
    parameters: dict[str, bool | int | str | float] = field(default_factory=dict)

    @property
    def edge_ms(self) -> float | None:
        """How long the frame was at the server, from its arrival to its scores; None where it does not say."""
        took_us = self.parameters.get(EDGE_US)
        return took_us / 1e3 if isinstance(took_us, int) else None

    @property
    def label(self) -> int:
        """The label of a frame with one row."""
        if self.labels is not None and len(self.labels):
            return int(self.labels[0])
        if self.scores is not None and len(self.scores):
            return int(self.scores[0].argmax())
        raise WireError(f"expected a label in the reply, got {self.error or 'no output'}", frame_id=self.id)
