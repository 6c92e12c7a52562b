"""The adversary's process through its control API: by hand, and by schemathesis."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.specs.openapi.checks import allow_header_conformance, positive_data_acceptance

from adversary.session import Outcome
from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.control import load_token
from splitcore.frame import Frame, Reply
from splitcore.head import Head
from splitcore.journal import read, rows_of
from splitcore.wire import oip
from splitcore.wire.channel import sync_channel
from testbed.nodes import NodeError, Process
from testbed.report.reconcile import asked_of, entries_of, reconcile, server_rows_of

SQUARE = {"kind": "attack", "attack": {"kind": "square"}, "threat": {"norm": "linf", "eps": 0.5, "budget": 150}}

ENDLESS = {"norm": "linf", "eps": 1, "eps_unit": "codec_steps", "budget": 1_000_000}
"""one step of eight bits turns none of these frames"""


@dataclass
class Between:
    """An edge server and an adversary in front of it."""

    artefact: Artefact
    relay: str
    http: httpx.Client
    token: dict[str, str]
    state: Path
    """of the adversary"""

    def put(self, behaviour: dict[str, Any]) -> httpx.Response:
        return self.http.put("/behaviour", json=behaviour, headers=self.token)

    def infer(self, frame_id: str, sample: int, **fields: Any) -> Reply:
        codec = fit(self.artefact.manifest.codec, self.artefact.latent)
        images, _ = self.artefact.samples
        payloads = codec.encode(Head(self.artefact).from_uint8(images[sample : sample + 1]))
        frame = Frame(id=frame_id, payloads=tuple(payloads), codec=codec.name, shape=self.artefact.latent.shape, **fields)
        with sync_channel(self.relay) as channel:
            return oip.unpack_reply(channel.unary_unary(oip.path(oip.INFER))(oip.pack_request(frame), timeout=30))


@pytest.fixture(scope="module")
def between(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Between]:
    states = tmp_path_factory.mktemp("between")
    token = load_token(states / "token")
    common = ["--artefact", str(digits_artefact), "--token-file", str(states / "token")]
    with contextlib.ExitStack() as stopping:
        edge = Process("edge_server", states / "edge", [*common, "--device", "cpu", "--tail", "eager", "--threads", "1"])
        stopping.callback(edge.stop)
        adversary = Process("adversary", states / "adversary", [*common, "--upstream", edge.wait_ready()["grpc"]])
        stopping.callback(adversary.stop)
        ready = adversary.wait_ready()
        http = stopping.enter_context(httpx.Client(base_url=f"http://{ready['control']}", timeout=30))
        yield Between(Artefact(digits_artefact), ready["grpc"], http, {"Authorization": f"Bearer {token}"}, adversary.state)


def test_what_it_does_changes_while_it_runs_and_only_with_the_token(between: Between) -> None:
    assert between.http.put("/behaviour", json={"kind": "pass"}).status_code == 401
    assert between.put({**SQUARE, "run": "one"}).status_code == 200
    assert between.http.get("/behaviour").json()["attack"]["kind"] == "square"
    attacked = between.infer("one/phone/0", 0)
    assert between.put({"kind": "pass"}).status_code == 200
    clean = between.infer("one/phone/1", 0)
    assert clean.label == int(between.artefact.unsplit_labels[0])
    [session] = rows_of(between.http.get("/sessions", params={"run": "one"}).content.splitlines())
    assert session["frame"] == "one/phone/0"
    assert session["success"] == (attacked.label != clean.label)
    rows = list(rows_of(between.http.get("/ledger", params={"run": "one"}).content.splitlines()))
    forwarded = [row for row in rows if row.get("kind") == "forwarded"]
    assert [row["id"] for row in forwarded] == ["one/phone/0"]
    assert sum(row["rows"] for row in rows if row.get("kind") == "query") == session["queries"] <= 150


def test_a_frame_that_is_sent_again_gets_what_its_session_came_to_and_asks_nothing_new(between: Between) -> None:
    between.put({**SQUARE, "run": "again"})
    first = between.infer("again/phone/0", 3)
    second = between.infer("again/phone/0", 3, attempt=2)
    between.put({"kind": "pass"})
    assert first.label == second.label
    assert len(list(rows_of(between.http.get("/sessions", params={"run": "again"}).content.splitlines()))) == 1


def test_a_frame_with_a_deadline_is_let_go_in_time(between: Between) -> None:
    between.put(
        {
            **SQUARE,
            "run": "late",
            "threat": {"norm": "linf", "eps": 1, "eps_unit": "codec_steps", "budget": 1_000_000, "deadline_ms": 100},
        }
    )
    reply = between.infer("late/phone/0", 3)
    between.put({"kind": "pass"})
    [session] = rows_of(between.http.get("/sessions", params={"run": "late"}).content.splitlines())
    assert (session["reason"], session["success"], session["payload"]) == ("deadline", False, None)
    assert reply.label == int(between.artefact.unsplit_labels[3])


def test_the_frames_own_deadline_bounds_the_hold_too(between: Between) -> None:
    between.put({**SQUARE, "run": "own", "threat": ENDLESS})
    between.infer("own/phone/0", 3, timeout_us=500_000)
    between.put({"kind": "pass"})
    [session] = rows_of(between.http.get("/sessions", params={"run": "own"}).content.splitlines())
    assert session["reason"] == "deadline"


def test_a_frame_of_another_model_passes_as_it_is_and_is_in_the_books(between: Between) -> None:
    for run, behaviour in (("foreign", SQUARE), ("foreign-record", {"kind": "record"})):
        between.put({**behaviour, "run": run})
        with pytest.raises(grpc.RpcError) as refused:
            between.infer(f"{run}/phone/0", 3, model="another")
        # the server's own words: it was asked for that model, and nobody attacked or kept the frame
        assert "got 'another'" in refused.value.details()
        between.infer(f"{run}/phone/1", 3, model=between.artefact.manifest.name)
        between.put({"kind": "pass"})
        rows = list(rows_of(between.http.get("/ledger", params={"run": run}).content.splitlines()))
        passed = {row["id"]: row["why"] for row in rows if row.get("kind") != "query" and row["event"] == "sent"}
        assert passed[f"{run}/phone/0"] == "foreign" != passed[f"{run}/phone/1"]
        events = [row["event"] for row in rows if row["id"] == f"{run}/phone/0"]
        assert events == ["sent", "lost"]
    [session] = rows_of(between.http.get("/sessions", params={"run": "foreign"}).content.splitlines())
    assert session["frame"] == "foreign/phone/1"
    recorded = [row["id"] for row in read(between.state / "recorded" / "foreign-record.jsonl")]
    assert recorded == ["foreign-record/phone/1"] * 2


def test_over_the_bound_the_original_goes_on_at_once_and_is_counted(between: Between) -> None:
    between.put({**SQUARE, "run": "full", "max_held_bytes": 1})
    reply = between.infer("full/phone/0", 3)
    between.put({"kind": "pass"})
    [session] = rows_of(between.http.get("/sessions", params={"run": "full"}).content.splitlines())
    assert (session["reason"], session["queries"]) == ("full", 0)
    [row] = [row for row in rows_of(between.http.get("/ledger", params={"run": "full"}).content.splitlines()) if "why" in row]
    assert (row["kind"], row["why"]) == ("forwarded", "full")
    assert reply.label == int(between.artefact.unsplit_labels[3])


def test_an_insider_with_the_wrong_sample_is_an_error_and_the_frame_goes_on(between: Between) -> None:
    between.put(
        {
            **SQUARE, "run": "insider", "source": {"kind": "artefact"},
            "threat": {"point": "input", "norm": "linf", "eps": 0.1, "eps_unit": "absolute", "budget": 50},
        }
    )  # fmt: skip
    between.infer("insider/phone/7", 3)  # frame 7 shows sample 3: not what the insider knows
    between.infer("insider/phone/4", 4)
    between.put({"kind": "pass"})
    sessions = {
        row["frame"]: row for row in rows_of(between.http.get("/sessions", params={"run": "insider"}).content.splitlines())
    }
    assert sessions["insider/phone/7"]["reason"] == "error"
    assert "insider's sample" in sessions["insider/phone/7"]["error"]
    assert sessions["insider/phone/4"]["reason"] in ("success", "budget")


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ({"kind": "attack", "run": "x", "attack": {"kind": "rays"}, "threat": {"norm": "l2"}}, "norms linf, got l2"),
        ({"kind": "attack", "run": "x", "attack": {"kind": "square"}, "threat": {"point": "input"}}, "expected `source`"),
        ({"kind": "attack", "run": "x", "attack": {"kind": "square", "p": 1}}, "p"),
        ({"kind": "attack", "run": "../x", "attack": {"kind": "square"}}, "run"),
        ({"kind": "dance"}, "dance"),
    ],
)
def test_a_behaviour_that_cannot_be_is_refused_with_what_is_wrong(
    between: Between, behaviour: dict[str, Any], text: str
) -> None:
    answer = between.put(behaviour)
    assert answer.status_code == 422
    assert text in answer.text


def test_the_metrics_count_rows_by_kind(between: Between) -> None:
    families = {family.name: family for family in text_string_to_metric_families(between.http.get("/metrics").text)}
    kinds = {sample.labels["kind"] for sample in families["latentbed_adversary_rows"].samples}
    assert kinds == {"query", "forwarded", "clean"}


@pytest.mark.parametrize("upstream", ["8.8.8.8:443", "[2001:4860:4860::8888]:443"])
def test_a_public_address_is_no_target(upstream: str, digits_artefact: Path, tmp_path: Path) -> None:
    process = Process("adversary", tmp_path, ["--artefact", str(digits_artefact), "--upstream", upstream])
    with pytest.raises(NodeError, match="--allow"):
        process.wait_ready()
    assert process.stop() == 1


def test_a_public_address_that_was_allowed_by_name_is_a_target(digits_artefact: Path, tmp_path: Path) -> None:
    arguments = ["--artefact", str(digits_artefact), "--upstream", "192.0.2.7:443", "--allow", "192.0.2.7"]
    process = Process("adversary", tmp_path, arguments)
    assert process.wait_ready()["grpc"]
    assert process.stop() == 0


@pytest.fixture(scope="module")
def operations(between: Between) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{between.http.base_url}/openapi.json")
    return [operation.ok() for operation in schema.get_all_operations()]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_control_plane_keeps_to_its_schema_whatever_it_is_asked(data: Any, operations: list[Any], between: Between) -> None:
    operation = data.draw(st.sampled_from(operations))
    data.draw(operation.as_strategy()).call_and_validate(
        headers=between.token, excluded_checks=[allow_header_conformance, positive_data_acceptance]
    )


def test_the_frames_still_pass_after_all_that(between: Between) -> None:
    between.put({"kind": "pass"})
    labels = [between.infer(f"after/phone/{n}", n).label for n in range(20)]
    assert np.mean(labels == between.artefact.unsplit_labels[:20]) == 1.0


@pytest.mark.parametrize("order", ["overtake", "keep"])
def test_frames_that_are_held_when_the_behaviour_changes_go_on_and_no_more_are_held_than_allowed(
    between: Between, order: str
) -> None:
    run = f"many-{order}"
    between.put({**SQUARE, "run": run, "threat": ENDLESS, "order": order, "max_held": 5})
    codec = fit(between.artefact.manifest.codec, between.artefact.latent)
    payloads = codec.encode(Head(between.artefact).from_uint8(between.artefact.samples[0][:20]))
    frames = [
        Frame(id=f"{run}/phone/{n}", payloads=(payload,), codec=codec.name, shape=codec.latent.shape)
        for n, payload in enumerate(payloads)
    ]
    with sync_channel(between.relay) as channel:
        replies = channel.stream_stream(oip.path(oip.STREAM))(iter([oip.pack_request(frame) for frame in frames]))
        while between.http.get("/status").json()["sessions"].get("full", 0) < 15:
            assert between.http.get("/status").json()["held_now"] <= 5
        between.put({"kind": "pass"})
        assert {oip.unpack_stream_reply(reply).id for reply in replies} == {frame.id for frame in frames}
    sessions = list(rows_of(between.http.get("/sessions", params={"run": run}).content.splitlines()))
    assert sorted(session["reason"] for session in sessions) == ["error"] * 5 + ["full"] * 15


@pytest.mark.long
def test_an_adversary_that_was_killed_goes_on_with_its_sessions(digits_artefact: Path, tmp_path: Path) -> None:
    """The frame comes again after SIGKILL: its session has asked no query twice, and its budget is the one it had."""
    threat = {"norm": "l2", "eps": 1e-6, "eps_unit": "std", "budget": 6000}
    behaviour = {"kind": "attack", "attack": {"kind": "hopskipjump"}, "threat": threat, "run": "killed", "sections": 2}
    common = ["--artefact", str(digits_artefact)]
    with contextlib.ExitStack() as stopping:
        edge = Process("edge_server", tmp_path / "edge", [*common, "--device", "cpu", "--tail", "eager", "--threads", "1"])
        stopping.callback(edge.stop)
        target = edge.wait_ready()["grpc"]
        ledger = tmp_path / "adversary" / "queries.jsonl"
        asked: list[int] = []
        for life in range(3):
            adversary = Process("adversary", tmp_path / "adversary", [*common, "--upstream", target])
            stopping.callback(adversary.stop)
            ready = adversary.wait_ready()
            token = {"Authorization": f"Bearer {load_token(tmp_path / 'adversary' / 'token')}"}
            with httpx.Client(base_url=f"http://{ready['control']}", timeout=30) as http:
                there = Between(Artefact(digits_artefact), ready["grpc"], http, token, adversary.state)
                assert there.put(behaviour).status_code == 200
                with concurrent.futures.ThreadPoolExecutor() as threads:
                    reply = threads.submit(there.infer, "killed/phone/0", 3, attempt=life + 1)
                    if life < 2:
                        more = sum(asked) + 400
                        while sum(row.get("rows", 0) for row in read(ledger)) < more:
                            assert not reply.done()
                            time.sleep(0.01)
                        os.kill(adversary.popen.pid, signal.SIGKILL)
                        with pytest.raises(grpc.RpcError):
                            reply.result()
                        asked.append(400)
                    else:
                        assert reply.result().label == int(there.artefact.unsplit_labels[3])
                there.put({"kind": "pass"}) if life == 2 else None
        entries = entries_of(read(ledger))
        log = server_rows_of(read(tmp_path / "edge" / "server.jsonl"))
        sessions = [Outcome(**row) for row in read(tmp_path / "adversary" / "sessions" / "killed.jsonl")]
        _, wrong = reconcile(entries, log, sessions, budget=6000)
        assert wrong == []
        assert [(session.reason, session.queries) for session in sessions] == [("budget", 6000)]
        assert asked_of(entries)["killed/phone/0"] == 6000
