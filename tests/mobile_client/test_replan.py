"""A phone that re-plans, a real edge server of two models, and a link that changes under the running stream."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from mobile_client.cuts import Cuts
from mobile_client.settings import Setting
from splitcore.artefact import MANIFEST, Artefact
from splitcore.errors import ArtefactError
from splitcore.journal import read

pytestmark = pytest.mark.timeout(300)  # two trainings and two processes before the first pass

WIDE, NARROW = "digits-wide", "digits-narrow"
CELL = {"rate_up_kbps": 32, "rate_down_kbps": 1000, "delay_ms": 20}
"""a frame of the wide cut takes 230 ms on it, one of the narrow cut 45 ms"""
REPLAN = {"kind": "replan", "tolerance_ms": 80}
"""what separates the cuts on a fast link is far below what a busy machine adds to a frame now and then"""


def rows(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.get(path).raise_for_status().text.splitlines()]


def wait_for(client: httpx.Client, run: str, ready: Any = lambda status: False) -> dict[str, Any]:
    """The pass's status when it has ended, or when `ready` says so."""
    while True:
        status: dict[str, Any] = client.get(f"/passes/{run}").raise_for_status().json()
        if status["state"] != "running" or ready(status):
            return status
        time.sleep(0.02)


def switches(plan: list[dict[str, Any]]) -> list[tuple[str | None, str]]:
    return [(row["from"], row["to"]) for row in plan if row["event"] == "switch"]


def check_books(frames: list[dict[str, Any]], attempts: list[dict[str, Any]], log: list[dict[str, Any]]) -> None:
    """One line an id; by (id, attempt) ledger and log agree; every sending of a frame was of one cut, which computed it."""
    assert len({row["id"] for row in frames}) == len(frames)
    events: dict[str, set[tuple[str, int]]] = {"sent": set(), "answered": set(), "lost": set()}
    cut_of = {row["id"]: row["artefact"] for row in frames}
    for row in attempts:
        assert (row["id"], row["attempt"]) not in events[row["event"]]
        events[row["event"]].add((row["id"], row["attempt"]))
        assert row["event"] != "sent" or row["artefact"] == cut_of[row["id"]]
    logged = {(row["id"], row["attempt"]): row["model"] for row in log}
    assert len(logged) == len(log)
    assert events["answered"] <= set(logged) <= events["answered"] | events["lost"]
    assert events["sent"] == events["answered"] | events["lost"]
    assert all(model == cut_of[frame] for (frame, _), model in logged.items())


@pytest.fixture
def start_edge(digits_cuts: tuple[Path, Path], tmp_path: Path, start_process: Any) -> Any:
    def start(listen: str = "127.0.0.1:0") -> Any:
        both = [text for folder in digits_cuts for text in ("--artefact", str(folder))]
        return start_process(
            "edge_server", tmp_path / "edge", *both, "--listen", listen, "--device", "cpu", "--tail", "eager", "--threads", "1"
        )

    return start


@pytest.fixture
def start_phone(digits_cuts: tuple[Path, Path], tmp_path: Path, start_process: Any) -> Any:
    def start(target: str) -> Any:
        both = [text for folder in digits_cuts for text in ("--artefact", str(folder))]
        return start_process("mobile_client", tmp_path / "phone", *both, "--target", target)

    return start


@pytest.mark.long
def test_a_running_stream_switches_when_the_link_gets_worse_and_back_and_loses_no_frame(
    tmp_path: Path, start_edge: Any, start_phone: Any
) -> None:
    phone = start_phone(start_edge().ready["grpc"])
    steps = [{"at_s": 0, "link": "lan"}, {"at_s": 2, "link": CELL}, {"at_s": 7, "link": "lan"}]
    request = {
        "run": "r", "count": 200, "load": {"kind": "server", "rate_hz": 15}, "window": 4, "policy": REPLAN,
        "link": {"kind": "steps", "steps": steps},
    }  # fmt: skip
    with phone.http() as client:
        assert client.post("/passes", json=request).status_code == 202
        assert wait_for(client, "r")["state"] == "done", client.get("/passes/r").text
        frames, attempts, plan = (rows(client, f"/passes/r/{table}") for table in ("frames", "attempts", "plan"))
    assert sorted(row["sequence"] for row in frames) == list(range(200))
    assert {(row["error"], row["attempts"]) for row in frames} == {(None, 1)}
    check_books(frames, attempts, list(read(tmp_path / "edge" / "server.jsonl")))
    profiles = {row["cut"]: row for row in plan if row["event"] == "profile"}
    assert profiles[WIDE]["bytes_up"] > profiles[NARROW]["bytes_up"] > 0
    assert profiles[WIDE]["head_ms"] > 0 < profiles[NARROW]["head_ms"]
    made = switches(plan)
    assert made[0] == (None, WIDE)
    assert (WIDE, NARROW) in made and (NARROW, WIDE) in made[made.index((WIDE, NARROW)) :]
    first = plan[[row.get("to") for row in plan].index(NARROW)]
    assert first["predicted_ms"][NARROW] + 80 < first["predicted_ms"][WIDE]
    assert first["rate_up_kbps"] > 0 < first["round_trip_ms"]
    # the frames' own lines tell the same: each went through the cut that was the present one when it was made
    order = [row["artefact"] for row in sorted(frames, key=lambda row: row["sequence"])]
    assert [cut for n, cut in enumerate(order) if n == 0 or order[n - 1] != cut] == [to for _, to in made]
    assert phone.end() == 0


@pytest.mark.long
def test_an_edge_that_is_killed_while_frames_of_two_cuts_are_out_leaves_one_line_an_id(
    tmp_path: Path, start_edge: Any, start_phone: Any
) -> None:
    edge = start_edge()
    phone = start_phone(edge.ready["grpc"])
    request = {
        "run": "r", "count": 200, "load": {"kind": "server", "rate_hz": 30}, "window": 12, "policy": REPLAN,
        "link": {"kind": "steps", "steps": [{"at_s": 0, "link": "lan"}, {"at_s": 1, "link": CELL}]},
    }  # fmt: skip
    with phone.http() as client:
        assert client.post("/passes", json=request).status_code == 202
        # the slow line is full of frames of the wide cut when the phone goes over to the narrow one
        wait_for(client, "r", lambda status: switches(rows(client, "/passes/r/plan"))[1:] == [(WIDE, NARROW)])
        wait_for(client, "r", lambda status: out(client) == {WIDE, NARROW})
        edge.popen.send_signal(signal.SIGSTOP)
        held = out(client)
        edge.kill()
        start_edge(edge.ready["grpc"])
        status = wait_for(client, "r")
        assert (status["state"], status["done"]) == ("done", 200), status
        frames, attempts = (rows(client, f"/passes/r/{table}") for table in ("frames", "attempts"))
    assert held == {WIDE, NARROW}
    assert sorted(row["sequence"] for row in frames) == list(range(200))
    assert {row["error"] for row in frames} == {None}
    assert {row["artefact"] for row in frames if row["attempts"] > 1} == {WIDE, NARROW}
    check_books(frames, attempts, list(read(tmp_path / "edge" / "server.jsonl")))


def out(client: httpx.Client) -> set[str]:
    """The cuts of the frames that are sent and not answered."""
    cuts: dict[str, str] = {}
    for row in rows(client, "/passes/r/attempts"):
        if row["event"] == "sent":
            cuts[row["id"]] = row["artefact"]
        else:
            cuts.pop(row["id"])
    return set(cuts.values())


@pytest.mark.long
def test_a_killed_phone_sends_what_it_had_sent_through_the_same_cut_again(
    tmp_path: Path, start_edge: Any, start_phone: Any
) -> None:
    target = start_edge().ready["grpc"]
    # all frames at once over a slow line: some are out, through the wide cut, when the phone dies
    request = {"run": "r", "count": 60, "load": {"kind": "offline"}, "window": 12, "link": CELL, "policy": REPLAN}
    phone = start_phone(target)
    with phone.http() as client:
        client.post("/passes", json=request)
        status = wait_for(client, "r", lambda status: len(switches(rows(client, "/passes/r/plan"))) > 1)
        assert status["state"] == "running"
        phone.kill()
    phone = start_phone(target)
    with phone.http() as client:
        client.post("/passes", json=request)
        assert wait_for(client, "r")["state"] == "done"
    assert phone.end() == 0
    folder = tmp_path / "phone" / "passes" / "r"
    frames, attempts, plan = (list(read(folder / f"{table}.jsonl")) for table in ("frames", "attempts", "plan"))
    assert sorted(row["sequence"] for row in frames) == list(range(60))
    check_books(frames, attempts, list(read(tmp_path / "edge" / "server.jsonl")))
    assert any(row["attempts"] > 1 for row in frames)
    assert [to for begun, to in switches(plan) if begun is None] == [WIDE, WIDE]


def test_a_fixed_pass_uses_the_cut_that_it_names_and_an_unknown_one_is_refused_in_words(
    tmp_path: Path, start_edge: Any, start_phone: Any
) -> None:
    phone = start_phone(start_edge().ready["grpc"])
    with phone.http() as client:
        for run, policy, cut in (
            ("plain", {"kind": "fixed"}, WIDE), ("named", {"kind": "fixed", "artefact": NARROW}, NARROW),
        ):  # fmt: skip
            client.post("/passes", json={"run": run, "count": 5, "policy": policy})
            assert wait_for(client, run)["state"] == "done"
            assert {row["artefact"] for row in rows(client, f"/passes/{run}/frames")} == {cut}
            assert rows(client, f"/passes/{run}/plan") == []
        client.post("/passes", json={"run": "third", "count": 5, "policy": {"kind": "fixed", "artefact": "third"}})
        status = wait_for(client, "third")
        assert status["state"] == "failed"
        assert f"expected a policy with one of the artefacts ['{WIDE}', '{NARROW}'], got 'third'" in status["error"]


def test_an_edge_that_lacks_one_of_the_cuts_is_told_before_the_first_frame(
    digits_cuts: tuple[Path, Path], tmp_path: Path, start_process: Any, start_phone: Any
) -> None:
    edge = start_process(
        "edge_server",
        tmp_path / "edge",
        "--artefact",
        str(digits_cuts[0]),
        "--device",
        "cpu",
        "--tail",
        "eager",
        "--threads",
        "1",
    )
    phone = start_phone(edge.ready["grpc"])
    with phone.http() as client:
        client.post("/passes", json={"run": "r", "count": 5, "policy": REPLAN})
        status = wait_for(client, "r")
        assert status["state"] == "failed" and rows(client, "/passes/r/attempts") == []
        for folder in digits_cuts:
            assert Artefact(folder).manifest.handshake in status["error"]


def test_cuts_of_different_tasks_are_refused_in_words(digits_cuts: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(digits_cuts[1], other)
    manifest = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(json.dumps(manifest | {"preprocessing": "upside down"}))
    with pytest.raises(ArtefactError, match=f"for the same images and classes, got {WIDE} with preprocessing"):
        Cuts((digits_cuts[0], other), Setting())
    with pytest.raises(ArtefactError, match="expected artefacts of different names"):
        Cuts((digits_cuts[0], digits_cuts[0]), Setting())
