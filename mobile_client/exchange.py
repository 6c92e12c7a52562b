"""A shot as a request, and a reply as what it says of the shot."""

from __future__ import annotations

from mobile_client.shot import Shot
from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.telemetry.clock import now_ns
from splitcore.telemetry.frame_spans import attempt_of
from splitcore.wire import oip
from splitcore.wire.envelope import ClientStream
from splitcore.wire.form import Form


def request_of(
    shot: Shot, deadline_ms: float | None, *, timed: bool = False, seal: ClientStream | None = None, form: Form = oip
) -> bytes:
    """A serialised request, sealed where there is a seal; `form`: what the server takes.

    It carries what is left of the deadline; a frame that is late already still says so.
    """
    manifest = shot.cut.manifest
    timeout_us = None
    if deadline_ms is not None:
        timeout_us = max(1, int(deadline_ms * 1000) - (now_ns() - shot.scheduled_ns) // 1000)
    frame = Frame(
        id=shot.id,
        payloads=(shot.payload,),
        codec=shot.cut.codec.name,
        shape=manifest.latent.shape,
        attempt=shot.attempt,
        model=manifest.name,
        timeout_us=timeout_us,
        timed=timed,
        traceparent="" if shot.trace is None else str(attempt_of(shot.trace, shot.attempt)),
    )
    message = form.pack_request(frame)
    return message if seal is None else seal.seal(frame, message)


def judge(reply: Reply, classes: int) -> tuple[int | None, str | None]:
    """(label, None), or (None, what is wrong with the answer)."""
    if reply.error is not None:
        return None, reply.error
    try:
        label = reply.label
    except WireError as error:
        return None, str(error)
    if not 0 <= label < classes:
        return None, f"expected a label below {classes}, got {label}"
    return label, None
