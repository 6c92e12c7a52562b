"""What of a request is not its payload: ids, names, shapes, the codec."""

from __future__ import annotations

from splitcore.artefact import Artefact
from splitcore.frame import Frame
from splitcore.wire import oip


def envelope_bytes(artefact: Artefact, codec: str, frame: str, payload_bytes: int) -> int:
    """Of a phone's request for the frame of this id, around a payload of so many bytes (the lengths say how long they are)."""
    manifest, payloads = artefact.manifest, (bytes(payload_bytes),)
    sent = Frame(id=frame, payloads=payloads, codec=codec, shape=manifest.latent.shape, attempt=1, model=manifest.name)
    return len(oip.pack_request(sent)) - payload_bytes
