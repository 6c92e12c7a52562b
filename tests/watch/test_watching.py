"""Three nodes under an attack, watched: one trace a frame, metrics that Prometheus reads, and the live pages' data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from otlp import Receiver
from prometheus_client.parser import text_string_to_metric_families
from trio import Trio, trio

FRAMES, RUN = 12, "watched"
CALL = "inference.GRPCInferenceService/ModelStreamInfer"
ATTACK = {
    "kind": "attack", "run": RUN, "attack": {"kind": "square"}, "in_flight": 4,
    "threat": {"norm": "linf", "eps": 2.0, "eps_unit": "std", "budget": 60},
}  # fmt: skip


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    taking = Receiver()
    yield taking
    taking.close()


@pytest.fixture(scope="module")
def watched(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Trio]:
    """After an attacked pass of which every frame was traced."""
    options = {"all": ["--trace-endpoint", receiver.endpoint], "client": ["--trace-rate", "1"]}
    with trio(digits_artefact, tmp_path_factory.mktemp("watched"), options=options) as nodes:
        nodes.behave(**ATTACK)
        assert len(nodes.passed(RUN, FRAMES, window=6, load={"kind": "offline"})) == FRAMES
        nodes.behave(kind="pass")
        yield nodes


@pytest.fixture(scope="module")
def spans(watched: Trio, receiver: Receiver) -> list[dict[str, Any]]:
    def whole(seen: list[dict[str, Any]]) -> bool:
        ends = {"frame": FRAMES, "relay": FRAMES, "attack session": FRAMES}
        edges = sum(
            span["name"] == "edge" and span["attributes"]["latentbed.frame"].startswith(f"{RUN}/client/") for span in seen
        )
        return edges >= FRAMES and all(sum(span["name"] == name for span in seen) >= n for name, n in ends.items())

    return receiver.until(whole)


def of_frame(spans: list[dict[str, Any]], sequence: int) -> dict[str, dict[str, Any]]:
    """By name; no name comes twice in the trace of a frame that was sent once."""
    root = next(s for s in spans if s["name"] == "frame" and s["attributes"]["latentbed.frame"] == f"{RUN}/client/{sequence}")
    members = [span for span in spans if span["trace"] == root["trace"]]
    assert len({span["name"] for span in members}) == len(members)
    return {span["name"]: span for span in members}


@pytest.mark.parametrize("sequence", [0, FRAMES - 1])
def test_one_frame_is_one_trace_from_the_phone_through_the_relay_to_the_edge(
    spans: list[dict[str, Any]], sequence: int
) -> None:
    trace = of_frame(spans, sequence)
    parents = {
        "head": "frame", "encode": "frame", CALL: "frame", "relay": CALL, "hold": "relay", "attack session": "relay",
        "edge": "relay", "queue": "edge", "compute input": "edge", "compute infer": "edge", "compute output": "edge",
    }  # fmt: skip
    assert set(trace) == {"frame", *parents}
    assert trace["frame"]["parent"] == ""
    assert {name: trace[name]["parent"] for name in parents} == {name: trace[above]["span"] for name, above in parents.items()}
    services = {name: trace[name]["service"] for name in ("frame", "relay", "attack session", "edge", "queue")}
    assert list(services.values()) == [f"latentbed.{node}" for node in ("client", "adversary", "adversary", "edge", "edge")]
    assert (trace[CALL]["kind"], trace["relay"]["kind"], trace["edge"]["kind"]) == (3, 2, 2)  # client, server, server


def test_a_trace_has_tritons_timestamps_and_times_that_fit_into_one_another(spans: list[dict[str, Any]]) -> None:
    trace = of_frame(spans, 3)
    assert trace["edge"]["events"] == [
        "REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END",
        "REQUEST_END",
    ]  # fmt: skip
    slack_ns = 5_000_000  # each process has its own view of the wall clock's distance from the monotonic one
    began = {"head": "frame", CALL: "frame", "relay": CALL, "hold": "relay", "edge": "relay", "queue": "edge"}
    for inner, outer in began.items():
        assert trace[outer]["start"] - slack_ns <= trace[inner]["start"] <= trace[inner]["end"], (inner, outer)
    # an answer may be with its reader before its writer's process has the processor again, so an edge's end may be later
    for inner, outer in {"head": "frame", "hold": "relay", "compute infer": "relay", "queue": "edge"}.items():
        assert trace[inner]["end"] <= trace[outer]["end"] + slack_ns, (inner, outer)


def test_queries_are_traces_of_their_own_linked_to_the_sessions_that_asked(spans: list[dict[str, Any]], watched: Trio) -> None:
    sessions = {(span["trace"], span["span"]): span for span in spans if span["name"] == "attack session"}
    queries = [span for span in spans if span["name"] == "query"]
    assert queries and all(query["links"] and set(query["links"]) <= set(sessions) for query in queries)
    assert {link for query in queries for link in query["links"]} == set(sessions)
    assert sum(query["attributes"]["latentbed.rows"] for query in queries) == watched.get("adversary", "/status").json()[
        "ledger"]["query"]  # fmt: skip
    below = [span for span in spans if span["name"] == "edge" and span["parent"] == queries[0]["span"]]
    assert [span["trace"] for span in below] == [queries[0]["trace"]]
    told = sessions[queries[0]["links"][0]]["attributes"]
    assert told["latentbed.attack"] == "square" and 1 <= told["latentbed.queries"] <= 60


def families(watched: Trio, node: str) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, as Python's reader calls them: values by labels, in the order of their names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(watched.get(node, "/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_the_edge_tells_what_tritons_dashboards_ask_for(watched: Trio) -> None:
    text = watched.get("edge", "/metrics").text
    for name in ("nv_inference_request_success", "nv_inference_count", "nv_inference_queue_duration_us"):
        assert f"# TYPE {name} counter\n" in text and f'\n{name}{{model="digits",version="1"}} ' in text
    metrics = families(watched, "edge")
    rows = watched.get("adversary", "/status").json()["ledger"]
    assert metrics["nv_inference_count_total"][("digits", "1")] == rows["query"] + FRAMES
    success = metrics["nv_inference_request_success_total"][("digits", "1")]
    assert metrics["latentbed_request_latency_seconds_count"][("digits", "1")] == success
    parts = sum(metrics[f"nv_inference_{part}_duration_us_total"][("digits", "1")]
                for part in ("queue", "compute_input", "compute_infer", "compute_output"))  # fmt: skip
    assert parts == pytest.approx(metrics["nv_inference_request_duration_us_total"][("digits", "1")], rel=1e-6)
    reasons = {labels[2] for labels in metrics["nv_inference_request_failure_total"]}
    assert reasons == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}
    assert metrics["nv_model_load_duration_secs"][("digits", "1")] > 0


@pytest.mark.parametrize(
    "node, side", [("edge", "server"), ("adversary", "server"), ("adversary", "client"), ("client", "client")]
)
def test_every_node_counts_its_grpc_calls_and_its_own_process(watched: Trio, node: str, side: str) -> None:
    metrics = families(watched, node)
    stream = ("ModelStreamInfer", "inference.GRPCInferenceService", "bidi_stream")
    assert metrics[f"grpc_{side}_started_total"][stream] >= 1
    assert metrics[f"grpc_{side}_msg_received_total"][stream] >= (FRAMES if node != "adversary" else 1)
    assert metrics[f"grpc_{side}_msg_sent_bytes_total"][stream] > 100 * metrics[f"grpc_{side}_msg_sent_total"][stream] / 2
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_threads"):
        assert metrics[name][()] > 0
    assert metrics["latentbed_trace_spans_dropped_total"][()] == 0 < metrics["latentbed_trace_spans_exported_total"][()]


def test_adversary_and_phone_tell_success_and_accuracy(watched: Trio) -> None:
    adversary, phone = families(watched, "adversary"), families(watched, "client")
    sessions = adversary["latentbed_adversary_sessions_total"]
    assert sum(sessions.values()) == FRAMES
    assert adversary["latentbed_adversary_queries_to_success_count"][()] == sessions[("success",)]
    assert adversary["latentbed_adversary_hold_seconds_count"][()] == FRAMES
    assert adversary["latentbed_relay_added_seconds_count"][("request",)] == FRAMES
    assert phone["latentbed_phone_frames_total"][("answered",)] == FRAMES == phone["latentbed_phone_latency_seconds_count"][()]
    assert phone["latentbed_phone_correct_total"][()] <= FRAMES - sessions[("success",)] + 2
    assert phone["latentbed_phone_in_flight"][()] == 0


@pytest.mark.parametrize("node", ["edge", "adversary", "client"])
def test_the_live_page_needs_nothing_else_and_may_do_nothing_else(watched: Trio, node: str) -> None:
    for path in ("/", "/live"):
        page = watched.get(node, path)
        assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in page.text
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    token = watched.nodes[node].token
    view = watched.get(node, "/live.json").json()
    assert view["tiles"] and view["charts"] and view["tables"] and token not in str(view)
    for chart in view["charts"]:
        across = chart["labels"] if chart["kind"] == "bars" else chart["x"]
        assert all(len(series["y"]) == len(across) for series in chart["series"]), chart["title"]


def test_the_adversarys_page_shows_the_curve_of_its_run(watched: Trio) -> None:
    view = watched.get("adversary", "/live.json").json()
    [curve] = [chart for chart in view["charts"] if chart["kind"] == "steps"]
    x, y = curve["x"], curve["series"][0]["y"]
    assert x == sorted(x) and y == sorted(y) and 0 < y[-1] <= 1 and x[-1] <= 60
    assert next(tile for tile in view["tiles"] if tile["what"] == "Success so far")["note"].endswith(f"of {FRAMES} sessions")
