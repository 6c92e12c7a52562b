"""Tokens: who may ask what, and how fast."""

from __future__ import annotations

import hashlib
import json

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_server.access import Access, Bucket, load_tokens
from edge_server.refusal import Refused
from splitcore.errors import SecurityError
from splitcore.wire import oip
from splitcore.wire.certificates import write_set
from splitcore.wire.tls import ClientTls, ServerTls


def entry(name, **more):
    return {"name": name, "sha256": hashlib.sha256(f"secret of {name}".encode()).hexdigest(), **more}


def bearer(name):
    return {"metadata": (("authorization", f"Bearer secret of {name}"),)}


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens.json"
    entries = [
        entry("phone"), entry("watcher", scopes=["statistics"]), entry("other", models=["another"]),
        entry("slow", rows_per_second=0.01, burst=3),
    ]  # fmt: skip
    path.write_text(json.dumps(entries))
    return path


async def status_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


async def test_a_token_opens_what_its_scopes_and_models_say_and_no_more(start_edge, served, tokens):
    edge = await start_edge(tokens=tokens)
    peer, frame, name = edge.peer, served.frame("r/phone/0"), oip.pack_model_name(served.name)
    assert (await peer.infer(frame, **bearer("phone"))).error is None
    assert [reply.error for reply in await peer.ask([frame], **bearer("phone"))] == [None]
    await peer.call(oip.MODEL_METADATA, name, **bearer("phone"))
    for who, code in ((None, "UNAUTHENTICATED"), ("stranger", "UNAUTHENTICATED"), ("watcher", "PERMISSION_DENIED")):
        options = {} if who is None else bearer(who)
        assert (await status_of(peer.infer(frame, **options))).code().name == code
        assert (await status_of(peer.call(oip.MODEL_METADATA, name, **options))).code().name == code
        [reply] = await peer.ask([frame], **options)
        assert reply.id == frame.id and reply.error.startswith(f"{code}: expected")
    refused = await status_of(peer.infer(frame, **bearer("other")))
    assert (refused.code().name, refused.details()) == (
        "PERMISSION_DENIED", f"expected a token for model {served.name!r}, that of other is for others",
    )  # fmt: skip
    # of a method that is not there nobody needs to ask whose it may be
    assert (await status_of(peer.call("ModelTrace", b"", **bearer("phone")))).code().name == "UNIMPLEMENTED"
    assert edge.logged() == ["r/phone/0"] * 2
    failures = edge.server.metrics.failures
    assert failures["UNAUTHENTICATED"] == 4 and failures["FORBIDDEN"] == 3


async def test_whether_the_server_is_well_is_for_everybody(start_edge, tokens):
    edge = await start_edge(tokens=tokens)
    await edge.peer.call(oip.LIVE)
    check = health_pb2_grpc.HealthStub(edge.peer.channel).Check(health_pb2.HealthCheckRequest())
    assert (await check).status == health_pb2.HealthCheckResponse.SERVING


async def test_who_asks_too_fast_is_told_when_to_ask_again(start_edge, served, tokens):
    edge = await start_edge(tokens=tokens)
    replies = await edge.peer.ask([served.frame(f"r/phone/{n}") for n in range(4)], **bearer("slow"))
    errors = {reply.id: reply.error for reply in replies}
    assert [errors[f"r/phone/{n}"] for n in range(3)] == [None] * 3
    assert errors["r/phone/3"].startswith("RESOURCE_EXHAUSTED: slow may ask 0.01 rows a second: ask these 1 again in ")
    refused = await status_of(edge.peer.infer(served.frame("r/phone/4"), **bearer("slow")))
    pushback = dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and 60_000 < int(pushback) <= 200_001
    assert edge.server.metrics.failures["REJECTED_RATE"] == 2


async def test_over_http_the_same_tokens_open_the_same(start_edge, served, tokens):
    edge = await start_edge(tokens=tokens)
    tensor = {"name": "latent", "datatype": "FP32", "shape": [1, *served.spec.shape]}
    body = {"inputs": [{**tensor, "data": served.latents(1).ravel().tolist()}]}
    async with httpx.AsyncClient(base_url=f"http://{edge.server.control}/v2") as http:

        async def statuses(who):
            headers = {} if who is None else {"Authorization": f"Bearer secret of {who}"}
            infer = await http.post(f"/models/{served.name}/infer", json=body, headers=headers)
            metadata = await http.get(f"/models/{served.name}", headers=headers)
            statistics = await http.get("/models/stats", headers=headers)
            return [answer.status_code for answer in (infer, metadata, statistics)]

        assert (await statuses("phone"))[:2] == [200, 200]
        assert await statuses("watcher") == [403, 403, 200]
        assert await statuses(None) == await statuses("stranger") == [401] * 3
        assert (await statuses("other"))[0] == 403
        for _ in range(3):
            await statuses("slow")
        slow = {"Authorization": "Bearer secret of slow"}
        refused = await http.post(f"/models/{served.name}/infer", json=body, headers=slow)
        assert refused.status_code == 429 and 60 < int(refused.headers["Retry-After"]) <= 201
        assert (await http.get("/health/ready")).status_code == 200


async def test_a_certificate_is_an_identity_and_so_is_a_connection(start_edge, served, tmp_path):
    write_set(tmp_path / "set", client="phone-7")
    files = tmp_path / "set"
    edge = await start_edge(
        tls=ServerTls(certificate=files / "server.pem", key=files / "server.key", client_trust=files / "ca.pem")
    )
    seen, submit = [], edge.server.batcher.submit
    edge.server.batcher.submit = lambda job: (seen.append(job.caller.identity), submit(job))[1]
    ours = ClientTls(trust=files / "ca.pem", certificate=files / "client.pem", key=files / "client.key")
    peer = type(edge.peer)(edge.server.address, ours)
    await peer.infer(served.frame("r/phone/0"))
    await peer.channel.close()
    plain = await start_edge()
    plain.server.batcher.submit, submit_plain = (
        lambda job: (seen.append(job.caller.identity), submit_plain(job))[1], plain.server.batcher.submit
    )  # fmt: skip
    await plain.peer.ask([served.frame("r/phone/0")])
    assert seen[0] == "certificate phone-7"
    assert seen[1].startswith(("ipv4:127.0.0.1:", "ipv6:"))


@settings(max_examples=100, deadline=None)
@given(asks=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 20)), max_size=60))
def test_a_bucket_gives_no_more_than_its_rate_and_burst_and_keeps_its_word(asks):
    rate, burst, now_s, given_rows, last = 5.0, 10.0, 0.0, 0, 0
    bucket = Bucket(rate, burst, 0.0)
    for pause_s, rows in asks:
        now_s += pause_s
        wait_s = bucket.take(rows, now_s)
        if wait_s:
            now_s += wait_s
            assert bucket.take(rows, now_s + 1e-6) == 0
        given_rows, last = given_rows + rows, rows
        # one that is larger than the bucket goes when it is full, and is paid back
        assert given_rows <= burst + rate * (now_s + 1e-3) + max(0, last - burst)


def test_a_file_of_tokens_that_is_wrong_is_refused_with_what_is_wrong(tmp_path):
    def load(text, name="tokens.json"):
        path = tmp_path / name
        path.write_text(text)
        return load_tokens(path)

    with pytest.raises(SecurityError, match="absent"):
        load_tokens(tmp_path / "absent.json")
    with pytest.raises(SecurityError, match="is not a list of tokens"):
        load("{")
    with pytest.raises(SecurityError, match="sha256") as error:
        load('[{"name": "a", "sha256": "my-token"}]')
    assert "my-token" not in str(error.value)  # whoever wrote the token itself there has it in no log
    with pytest.raises(SecurityError, match="different name"):
        load(json.dumps([entry("a"), entry("a")]))
    [token] = load("- {name: a, sha256: " + "a1" * 32 + ", scopes: [infer], rows_per_second: 5}", "tokens.yaml")
    assert (token.scopes, token.models, token.burst) == (("infer",), None, None)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "secret of phone", "Basic secret of phone", b"\xff"])
def test_what_is_no_bearer_token_is_refused_with_the_same_words(authorization, tokens):
    who = Access(load_tokens(tokens)).bearer(authorization)
    with pytest.raises(Refused, match="expected call metadata `authorization: Bearer <token>`"):
        who.check("infer")
