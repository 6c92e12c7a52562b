"""Sealed frames as ordinary messages of the protocol, so that any relay of it carries them.

A conversation begins with a hello, a request without tensors: the client's salt goes up in the parameter `lb_hello`, the
server's comes back in the answer with a proof that it holds the key. From then on the request of a frame travels, whole, as
the one element of a BYTES tensor; around it stand what a relay needs to keep its books, the frame's id, attempt and model,
and the seal's number (`lb_seal`). All of that is vouched for as well: an envelope with another id does not open. Answers
likewise; an in-band error stays readable outside, vouched for, so that books along the way know what was not computed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from splitcore.errors import WireError
from splitcore.frame import Frame, Reply
from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.bounds import fields, weigh
from splitcore.wire.sealing import SALT_BYTES, TAG_BYTES, Keys, Opener, Sealer, SealError, Window, about, new_salt

CODEC = "sealed"
"""what an envelope says its codec is: a reader who knows it knows that there is nothing to decode"""
SEAL_KEY, HELLO_KEY, SALT_KEY = "lb_seal", "lb_hello", "lb_salt"
OUTPUT = "sealed"
PROOF = SALT_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands around a sealed request, and what is in it."""

    id: str
    attempt: int
    model: str
    version: str
    number: int
    sealed: bytes
    salt: bytes = b""
    """the client's, where a call says which conversation it belongs to; a stream is one by itself"""

    @property
    def about(self) -> bytes:
        return about("request", self.id, self.attempt, self.model, self.version)


def pack_hello(salt: bytes) -> bytes:
    """The first message of a conversation, as a ModelInferRequest."""
    message = pb.ModelInferRequest()
    message.parameters[HELLO_KEY].string_param = salt.hex()
    return message.SerializeToString()


def unpack_hello(message: bytes) -> bytes | None:
    """The client's salt; None: no hello. Raises WireError."""
    if HELLO_KEY.encode() not in message:
        return None
    request = _parse(pb.ModelInferRequest, message)
    if request.inputs or HELLO_KEY not in request.parameters:
        return None
    return _hex(request.parameters[HELLO_KEY].string_param, SALT_BYTES)


def _hello_reply(salt: bytes, keys: Keys) -> pb.ModelInferResponse:
    """With the server's salt, and the proof that it holds the key: number 0 of its direction."""
    response = pb.ModelInferResponse()
    response.parameters[HELLO_KEY].string_param = (salt + Sealer(keys.down).seal_as(0, b"", about(HELLO_KEY))).hex()
    return response


def _greeted(key: bytes, salt: bytes, response: pb.ModelInferResponse, error: str, kind: str) -> Keys:
    if error or HELLO_KEY not in response.parameters:
        raise SealError(f"expected a server that seals its answers, got {error[:200] or 'an answer without a salt'}")
    said = _hex(response.parameters[HELLO_KEY].string_param, PROOF)
    keys = Keys.of(key, salt, said[:SALT_BYTES], kind)
    Opener(keys.down).open_as(0, said[SALT_BYTES:], about(HELLO_KEY))
    return keys


class ClientStream:
    """A client's end of one stream: `hello` goes first, `greeted` takes the first answer, then frames go."""

    def __init__(self, key: bytes) -> None:
        self._key, self._salt = key, new_salt()
        self.hello = pack_hello(self._salt)

    def greeted(self, message: bytes) -> None:
        """Raises SealError where whoever answers does not hold the key, WireError."""
        answer = _parse_streamed(message)
        keys = _greeted(self._key, self._salt, answer.infer_response, answer.error_message, "stream")
        self._up, self._down = Sealer(keys.up), Opener(keys.down)

    def seal(self, frame: Frame, message: bytes) -> bytes:
        """`message`, the frame as a request, in its envelope."""
        head = Envelope(frame.id, frame.attempt, frame.model, frame.version, 0, b"")
        number, sealed = self._up.seal(message, head.about)
        return pack_envelope(Envelope(frame.id, frame.attempt, frame.model, frame.version, number, sealed))

    def open(self, message: bytes) -> Reply:
        """A streamed answer. Raises SealError, WireError."""
        answer = _parse_streamed(message)
        return _opened(answer.infer_response, answer.error_message, self._down)


class ServerStream:
    """A server's end of one stream."""

    def __init__(self, key: bytes, client_salt: bytes) -> None:
        salt = new_salt()
        keys = Keys.of(key, client_salt, salt, "stream")
        self._up, self._down = Opener(keys.up), Sealer(keys.down)
        self.hello_reply = pb.ModelStreamInferResponse(infer_response=_hello_reply(salt, keys)).SerializeToString()

    def open(self, envelope: Envelope) -> bytes:
        """The request within. Raises SealError."""
        return self._up.open(envelope.number, envelope.sealed, envelope.about)

    def seal(self, reply: Reply) -> bytes:
        """As a streamed answer."""
        number, sealed = self._down.seal(oip.pack_reply(reply), _about_reply(reply.id, reply.error or ""))
        return pb.ModelStreamInferResponse(
            error_message=reply.error or "", infer_response=_sealed_reply(reply, number, sealed)
        ).SerializeToString()


class ClientCalls:
    """A client's end for unary calls: one conversation, whose calls may be on their way together."""

    def __init__(self, key: bytes) -> None:
        self._key, self._salt = key, new_salt()
        self.hello = pack_hello(self._salt)

    def greeted(self, message: bytes) -> None:
        """Raises SealError, WireError."""
        keys = _greeted(self._key, self._salt, _parse(pb.ModelInferResponse, message), "", "call")
        self._up, self._down = Sealer(keys.up), Opener(keys.down)

    def seal(self, frame: Frame, message: bytes) -> tuple[int, bytes]:
        """(the call's number, the envelope)."""
        head = Envelope(frame.id, frame.attempt, frame.model, frame.version, 0, b"")
        number, sealed = self._up.seal(message, head.about)
        return number, pack_envelope(Envelope(frame.id, frame.attempt, frame.model, frame.version, number, sealed, self._salt))

    def open(self, number: int, message: bytes) -> Reply:
        """The answer to the call of this number, and to no other. Raises SealError, WireError."""
        return _opened(_parse(pb.ModelInferResponse, message, oip.RAW_OUTPUTS), "", self._down, call=number)


class CallConversation:
    """A server's end of one client's calls."""

    def __init__(self, keys: Keys) -> None:
        self._up, self._down = Window(keys.up), Sealer(keys.down)

    def open(self, envelope: Envelope) -> bytes:
        """The request within, once. Raises SealError."""
        return self._up.open(envelope.number, envelope.sealed, envelope.about)

    def seal(self, number: int, reply: Reply) -> bytes:
        """The one answer to the call that was opened under this number."""
        sealed = self._down.seal_as(number, oip.pack_reply(reply), _about_reply(reply.id, ""))
        return _sealed_reply(reply, number, sealed).SerializeToString()


def pack_call_hello_reply(key: bytes, client_salt: bytes, server_salt: bytes) -> bytes:
    """The answer to a call's hello."""
    return _hello_reply(server_salt, Keys.of(key, client_salt, server_salt, "call")).SerializeToString()


def pack_envelope(envelope: Envelope) -> bytes:
    """As a serialised ModelInferRequest."""
    message = pb.ModelInferRequest(model_name=envelope.model, model_version=envelope.version, id=envelope.id)
    message.parameters[oip.ATTEMPT_KEY].int64_param = envelope.attempt
    message.parameters[oip.CODEC_KEY].string_param = CODEC
    message.parameters[oip.SHAPE_KEY].string_param = str(len(envelope.sealed))
    message.parameters[SEAL_KEY].int64_param = envelope.number
    if envelope.salt:
        message.parameters[SALT_KEY].string_param = envelope.salt.hex()
    message.inputs.add(name=oip.INPUT, datatype="BYTES", shape=[1])
    message.raw_input_contents.append(oip.join_bytes_elements([envelope.sealed]))
    return message.SerializeToString()


def unpack_envelope(message: bytes) -> Envelope | None:
    """None: a message that is none. Raises WireError for one that is broken."""
    if SEAL_KEY.encode() not in message:
        return None
    request = _parse(pb.ModelInferRequest, message, oip.RAW_INPUTS)
    parameters = request.parameters
    if SEAL_KEY not in parameters:
        return None
    wrong = WireError("expected a sealed frame as its sender packed it", frame_id=request.id[: oip.MAX_ID])
    if any(key not in parameters for key in (oip.ATTEMPT_KEY, oip.CODEC_KEY, oip.SHAPE_KEY)):
        raise wrong
    tensors, raws = request.inputs, request.raw_input_contents
    if len(tensors) != 1 or len(raws) != 1 or len(request.id) > oip.MAX_ID:
        raise wrong
    tensor = tensors[0]
    [sealed] = oip.split_bytes_elements(raws[0], 1, lambda _: wrong)
    number, attempt = parameters[SEAL_KEY].int64_param, parameters[oip.ATTEMPT_KEY].int64_param
    as_packed = (
        (tensor.name, tensor.datatype, list(tensor.shape)) == (oip.INPUT, "BYTES", [1])
        and parameters[oip.CODEC_KEY].string_param == CODEC
        and parameters[oip.SHAPE_KEY].string_param == str(len(sealed))
        and number > 0
        and 1 <= attempt <= oip.MAX_ATTEMPT
        and not tensor.HasField("contents")
    )
    if not as_packed:
        raise wrong
    salt = _hex(parameters[SALT_KEY].string_param, SALT_BYTES) if SALT_KEY in parameters else b""
    return Envelope(request.id, attempt, request.model_name, request.model_version, number, sealed, salt)


def _about_reply(reply_id: str, error: str) -> bytes:
    return about("reply", reply_id, error)


def _sealed_reply(reply: Reply, number: int, sealed: bytes) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=reply.model, model_version=reply.version, id=reply.id)
    response.parameters[SEAL_KEY].int64_param = number
    response.outputs.add(name=OUTPUT, datatype="BYTES", shape=[1])
    response.raw_output_contents.append(struct.pack("<I", len(sealed)) + sealed)
    return response


def _opened(response: pb.ModelInferResponse, error: str, down: Opener, call: int | None = None) -> Reply:
    wrong = WireError("expected a sealed answer, got another", frame_id=response.id[: oip.MAX_ID])
    if SEAL_KEY not in response.parameters or len(response.raw_output_contents) != 1:
        raise wrong
    [sealed] = oip.split_bytes_elements(response.raw_output_contents[0], 1, lambda _: wrong)
    number, vouched = response.parameters[SEAL_KEY].int64_param, _about_reply(response.id, error)
    if call is None:
        content = down.open(number, sealed, vouched)
    elif number == call:
        content = down.open_as(number, sealed, vouched)
    else:
        raise SealError("not sealed for this place")
    reply = oip.unpack_reply(content)
    return Reply(
        id=reply.id, scores=reply.scores, labels=reply.labels, error=error or None, model=reply.model,
        version=reply.version, parameters=reply.parameters,
    )  # fmt: skip


_Message = TypeVar("_Message", bound=Message)


def _parse(kind: type[_Message], message: bytes, raw: int = 0) -> _Message:
    weigh(message, raw)
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise WireError(f"expected a {kind.__name__}, got {len(message)} bytes that are none: {error}") from error


def _parse_streamed(message: bytes) -> pb.ModelStreamInferResponse:
    for number, start, end in fields(message):
        weigh(memoryview(message)[start:end], oip.RAW_OUTPUTS if number == oip.INFER_RESPONSE else 0)
    return _parse(pb.ModelStreamInferResponse, message, oip.INFER_RESPONSE)


def _hex(text: str, size: int) -> bytes:
    try:
        data = bytes.fromhex(text) if len(text) == 2 * size else b""
    except ValueError:
        data = b""
    if len(data) != size:
        raise WireError(f"expected {size} bytes in hexadecimal, got {text[:80]!r}")
    return data
