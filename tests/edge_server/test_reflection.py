"""A client that knows nothing of the protocol asks the server for it, builds its messages, and calls every kind of method."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import tritonclient.grpc.model_config_pb2 as triton_config
import tritonclient.grpc.service_pb2 as triton
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from splitcore.wire.public import public_pool

SERVICE = "inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def channel(process):
    with grpc.insecure_channel(process.grpc) as channel:
        yield channel


class Dynamic:
    """Stubs out of nothing but what reflection says."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.service = DescriptorPool(self.database).FindServiceByName(SERVICE)
        self._channel = channel

    def request(self, method: str, **fields):
        return GetMessageClass(self.service.methods_by_name[method].input_type)(**fields)

    def stub(self, method: str):
        described = self.service.methods_by_name[method]
        kind = self._channel.stream_stream if described.client_streaming else self._channel.unary_unary
        return kind(
            f"/{SERVICE}/{method}",
            request_serializer=GetMessageClass(described.input_type).SerializeToString,
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )

    def call(self, method: str, **fields):
        return self.stub(method)(self.request(method, **fields))


def test_the_services_are_listed_and_a_stub_is_built_and_called_from_what_is_said(channel, served):
    client = Dynamic(channel)
    assert set(client.database.get_services()) == {
        SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
    }  # fmt: skip
    assert client.call("ServerLive").live and client.call("ModelReady", name=served.name).ready
    assert client.call("ModelMetadata", name=served.name).inputs[0].name == "latent"
    assert client.call("ModelConfig", name=served.name).config.max_batch_size == 64
    assert client.call("ModelStatistics").model_stats[0].name == served.name
    assert client.call("RepositoryIndex").models[0].state == "READY"
    latents = served.latents(3)
    asked = client.request("ModelInfer", model_name=served.name, id="x", raw_input_contents=[latents.tobytes()])
    asked.inputs.add(name="latent", datatype="FP32", shape=latents.shape)
    answer = client.stub("ModelInfer")(asked)
    streamed = [reply.infer_response for reply in client.stub("ModelStreamInfer")(iter([asked, asked]))]
    for reply in (answer, *streamed):
        scores = np.frombuffer(reply.raw_output_contents[0], np.float32).reshape(reply.outputs[0].shape)
        np.testing.assert_allclose(scores, served.scores(latents), rtol=1e-4, atol=1e-4)
    assert len(streamed) == 2


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection_answer_and_what_is_unknown_is_not_found(channel, version):
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    known, unknown = ask(
        iter(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
            for symbol in (SERVICE, "latentbed.oip.ModelInferRequest")
        )
    )
    assert len(known.file_descriptor_response.file_descriptor_proto) == 1
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def numbers(message: Descriptor) -> dict[str, tuple[int, int, bool]]:
    """By the full name of every field, of messages within it too: number, type, repeated."""
    found = {f"{message.full_name}.{field.name}": (field.number, field.type, field.is_repeated) for field in message.fields}
    for inner in message.nested_types:
        found |= numbers(inner)
    return found


def test_every_field_of_ours_has_tritons_name_number_and_type():
    pool = public_pool()
    theirs: dict[str, tuple[int, int, bool]] = {}
    for file in (triton.DESCRIPTOR, triton_config.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            theirs |= numbers(message)
    file = pool.FindFileByName("open_inference.proto")
    assert len(file.message_types_by_name) == 40
    for message in file.message_types_by_name.values():
        for name, number in numbers(message).items():
            assert theirs[name] == number, name
    for enum in file.enum_types_by_name.values():
        of_triton = triton_config.DESCRIPTOR.enum_types_by_name[enum.name]
        assert {v.name: v.number for v in enum.values} == {v.name: v.number for v in of_triton.values}
    methods = triton.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in file.services_by_name["GRPCInferenceService"].methods:
        their = methods[method.name]
        assert (method.client_streaming, method.server_streaming) == (their.client_streaming, their.server_streaming)
        assert (method.input_type.full_name, method.output_type.full_name) == (
            their.input_type.full_name, their.output_type.full_name,
        )  # fmt: skip
