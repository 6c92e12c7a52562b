"""Triton's own client over gRPC, unchanged, in one process with us: the spirit of its simple_grpc_* examples."""

from __future__ import annotations

import queue
from functools import partial

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from splitcore.codec import fit


@pytest.fixture
def client(process):
    with triton.InferenceServerClient(process.grpc) as client:
        yield client


def plain(served, rows=1, seed=0):
    """(latents, an FP32 input)"""
    latents = served.latents(rows, seed)
    tensor = triton.InferInput("latent", latents.shape, "FP32")
    tensor.set_data_from_numpy(latents)
    return latents, [tensor]


def coded(served, rows=1, codec="uniform8/channel+zstd"):
    """(what the tail sees, a BYTES input, the parameters that say how it is coded)"""
    encoder, latents = fit(codec, served.spec), served.latents(rows)
    elements = np.array(list(encoder.encode(latents)), dtype=np.object_)
    tensor = triton.InferInput("latent", [rows], "BYTES")
    tensor.set_data_from_numpy(elements)
    return encoder.snap(latents), [tensor], {"lb_codec": codec, "lb_shape": ",".join(map(str, served.spec.shape))}


def right(result, served, latents):
    np.testing.assert_allclose(result.as_numpy("scores"), served.scores(latents), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result.as_numpy("label"), served.scores(latents).argmax(1))


def test_health_and_metadata(client, served):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(served.name)
    assert client.is_model_ready(served.name, "1") and not client.is_model_ready(served.name, "2")
    assert not client.is_model_ready("wrong")
    server = client.get_server_metadata(as_json=True)
    assert server["name"] == "latentbed" and {"statistics", "model_repository"} <= set(server["extensions"])
    model = client.get_model_metadata(served.name, as_json=True)
    assert model["name"] == served.name and model["versions"] == ["1"] and model["platform"] == "latentbed_torch"
    [tensor] = model["inputs"]
    assert tensor == {"name": "latent", "datatype": "FP32", "shape": ["-1", *map(str, served.spec.shape)]}
    with pytest.raises(InferenceServerException, match="Request for unknown model") as wrong:
        client.get_model_metadata("wrong")
    assert wrong.value.status() == "StatusCode.NOT_FOUND"


def test_infer_with_all_outputs_or_those_asked_for(client, served):
    latents, inputs = plain(served, 5)
    result = client.infer(served.name, inputs, request_id="mine")
    right(result, served, latents)
    assert result.get_response().id == "mine" and result.get_response().model_version == "1"
    for name, other in (("scores", "label"), ("label", "scores")):
        result = client.infer(served.name, inputs, outputs=[triton.InferRequestedOutput(name)], model_version="1")
        assert result.as_numpy(name) is not None and result.as_numpy(other) is None


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_encoded_latents_are_a_tensor_of_bytes_compressed_or_not(client, served, compression):
    snapped, inputs, parameters = coded(served, 9)
    result = client.infer(served.name, inputs, parameters=parameters, compression_algorithm=compression)
    right(result, served, snapped)
    latents, inputs = plain(served, 9)
    right(client.infer(served.name, inputs, compression_algorithm=compression), served, latents)


def test_async_infer_calls_back_for_every_request(client, served):
    answers: queue.Queue = queue.Queue()
    sent = [plain(served, 1 + n % 3, seed=n) for n in range(16)]
    for n, (_, inputs) in enumerate(sent):
        client.async_infer(served.name, inputs, partial(lambda n, result, error: answers.put((n, result, error)), n))
    got = {n: (result, error) for n, result, error in (answers.get(timeout=30) for _ in sent)}
    assert len(got) == len(sent)
    for n, (latents, _) in enumerate(sent):
        assert got[n][1] is None
        right(got[n][0], served, latents)


def test_a_request_that_waits_can_be_cancelled_and_a_stream_that_waits_too(start_process, served):
    server = start_process("--max-queue-delay-microseconds", "60000000", "--grace-s", "0")
    answers: queue.Queue = queue.Queue()
    with triton.InferenceServerClient(server.grpc) as client:
        call = client.async_infer(served.name, plain(served)[1], lambda result, error: answers.put(error))
        call.cancel()
        assert answers.get(timeout=30).status() == "StatusCode.CANCELLED"
        with pytest.raises(InferenceServerException) as late:
            client.infer(served.name, plain(served)[1], client_timeout=0.2)
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer(served.name, plain(served)[1])
        client.stop_stream(cancel_requests=True)
        assert answers.get(timeout=30).status() == "StatusCode.CANCELLED"


def test_a_stream_answers_in_band_goes_on_after_an_error_and_marks_its_last_answers(client, served):
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    latents, inputs = plain(served, 2)
    client.async_stream_infer(served.name, inputs, request_id="1", enable_empty_final_response=True)
    client.async_stream_infer("wrong", inputs, request_id="2")
    client.async_stream_infer(served.name, inputs, request_id="3")
    got = [answers.get(timeout=30) for _ in range(3)]
    client.stop_stream()
    [wrong] = [error for _, error in got if error is not None]
    assert "NOT_FOUND" in str(wrong)
    results = {result.get_response().id: result for result, error in got if error is None}
    for result in results.values():
        right(result, served, latents)
    finals = {key: result.get_response().parameters["triton_final_response"].bool_param for key, result in results.items()}
    assert finals == {"1": True, "3": False}


@pytest.mark.parametrize("wrong", ["a model that is not there", "a payload that is none"])
def test_a_stream_that_asks_for_statuses_ends_with_one(client, served, wrong):
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
    latents, inputs = plain(served, 2)
    client.async_stream_infer(served.name, inputs)
    result, error = answers.get(timeout=30)
    assert error is None
    right(result, served, latents)
    if wrong == "a model that is not there":
        client.async_stream_infer("wrong", inputs)
    else:
        # refused where it is decoded, not where it is read
        tensor = triton.InferInput("latent", [1], "BYTES").set_data_from_numpy(np.array([b"\x28\xb5\x2f\xfdno"], np.object_))
        client.async_stream_infer(served.name, [tensor], parameters=coded(served)[2])
    result, error = answers.get(timeout=30)
    client.stop_stream()
    assert error.status() == ("StatusCode.NOT_FOUND" if "model" in wrong else "StatusCode.INVALID_ARGUMENT")
    assert ("Request for unknown model" if "model" in wrong else "not a Zstandard frame") in error.message()


async def test_the_asyncio_client_asks_streams_and_is_told_what_is_wrong(process, served):
    async with triton_aio.InferenceServerClient(process.grpc) as client:
        assert await client.is_server_live() and await client.is_model_ready(served.name)
        latents, inputs = plain(served, 3)
        right(await client.infer(served.name, inputs), served, latents)
        snapped, encoded, parameters = coded(served, 2, "float16")

        async def requests():
            yield {"model_name": served.name, "inputs": inputs, "request_id": "plain"}
            yield {"model_name": served.name, "inputs": encoded, "request_id": "coded", "parameters": parameters}
            yield {"model_name": served.name, "inputs": inputs, "model_version": "9"}

        expected = {"plain": latents, "coded": snapped}
        errors = []
        async for result, error in client.stream_infer(requests()):
            if error is not None:
                errors.append(str(error))
                continue
            right(result, served, expected.pop(result.get_response().id))
        assert not expected and "NOT_FOUND" in errors[0] and len(errors) == 1
        statistics = await client.get_inference_statistics(served.name, as_json=True)
        assert statistics["model_stats"][0]["name"] == served.name


def test_priority_and_timeout_are_taken_and_sequences_refused(client, served):
    latents, inputs = plain(served)
    right(client.infer(served.name, inputs, priority=1, timeout=60_000_000), served, latents)
    for sequence in (7, "seven"):
        with pytest.raises(InferenceServerException, match="expected no sequence_id") as refused:
            client.infer(served.name, inputs, sequence_id=sequence, sequence_start=True)
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_what_is_wrong_with_a_request_is_said_with_what_was_expected_and_got(client, served):
    rows = (1, *served.spec.shape)

    def refusal(name="latent", datatype="FP32", array=None, **options):
        array = np.zeros(rows, np.float32) if array is None else array
        tensor = triton.InferInput(name, array.shape, datatype).set_data_from_numpy(array)
        with pytest.raises(InferenceServerException) as refused:
            client.infer(served.name, [tensor], **options)
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
        return refused.value.message()

    assert "expected the input 'latent' of model" in refusal("x") and "got 'x'" in refusal("x")
    assert "expected a tensor of type FP32 or BYTES, got 'FP64'" in refusal(datatype="FP64", array=np.zeros(rows))
    wide = np.zeros((1, *served.spec.shape[:-1], served.spec.shape[-1] + 1), np.float32)
    assert f"expected latents of shape {list(served.spec.shape)}" in refusal(array=wide)
    asked = [triton.InferRequestedOutput(name) for name in ("scores", "embedding")]
    assert "which are 'scores' and 'label', got 'embedding'" in refusal(outputs=asked)
    assert "NaN" in refusal(array=np.full(rows, np.nan, np.float32))
    shared = triton.InferInput("latent", rows, "FP32").set_shared_memory("region", 4)
    with pytest.raises(InferenceServerException, match="no memory is shared"):
        client.infer(served.name, [shared])


def test_typed_contents_are_read_and_both_kinds_at_once_refused(process, served):
    latents = served.latents(2)
    with grpc.insecure_channel(process.grpc) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        request = service_pb2.ModelInferRequest(model_name=served.name)
        tensor = request.inputs.add(name="latent", datatype="FP32", shape=latents.shape)
        tensor.contents.fp32_contents.extend(latents.ravel().tolist())
        answer = infer(request)
        scores = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)
        np.testing.assert_allclose(scores, served.scores(latents), rtol=1e-4, atol=1e-4)
        request.raw_input_contents.append(latents.tobytes())
        with pytest.raises(grpc.RpcError) as both:
            infer(request)
        assert both.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "got both" in both.value.details()


def test_statistics_grow_by_what_was_asked(client, served):
    def statistics():
        [model] = client.get_inference_statistics(served.name, "1").model_stats
        return model

    before = statistics()
    client.infer(served.name, plain(served, 7)[1])
    with pytest.raises(InferenceServerException):
        client.infer(served.name, [triton.InferInput("x", [1, 1], "FP32").set_data_from_numpy(np.zeros((1, 1), np.float32))])
    after = statistics()
    assert after.inference_count - before.inference_count == 7 and after.execution_count - before.execution_count == 1
    assert after.last_inference > max(before.last_inference, 10**12)
    for name, count in (("success", 1), ("fail", 1), ("queue", 1), ("compute_input", 1), ("compute_infer", 1),
                        ("compute_output", 1)):  # fmt: skip
        grown = getattr(after.inference_stats, name).count - getattr(before.inference_stats, name).count
        assert grown == count, name
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    sizes = {row.batch_size: row.compute_infer.count for row in after.batch_stats}
    assert sizes[7] == 1 + {row.batch_size: row.compute_infer.count for row in before.batch_stats}.get(7, 0)
    assert len(client.get_inference_statistics().model_stats) == 1


def test_the_configuration_is_tritons(client, served):
    config = client.get_model_config(served.name, as_json=True)["config"]
    assert config["name"] == served.name and config["platform"] == "latentbed_torch" and config["max_batch_size"] == 64
    assert config["input"] == [{"name": "latent", "data_type": "TYPE_FP32", "dims": list(map(str, served.spec.shape))}]
    assert [output["name"] for output in config["output"]] == ["scores", "label"]
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 4096
    assert config["version_policy"] == {"all": {}} and config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["parameters"]["artefact"]["string_value"] == served.artefact.manifest.handshake


def test_own_channel_arguments_and_keepalive_work(process, served):
    keepalive = triton.KeepAliveOptions(keepalive_time_ms=2**31 - 1, keepalive_timeout_ms=20000)
    for options in ({"channel_args": [("grpc.primary_user_agent", "mine")]}, {"keepalive_options": keepalive}):
        with triton.InferenceServerClient(process.grpc, **options) as client:
            latents, inputs = plain(served)
            right(client.infer(served.name, inputs), served, latents)


def test_models_are_loaded_and_unloaded_by_whoever_has_the_token(start_process, served):
    server = start_process("--grace-s", "0.2")
    token = {"authorization": f"Bearer {(server.state / 'token').read_text().strip()}"}
    with triton.InferenceServerClient(server.grpc) as client:
        index = [{"name": served.name, "version": "1", "state": "READY"}]
        assert client.get_model_repository_index(as_json=True)["models"] == index
        for change in (client.unload_model, client.load_model):
            for headers in (None, {"authorization": "Bearer wrong"}):
                with pytest.raises(InferenceServerException, match="expected metadata `authorization") as refused:
                    change(served.name, headers=headers)
                assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
        client.unload_model(served.name, headers=token)
        assert not client.is_model_ready(served.name) and client.is_server_ready()
        with pytest.raises(InferenceServerException, match="unloaded") as gone:
            client.infer(served.name, plain(served)[1])
        assert gone.value.status() == "StatusCode.UNAVAILABLE"
        [model] = client.get_model_repository_index(as_json=True)["models"]
        assert model["state"] in ("UNLOADING", "UNAVAILABLE") and model["reason"] == "unloaded"
        client.load_model(served.name, headers=token)
        assert client.is_model_ready(served.name)
        latents, inputs = plain(served)
        right(client.infer(served.name, inputs), served, latents)
        with pytest.raises(InferenceServerException, match="failed to load 'wrong'"):
            client.load_model("wrong", headers=token)
        with pytest.raises(InferenceServerException, match="expected no repository name and no parameters"):
            client.load_model(served.name, config="{}", headers=token)


def test_what_we_do_not_have_is_unimplemented(client):
    for call in (client.get_system_shared_memory_status, client.get_trace_settings, client.get_log_settings):
        with pytest.raises(InferenceServerException) as refused:
            call()
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
