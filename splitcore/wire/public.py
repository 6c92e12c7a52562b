"""The protocol's descriptors under their public names, for server reflection.

Our messages live in a protobuf package of our own; a dynamic client (grpcurl, or a descriptor database in Python) asks for
`inference.GRPCInferenceService`. It gets our file with the package renamed, from a pool that nobody else sees, so that
tritonclient's messages of the same names may be in this process too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from splitcore.wire import open_inference_pb2 as pb

PACKAGE = "inference"


def public_pool(others: Iterable[FileDescriptor] = ()) -> DescriptorPool:
    """A pool of its own with the protocol's file, and with `others` as they are."""
    file = FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    ours, theirs = f".{file.package}.", f".{PACKAGE}."
    file.package = PACKAGE
    for field in _fields(file.message_type):
        if field.HasField("type_name"):
            field.type_name = field.type_name.replace(ours, theirs, 1)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(ours, theirs, 1)
            method.output_type = method.output_type.replace(ours, theirs, 1)
    pool = DescriptorPool()
    for serialized in (file.SerializeToString(), *(other.serialized_pb for other in others)):
        pool.AddSerializedFile(serialized)
    return pool


def _fields(messages: Iterable[DescriptorProto]) -> Iterator[FieldDescriptorProto]:
    """Those of messages, and of the messages within them."""
    for message in messages:
        yield from message.field
        yield from _fields(message.nested_type)
