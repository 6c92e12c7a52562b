"""The adversary's process in front of servers that are none of ours, with clients that are none of ours either."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from foreign_server import SHAPE, Foreign, edge_server, served
from numpy.typing import NDArray

from splitcore.artefact import Artefact
from splitcore.control import load_token
from splitcore.head import Head
from splitcore.journal import rows_of
from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.channel import sync_channel
from testbed.nodes import NodeError, Process

Pictures = NDArray[Any]


@dataclass
class Between:
    """An adversary that has no artefact, and where its client connects."""

    relay: str
    http: httpx.Client
    token: dict[str, str]

    def put(self, **behaviour: Any) -> httpx.Response:
        return self.http.put("/behaviour", json=behaviour, headers=self.token)

    def attack(self, run: str, kind: str = "square", **rest: Any) -> httpx.Response:
        threat = {"norm": "linf", "eps": 1.0, "eps_unit": "absolute", "budget": 200, **rest.pop("threat", {})}
        return self.put(kind="attack", run=run, attack={"kind": kind}, threat=threat, **rest)

    def journal(self, what: str, run: str) -> list[dict[str, Any]]:
        return list(rows_of(self.http.get(f"/{what}", params={"run": run}).content.splitlines()))

    def sent(self, run: str, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.journal("ledger", run) if row.get("kind") == kind]


@contextlib.contextmanager
def between(upstream: str, state: Path, *options: str) -> Iterator[Between]:
    state.mkdir(parents=True, exist_ok=True)
    token = load_token(state / "token")
    process = Process("adversary", state, ["--upstream", upstream, "--token-file", str(state / "token"), *options])
    try:
        ready = process.wait_ready()
        with httpx.Client(base_url=f"http://{ready['control']}", timeout=30) as http:
            yield Between(ready["grpc"], http, {"Authorization": f"Bearer {token}"})
    finally:
        process.stop()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Foreign, Between]]:
    with (
        served(Foreign()) as foreign,
        between(foreign.target, tmp_path_factory.mktemp("shop"), "--model", "shop", "--input", "picture") as there,
    ):
        yield foreign, there


def request_of(pictures: Pictures, datatype: str = "FP32", *, frame: str = "", typed: bool = False) -> bytes:
    message = pb.ModelInferRequest(model_name="shop", id=frame)
    tensor = message.inputs.add(name="picture", datatype=datatype, shape=pictures.shape)
    gain = message.inputs.add(name="gain", datatype="FP32", shape=(len(pictures), 1))
    ones = np.ones(len(pictures), "<f4")
    if typed:
        tensor.contents.fp32_contents.extend(pictures.ravel().tolist())
        gain.contents.fp32_contents.extend(ones.tolist())
    else:
        message.raw_input_contents.extend([pictures.tobytes(), ones.tobytes()])
    return message.SerializeToString()


def call(target: str, *messages: bytes) -> list[pb.ModelInferResponse]:
    with sync_channel(target) as channel:
        infer = channel.unary_unary(oip.path(oip.INFER))
        calls = [infer.future(message, timeout=60) for message in messages]
        return [pb.ModelInferResponse.FromString(each.result()) for each in calls]


def stream(target: str, *messages: bytes) -> list[pb.ModelInferResponse]:
    with sync_channel(target) as channel:
        answers = channel.stream_stream(oip.path(oip.STREAM))(iter(messages), timeout=60)
        return [oip.split_stream_reply(answer)[0] for answer in answers]


def label(response: pb.ModelInferResponse, row: int = 0) -> int:
    likely = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(tuple(response.outputs[0].shape))
    return int(likely[row].argmax())


def number(session: dict[str, Any]) -> int:
    """In the order in which the frames came."""
    return int(session["frame"].rpartition("/")[2])


def own_labels(foreign: Foreign, pictures: Pictures) -> list[int]:
    return [int(row.argmax()) for row in foreign.likelihood(pictures, np.ones((len(pictures), 1), np.float32))]


@pytest.mark.parametrize("send", [call, stream])
@pytest.mark.parametrize("frame", ["", "the same"])
def test_frames_of_stock_clients_are_attacked_and_in_the_books_whatever_they_are_called(
    shop: tuple[Foreign, Between], send: Callable[..., list[pb.ModelInferResponse]], frame: str
) -> None:
    foreign, there = shop
    run = f"{send.__name__}{len(frame)}"
    assert there.attack(run).status_code == 200
    pictures = foreign.pictures[:6]
    asked = foreign.rows
    answers = send(there.relay, *(request_of(pictures[n : n + 1], frame=frame) for n in range(6)))
    there.put(kind="pass")
    assert [answer.id for answer in answers] == [frame] * 6
    sessions = there.journal("sessions", run)
    by_name = {session["frame"]: session for session in sessions}
    forwarded = there.sent(run, "forwarded")
    assert len(by_name) == len(forwarded) == 6
    assert all(row["client_id"] == frame for row in forwarded)
    assert sum(session["success"] for session in sessions) >= 4
    queries = sum(row["rows"] for row in there.sent(run, "query"))
    assert queries == sum(session["queries"] for session in sessions)
    assert foreign.rows - asked == queries + 6
    if send is stream:
        # a client without ids tells answers apart by their order alone
        fell = sorted(sessions, key=number)
        assert [row["id"] for row in forwarded] == [session["frame"] for session in fell]
        assert [s["label"] for s in fell] == own_labels(foreign, pictures)
        assert [label(answer) for answer in answers] == [s["predicted"] if s["success"] else s["label"] for s in fell]
    assert there.http.get("/status").json()["unaccounted"] == 0


def test_what_passes_unattacked_passes_byte_for_byte(shop: tuple[Foreign, Between]) -> None:
    foreign, there = shop
    there.put(kind="pass", run="untouched")
    message = request_of(foreign.pictures[:1])
    call(there.relay, message)
    assert foreign.requests[-1] == pb.ModelInferRequest.FromString(message)
    [row] = there.sent("untouched", "clean")
    assert row["client_id"] == "" and row["rows"] == 1


def test_typed_contents_are_attacked_as_raw_ones_are(shop: tuple[Foreign, Between]) -> None:
    foreign, there = shop
    there.attack("typed")
    [answer] = call(there.relay, request_of(foreign.pictures[:1], typed=True))
    there.put(kind="pass")
    [session] = there.journal("sessions", "typed")
    assert session["success"] and label(answer) == session["predicted"] != session["label"]
    assert not foreign.requests[-1].raw_input_contents


def test_each_row_of_a_request_is_a_sample_with_a_session_of_its_own(shop: tuple[Foreign, Between]) -> None:
    foreign, there = shop
    pictures = foreign.pictures[8:12]
    there.attack("rows")
    [answer] = call(there.relay, request_of(pictures))
    there.put(kind="pass")
    sessions = sorted(there.journal("sessions", "rows"), key=lambda session: session["frame"])
    assert [session["frame"].rpartition("#")[2] for session in sessions] == ["0", "1", "2", "3"]
    assert [session["label"] for session in sessions] == own_labels(foreign, pictures)
    [forwarded] = there.sent("rows", "forwarded")
    assert forwarded["rows"] == 4 and forwarded["why"].startswith("success")
    for row, session in enumerate(sessions):
        assert label(answer, row) == (session["predicted"] if session["success"] else session["label"])


def test_units_that_need_statistics_want_a_recording_and_take_it_from_there(shop: tuple[Foreign, Between]) -> None:
    foreign, there = shop
    for threat in ({"eps_unit": "std"}, {"eps_unit": "fraction_of_range", "eps": 0.2}, {"box": "calibrated"}):
        refused = there.attack("early", threat=threat)
        assert refused.status_code == 409 and "nobody has measured" in refused.text and "calibration" in refused.text
    there.put(kind="record", run="heard")
    call(there.relay, *(request_of(foreign.pictures[n : n + 1]) for n in range(40)))
    there.put(kind="pass")
    reply = there.attack("late", threat={"eps_unit": "std", "eps": 0.5}, calibration="heard")
    assert reply.status_code == 200, reply.text
    scale = reply.json()["scale"]
    assert scale["std"] == pytest.approx(float(foreign.pictures[:40].std()), rel=1e-5)
    assert "heard" in scale["source"]
    call(there.relay, request_of(foreign.pictures[50:51]))
    pool = {"kind": "recording", "run": "heard"}
    assert there.attack("pooled", "hopskipjump", threat={"norm": "l2", "eps_unit": "std"}, pool=pool).status_code == 200
    call(there.relay, request_of(foreign.pictures[51:52]))
    there.put(kind="pass")
    for run in ("late", "pooled"):
        [session] = there.journal("sessions", run)
        assert session["reason"] in ("success", "budget", "exhausted") and session["queries"] > 1


def test_an_insider_needs_an_artefact(shop: tuple[Foreign, Between]) -> None:
    _, there = shop
    refused = there.attack("inside", threat={"point": "latent"}, source={"kind": "artefact"})
    assert refused.status_code == 409 and "--artefact" in refused.text


@pytest.mark.parametrize("datatype", ["UINT8", "INT8", "FP16", "FP64"])
def test_each_datatype_is_moved_on_its_own_grid(datatype: str, tmp_path: Path) -> None:
    with (
        served(Foreign(datatype=datatype, gives=("class",))) as foreign,
        between(foreign.target, tmp_path, "--model", "shop", "--input", "picture") as there,
    ):
        whole = "INT" in datatype
        threat = {"eps": 30 if whole else 1.0, "eps_unit": "codec_steps" if whole else "absolute", "budget": 400}
        assert there.attack("grid", "rays", threat=threat).status_code == 200
        before = foreign.pictures[:4]
        with sync_channel(there.relay) as channel:
            for picture in before:
                channel.unary_unary(oip.path(oip.INFER))(request_of(picture[None], datatype), timeout=60)
        there.put(kind="pass")
        sessions = there.journal("sessions", "grid")
        assert sum(session["success"] for session in sessions) >= 2, sessions
        dtype = before.dtype
        sent = [np.frombuffer(r.raw_input_contents[0], dtype).reshape(SHAPE) for r in foreign.requests if not r.id]
        for was, went in zip(before.astype(np.float64), sent, strict=True):
            assert np.abs(was - went.astype(np.float64)).max() <= (30 if whole else 1.002)


def test_streams_of_mlservers_dialect_keep_their_order_and_queries_are_calls(tmp_path: Path) -> None:
    with (
        served(Foreign(dialect="mlserver", typed=True)) as foreign,
        between(foreign.target, tmp_path, "--model", "shop", "--input", "picture") as there,
    ):
        there.attack("bare")
        pictures = foreign.pictures[:5]
        answers = stream(there.relay, *(request_of(pictures[n : n + 1], frame=f"n{n}") for n in range(5)))
        there.put(kind="pass")
        sessions = there.journal("sessions", "bare")
        by_number = sorted(sessions, key=number)
        assert [session["label"] for session in by_number] == own_labels(foreign, pictures)
        given = [int(np.argmax(answer.outputs[0].contents.fp32_contents)) for answer in answers]
        assert given == [s["predicted"] if s["success"] else s["label"] for s in by_number]
        assert [row["client_id"] for row in there.sent("bare", "forwarded")] == [f"n{n}" for n in range(5)]
        assert all(row["event"] != "lost" for row in there.journal("ledger", "bare"))


def test_a_model_without_a_batch_dimension_is_asked_row_by_row(tmp_path: Path) -> None:
    with (
        served(Foreign(batched=False, dialect="unary")) as foreign,
        between(foreign.target, tmp_path, "--model", "shop", "--input", "picture") as there,
    ):
        there.attack("single")
        message = pb.ModelInferRequest(model_name="shop")
        message.inputs.add(name="picture", datatype="FP32", shape=SHAPE)
        message.raw_input_contents.append(foreign.pictures[0].tobytes())
        call(there.relay, message.SerializeToString())
        there.put(kind="pass")
        [session] = there.journal("sessions", "single")
        assert session["success"]
        assert {row["rows"] for row in there.sent("single", "query")} == {1}


def test_a_model_that_is_not_there_ends_the_start_with_its_name(tmp_path: Path) -> None:
    with served(Foreign()) as foreign:
        for options, said in (
            (["--model", "shop"], r"one input.*picture, gain"),
            ([], r"expected --artefact.* or --model"),
            (["--model", "shop", "--input", "gain", "--low", "3", "--high", "2"], r"low < high"),
        ):
            with pytest.raises(NodeError, match=said), between(foreign.target, tmp_path, *options):
                pass


@pytest.fixture(scope="module")
def edge(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Our own server, of which the adversary knows no more than its address and a model's name."""
    with edge_server(digits_artefact, tmp_path_factory.mktemp("edge")) as target:
        yield target


def test_tritonclient_is_the_phone_and_nobody_has_an_artefact(edge: str, digits_artefact: Path, tmp_path: Path) -> None:
    artefact = Artefact(digits_artefact)
    latents = Head(artefact).from_uint8(artefact.samples[0][:12])

    def inputs(n: int) -> list[triton.InferInput]:
        tensor = triton.InferInput("latent", [1, *latents.shape[1:]], "FP32")
        tensor.set_data_from_numpy(latents[n : n + 1])
        return [tensor]

    model = artefact.manifest.name
    with between(edge, tmp_path, "--model", model, "--low", "0", "--high", "4") as there:
        client = triton.InferenceServerClient(there.relay)
        assert client.is_server_live() and client.is_model_ready(model)
        clean = [int(client.infer(model, inputs(n)).as_numpy("scores").argmax()) for n in range(12)]
        assert np.mean(np.array(clean) == artefact.unsplit_labels[:12]) > 0.9
        assert there.attack("stock", threat={"eps": 0.5, "eps_unit": "fraction_of_range"}).status_code == 200
        called = [int(client.infer(model, inputs(n)).as_numpy("scores").argmax()) for n in range(6)]
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        client.start_stream(lambda result, error: answers.put(error or result))
        for n in range(6, 12):
            client.async_stream_infer(model, inputs(n))
        streamed = [int(answers.get(timeout=60).as_numpy("scores").argmax()) for n in range(6, 12)]
        client.stop_stream()
        client.close()
        there.put(kind="pass")
        sessions = there.journal("sessions", "stock")
        assert len(sessions) == 12
        fell = [was != now for was, now in zip(clean, called + streamed, strict=True)]
        assert sum(fell) == sum(session["success"] for session in sessions) > 0
        queries = sum(row["rows"] for row in there.sent("stock", "query"))
        assert queries == sum(session["queries"] for session in sessions)


def test_errors_of_the_server_reach_a_stock_client_as_they_are(edge: str, tmp_path: Path, digits_artefact: Path) -> None:
    model = Artefact(digits_artefact).manifest.name
    with between(edge, tmp_path, "--model", model) as there, sync_channel(there.relay) as channel:
        message = pb.ModelInferRequest(model_name="nobody", id="x")
        message.inputs.add(name="latent", datatype="FP32", shape=[1, 2])
        message.raw_input_contents.append(bytes(8))
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(oip.path(oip.INFER))(message.SerializeToString(), timeout=20)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
