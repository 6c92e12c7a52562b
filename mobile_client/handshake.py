"""Before the first frame: do the phone and whoever answers hold the same artefact, and is its model served there?

Asked with a unary call, whose status is reliable; that of a stream that the server ends early is not (grpc#36066).
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from splitcore.artefact import Manifest, agree
from splitcore.errors import HandshakeError
from splitcore.wire import oip

TIMEOUT_S = 10.0
REFUSALS = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""asking again would not help"""
TOKEN_REFUSALS = (f"{grpc.StatusCode.UNAUTHENTICATED.name}:", f"{grpc.StatusCode.PERMISSION_DENIED.name}:")


def metadata_of(manifests: Sequence[Manifest]) -> tuple[tuple[str, str], ...]:
    """What the phone says of itself with every call: the artefacts whose frames it may send."""
    return tuple((oip.ARTEFACT_METADATA, manifest.handshake) for manifest in manifests)


async def shake_hands(channel: grpc.aio.Channel, manifest: Manifest, more: Sequence[tuple[str, str]] = ()) -> None:
    """`more`: further metadata of the call. Raises HandshakeError, naming both sides; grpc.aio.AioRpcError when nobody
    answered; WireError."""
    call = channel.unary_unary(oip.path(oip.MODEL_METADATA))(
        oip.pack_model_name(manifest.name), metadata=(*metadata_of([manifest]), *more), timeout=TIMEOUT_S
    )
    compare(await call.initial_metadata(), manifest)
    try:
        served = oip.unpack_model_metadata(await call)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error, [manifest])
        if refusal is not None:
            raise refusal from error
        raise
    check_shape(served, manifest)


def compare(initial: grpc.aio.Metadata | None, manifest: Manifest) -> None:
    """Ours must be one of the server's handshakes; a server of another make sends none. Raises HandshakeError."""
    theirs = [str(value) for key, value in initial or () if key == oip.ARTEFACT_METADATA]
    if theirs and manifest.handshake not in theirs:
        same_name = [value for value in theirs if value.partition("@")[0] == manifest.name]
        agree(manifest.handshake, " and ".join(same_name or theirs), we="phone", they="edge server")


def refusal_of(error: grpc.aio.AioRpcError, manifests: Sequence[Manifest]) -> HandshakeError | None:
    """What a status means that no retry will change; None for any other."""
    if error.code() not in REFUSALS:
        return None
    return refused(f"{error.code().name}: {error.details()}", manifests)


def refused(text: str, manifests: Sequence[Manifest]) -> HandshakeError:
    if text.startswith(TOKEN_REFUSALS):
        return HandshakeError(f"the server refused the phone: {text[:300]}: give it another token, --access-token-file")
    ours = " and ".join(manifest.handshake[:100] for manifest in manifests)
    return HandshakeError(
        f"the phone holds artefact {ours}, the server refused it: {text[:300]}: "
        "give both the same artefact folder, and the phone the address of the edge server"
    )


def check_shape(served: oip.ModelMetadata, manifest: Manifest) -> None:
    """The served model's latent must be ours; -1 stands for any size. Raises HandshakeError."""
    tensors = [tensor for tensor in served.inputs if tensor.name == oip.INPUT]
    ours = tuple(manifest.latent.shape)
    if tensors and tensors[0].datatype == "BYTES":
        return  # encoded latents alone: each frame carries its shape
    theirs = tensors[0].shape[1:] if tensors else None
    if theirs is None or len(theirs) != len(ours) or any(b not in (-1, a) for a, b in zip(ours, theirs, strict=True)):
        raise HandshakeError(
            f"the phone sends `{oip.INPUT}` [k, {', '.join(map(str, ours))}] for model {manifest.name}, the server takes "
            f"{[(tensor.name, list(tensor.shape)) for tensor in served.inputs][:4]}: give both the same artefact folder"
        )
