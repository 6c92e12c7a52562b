"""What servers say of themselves and of their models, as plain dictionaries in the protocol's own names.

One dictionary is both dialects' answer: REST writes it as JSON, gRPC as the protobuf message that ParseDict makes of it,
where a name that the protocol does not have is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from splitcore.errors import WireError
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.bounds import weigh


def pack(method: str, answer: Mapping[str, Any]) -> bytes:
    """A serialised answer of `method`."""
    message: Message = getattr(pb, method + "Response")()
    return json_format.ParseDict(dict(answer), message).SerializeToString()


def unpack(method: str, message: bytes) -> dict[str, Any]:
    """A request of `method` with every field of its message. Raises WireError."""
    weigh(message, 0)
    kind: type[Message] = getattr(pb, method + "Request")
    try:
        request = kind.FromString(message)
    except DecodeError as error:
        raise WireError(f"expected a {kind.__name__}, got {len(message)} bytes that are none: {error}") from error
    return _plain(request)


def unpack_answer(method: str, message: bytes) -> dict[str, Any]:
    """An answer of `method`, integers of 64 bits as JSON has them (text). Raises WireError."""
    weigh(message, 0)
    kind: type[Message] = getattr(pb, method + "Response")
    try:
        return _plain(kind.FromString(message))
    except DecodeError as error:
        raise WireError(f"expected a {kind.__name__}, got {len(message)} bytes that are none: {error}") from error


def _plain(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
