"""The protocol over HTTP: Triton's own client, plain JSON, binary tensors, compression and its bounds."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from splitcore.codec import fit
from splitcore.journal import read
from splitcore.wire.channel import MAX_MESSAGE_BYTES


@pytest.fixture(scope="module")
def client(process):
    with triton.InferenceServerClient(process.control) as client:
        yield client


@pytest.fixture(scope="module")
def http(process):
    with httpx.Client(base_url=f"http://{process.control}/v2") as client:
        yield client


def plain(served, rows=1, *, binary=True):
    latents = served.latents(rows)
    tensor = triton.InferInput("latent", latents.shape, "FP32")
    return latents, [tensor.set_data_from_numpy(latents, binary_data=binary)]


def right(result, served, latents):
    np.testing.assert_allclose(result.as_numpy("scores"), served.scores(latents), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result.as_numpy("label"), served.scores(latents).argmax(1))


def test_health_metadata_configuration_statistics_and_index_as_over_grpc(client, served):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(served.name) and client.is_model_ready(served.name, "1")
    assert not client.is_model_ready("wrong") and not client.is_model_ready(served.name, "2")
    assert client.get_server_metadata()["name"] == "latentbed"
    metadata = client.get_model_metadata(served.name, "1")
    assert metadata["inputs"] == [{"name": "latent", "datatype": "FP32", "shape": [-1, *served.spec.shape]}]
    config = client.get_model_config(served.name)
    assert config["max_batch_size"] == 64 and config["input"][0]["dims"] == list(served.spec.shape)
    client.infer(served.name, plain(served, 3)[1])
    for asked in ((), (served.name,), (served.name, "1")):
        [statistics] = client.get_inference_statistics(*asked)["model_stats"]
        assert statistics["inference_count"] >= 3 and statistics["inference_stats"]["success"]["count"] >= 1
    [row] = client.get_model_repository_index()
    assert row == {"name": served.name, "version": "1", "state": "READY", "reason": ""}
    with pytest.raises(InferenceServerException, match="Request for unknown model") as wrong:
        client.get_model_metadata("wrong")
    assert wrong.value.status() == "404"


@pytest.mark.parametrize("request_compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_compression", [None, "gzip", "deflate"])
def test_binary_tensors_compressed_either_way_or_not(client, served, request_compression, response_compression):
    latents, inputs = plain(served, 40)
    result = client.infer(
        served.name, inputs, request_id="mine",
        request_compression_algorithm=request_compression, response_compression_algorithm=response_compression,
    )  # fmt: skip
    right(result, served, latents)
    assert result.get_response()["id"] == "mine" and result.get_response()["model_version"] == "1"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_numbers_in_json_or_in_binary_either_way(client, served, binary_in, binary_out):
    latents, inputs = plain(served, 2, binary=binary_in)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("scores", "label")]
    right(client.infer(served.name, inputs, outputs=outputs), served, latents)


def test_one_output_in_binary_and_one_in_json(client, served):
    latents, inputs = plain(served, 2)
    outputs = [triton.InferRequestedOutput("scores", binary_data=False), triton.InferRequestedOutput("label", binary_data=True)]
    right(client.infer(served.name, inputs, outputs=outputs), served, latents)
    alone = client.infer(served.name, inputs, outputs=outputs[:1])
    assert alone.as_numpy("label") is None and len(alone.as_numpy("scores")) == 2


def test_encoded_latents_are_bytes_and_the_client_may_ask_without_waiting(client, served):
    codec = "uniform8/channel+zstd"
    encoder, latents = fit(codec, served.spec), served.latents(5)
    elements = np.array(list(encoder.encode(latents)), dtype=np.object_)
    tensor = triton.InferInput("latent", [5], "BYTES").set_data_from_numpy(elements)
    parameters = {"lb_codec": codec, "lb_shape": ",".join(map(str, served.spec.shape))}
    calls = [client.async_infer(served.name, [tensor], parameters=parameters) for _ in range(4)]
    for call in calls:
        right(call.get_result(), served, encoder.snap(latents))


def test_plain_json_as_anybody_writes_it(http, served):
    latents = served.latents(2)
    for data in (latents.tolist(), latents.ravel().tolist()):
        tensor = {"name": "latent", "shape": list(latents.shape), "datatype": "FP32", "data": data}
        answer = http.post(f"/models/{served.name}/versions/1/infer", json={"id": "1", "inputs": [tensor]})
        assert answer.status_code == 200 and answer.json()["id"] == "1"
        outputs = {output["name"]: output for output in answer.json()["outputs"]}
        scores = np.reshape(outputs["scores"]["data"], outputs["scores"]["shape"])
        np.testing.assert_allclose(scores, served.scores(latents), rtol=1e-4, atol=1e-4)
        assert outputs["label"] == {"name": "label", "datatype": "INT64", "shape": [2], "data": scores.argmax(1).tolist()}


def test_what_is_wrong_is_said_with_what_was_expected_and_a_sane_status(http, served):
    path = f"/models/{served.name}/infer"
    good = {"name": "latent", "shape": [1, *served.spec.shape], "datatype": "FP32", "data": served.latents(1).ravel().tolist()}

    def asked(*, body=None, headers=None, at=path, **changes):
        content = json.dumps({"inputs": [{**good, **changes}]}).encode() if body is None else body
        return http.post(at, content=content, headers=headers)

    assert asked().status_code == 200
    length = "Inference-Header-Content-Length"
    for answer, status, text in (
        (asked(body=b"{"), 400, "expected JSON"),
        (asked(body=b"[]"), 400, "expected an inference request"),
        (asked(body=b'{"inputs": []}'), 400, "expected one input tensor, got 0"),
        (asked(data=["a"]), 400, "expected FP32 data"),
        (asked(data=[[1], [2, 3]]), 400, "expected FP32 data"),
        (asked(data=[0.5]), 400, "that fill 4 bytes, got shape"),
        (asked(data=[1e39, *good["data"][1:]]), 400, "inf"),
        (asked(data=None), 400, "expected data or binary_data_size"),
        (asked(shape=[-1]), 400, "inputs.0.shape.0"),
        (asked(name="x"), 400, "expected the input 'latent'"),
        (asked(datatype="INT8"), 400, "expected a tensor of type FP32 or BYTES, got 'INT8'"),
        (asked(parameters={"binary_data_size": 99}), 400, "expected binary_data_size"),
        (asked(headers={length: "5"}), 400, "expected JSON"),
        (asked(headers={length: "1000000"}), 400, "expected JSON of at most"),
        (asked(headers={length: "x"}), 400, "expected a number"),
        (asked(body=b"x" * (2 << 20)), 400, "expected JSON of at most"),
        (asked(body=b"x" * (MAX_MESSAGE_BYTES + 1)), 413, "expected a body of at most"),
        (asked(at="/models/wrong/infer"), 404, "Request for unknown model"),
        (asked(at=f"/models/{served.name}/versions/2/infer"), 404, "got 'digits' version '2'"),
        (asked(headers={"latentbed-artefact": "digits@" + "0" * 64}), 412, "the client holds digits@000"),
        (asked(headers={"Content-Encoding": "br"}), 415, "gzip or deflate"),
        (asked(headers={"Content-Encoding": "gzip"}), 400, "expected a body in gzip"),
        (asked(body=gzip.compress(b"{}")[:-3], headers={"Content-Encoding": "gzip"}), 400, "cut off"),
        (http.get("/nothing"), 404, "Not Found"),
        (http.post(f"/repository/models/{served.name}/unload"), 401, "expected Authorization: Bearer"),
        (http.get("", headers={"Host": "evil.example"}), 421, "expected Host"),
    ):
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), (text, answer.text)
        assert text in answer.json()["error"]


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_decompression_bomb_is_refused_at_the_bound(http, process, served, encoding, compress):
    def peak() -> int:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid()}/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0])

    before = peak()
    bomb = compress(bytes(128 << 20), 1)
    answer = http.post(f"/models/{served.name}/infer", content=bomb, headers={"Content-Encoding": encoding})
    assert answer.status_code == 413 and "decompresses to at most" in answer.json()["error"]
    assert peak() - before < 64 << 10, "kB"
    assert http.get("/health/ready").status_code == 200


def test_load_and_unload_with_the_token(start_process, served):
    server = start_process("--grace-s", "0.2")
    token = {"Authorization": f"Bearer {(server.state / 'token').read_text().strip()}"}
    with triton.InferenceServerClient(server.control) as client:
        with pytest.raises(InferenceServerException, match="expected Authorization"):
            client.unload_model(served.name)
        client.unload_model(served.name, headers=token)
        assert not client.is_model_ready(served.name)
        with pytest.raises(InferenceServerException, match="unloaded") as gone:
            client.infer(served.name, plain(served)[1])
        assert gone.value.status() == "503"
        client.load_model(served.name, headers=token)
        latents, inputs = plain(served)
        right(client.infer(served.name, inputs), served, latents)
        with pytest.raises(InferenceServerException, match="failed to load 'wrong'"):
            client.load_model("wrong", headers=token)
        with pytest.raises(InferenceServerException, match="expected no repository name and no parameters"):
            client.load_model(served.name, config="{}", headers=token)


def test_a_request_whose_client_has_gone_is_not_computed(start_process, served):
    server = start_process("--max-queue-delay-microseconds", "2000000", "--grace-s", "0.2")
    body = {"id": "gone", "inputs": [
        {"name": "latent", "datatype": "FP32", "shape": [1, *served.spec.shape], "data": served.latents(1).ravel().tolist()},
    ]}  # fmt: skip
    with httpx.Client(base_url=f"http://{server.control}") as http:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"http://{server.control}/v2/models/{served.name}/infer", json=body, timeout=0.5)
        assert http.post(f"/v2/models/{served.name}/infer", json={**body, "id": "stays"}, timeout=20).status_code == 200
        metrics = http.get("/metrics").text
    assert [row["id"] for row in read(server.state / "server.jsonl")] == ["stays"]
    assert re.search(r'nv_inference_request_failure\{[^}]*reason="CANCELED"[^}]*\} 1\.0', metrics), metrics


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4)
)


@settings(max_examples=60, deadline=None)
@given(
    tensor=st.fixed_dictionaries(
        {"name": st.just("latent") | VALUES, "shape": st.lists(st.integers(-1, 2**40), max_size=5) | VALUES},
        optional={"datatype": st.sampled_from(["FP32", "BYTES", "FP64"]) | VALUES, "data": VALUES,
                  "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "x"]), VALUES) | VALUES},
    ),
    others=st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), VALUES),
    behind=st.binary(max_size=50),
    said=st.none() | st.integers(-1, 300),
)  # fmt: skip
def test_hostile_json_gets_a_reason(http, served, tensor, others, behind, said):
    body = json.dumps({"inputs": [tensor], **others}).encode()
    headers = {} if said is None else {"Inference-Header-Content-Length": str(said)}
    answer = http.post(f"/models/{served.name}/infer", content=body + behind, headers=headers)
    assert answer.status_code == 400 and "expected" in answer.json()["error"]
