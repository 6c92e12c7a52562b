"""The control plane of a real server process, by hand and by schemathesis."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.specs.openapi.checks import positive_data_acceptance

from splitcore.journal import rows_of
from splitcore.wire import oip

from .conftest import Peer


@pytest.fixture
def http(process):
    with httpx.Client(base_url=f"http://{process.control}") as client:
        yield client


async def test_the_metrics_carry_tritons_names_and_count_what_was_asked(http, process, served):
    peer = Peer(process.grpc)

    def values() -> dict[str, float]:
        families = text_string_to_metric_families(http.get("/metrics").text)
        return {
            # Python's reader appends to counters what Triton's names have not; Prometheus reads them as they are
            f"{sample.name.removesuffix('_total')}{sample.labels.get('detail', '')}": sample.value
            for family in families
            for sample in family.samples
            if "le" not in sample.labels
        }

    before = values()
    await peer.ask([served.frame("m/a/1", served.latents(7)), served.frame("m/a/2"), served.frame("m/a/3", model="another")])
    after = values()
    await peer.channel.close()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("nv_inference_request_success") == 2
    assert grown("nv_inference_count") == 8
    assert 1 <= grown("nv_inference_exec_count") <= 2
    assert grown("nv_inference_request_failureINVALID") == 1
    assert grown("nv_inference_request_duration_us") >= grown("nv_inference_queue_duration_us") > 0
    assert grown("latentbed_request_latency_seconds_count") == 2
    assert after["nv_inference_pending_request_count"] == 0


def test_models_say_what_is_served_and_how_it_is_batched(http, served):
    [model] = http.get("/models").json()["models"]
    manifest = served.artefact.manifest
    assert (model["name"], model["digest"], model["handshake"]) == (manifest.name, manifest.digest, manifest.handshake)
    assert tuple(model["latent_shape"]) == served.spec.shape and model["device"] == "cpu" and model["ready"]
    assert model["batching"]["max_batch_size"] == 64


def test_a_server_that_answers_is_healthy_and_ready(http):
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert ready.status_code == 200 and ready.json() == {"ready": True, "reason": ""}


async def test_a_server_that_drains_is_alive_but_not_ready(edge):
    edge.server.service.draining = True
    async with httpx.AsyncClient(base_url=f"http://{edge.server.control}") as client:
        ready = await client.get("/readyz")
        assert ready.status_code == 503 and ready.json() == {"ready": False, "reason": "draining"}
        assert (await client.get("/healthz")).status_code == 200


async def test_the_log_of_a_run_is_that_runs_alone(http, process, served):
    peer = Peer(process.grpc)
    await peer.ask([served.frame(f"{run}/phone/1") for run in ("one", "one2", "two")])
    await peer.channel.close()
    assert [row["id"] for row in rows_of(http.get("/log", params={"run": "one"}).iter_lines())] == ["one/phone/1"]
    assert http.get("/log", params={"run": "never"}).content == b""
    assert http.get("/log", params={"run": "a/b"}).status_code == 422


def test_another_site_is_refused(http):
    assert http.get("/models", headers={"Host": "evil.example"}).status_code == 421
    assert http.get("/models", headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.fixture(scope="module")
def operations(process):
    schema = schemathesis.openapi.from_url(f"http://{process.control}/openapi.json")
    return [operation.ok() for operation in schema.get_all_operations()]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_the_control_plane_keeps_to_its_schema_whatever_it_is_asked(data, operations):
    operation = data.draw(st.sampled_from(operations))
    # a schema cannot say that a tensor has as many numbers as its shape
    beyond = [positive_data_acceptance] if operation.path.endswith("/infer") else []
    data.draw(operation.as_strategy()).call_and_validate(excluded_checks=beyond)


def test_live_means_the_process_answers_over_grpc_too(process):
    import grpc

    with grpc.insecure_channel(process.grpc) as channel:
        assert channel.unary_unary(oip.path(oip.LIVE))(b"") == oip.pack_flag(oip.LIVE, True)
