"""Sealed frames against a real edge server: what it computes, and that it refuses all else with the same words."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import sys

import grpc
import pytest

from edge_server.seals import EPOCH_S, MAX_CONVERSATIONS, NotOpened, Seals
from splitcore.frame import Reply
from splitcore.journal import read
from splitcore.wire import oip
from splitcore.wire.certificates import write_set
from splitcore.wire.envelope import ClientCalls, ClientStream, pack_envelope, unpack_envelope
from splitcore.wire.sealing import load_key, make_key
from splitcore.wire.tls import ServerTls

KEY = bytes(range(32))
REFUSED = "UNAUTHENTICATED: expected a frame that was sealed for this place with this server's key"


@pytest.fixture
async def sealed_edge(start_edge):
    return await start_edge(seal_key=KEY, require_seal=True)


class Conversation:
    """A stream with a seal, message by message."""

    def __init__(self, peer, key=KEY):
        self.call, self.seal = peer.stream(), ClientStream(key)
        self.recorded = [self.seal.hello]

    async def greeted(self):
        await self.call.write(self.seal.hello)
        self.seal.greeted(await self.call.read())
        return self

    def sealed(self, frame):
        self.recorded.append(self.seal.seal(frame, oip.pack_request(frame)))
        return self.recorded[-1]

    async def ask(self, message):
        await self.call.write(message)
        return self.seal.open(await self.call.read())

    async def end(self):
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF


async def test_sealed_frames_are_computed_and_answered_sealed(sealed_edge, served):
    talk = await Conversation(sealed_edge.peer).greeted()
    latents = served.latents(3)
    reply = await talk.ask(talk.sealed(served.frame("r/phone/0", latents, "uniform8/channel")))
    assert reply.error is None and len(reply.labels) == 3
    assert (await talk.ask(talk.sealed(served.frame("r/phone/1")))).label == served.scores(served.latents(1)).argmax()
    wrong = dataclasses.replace(served.frame("r/phone/2"), model="another")
    assert (await talk.ask(talk.sealed(wrong))).error.startswith("NOT_FOUND: Request for unknown model")
    await talk.end()
    assert sealed_edge.logged() == ["r/phone/0", "r/phone/1"]


async def test_replayed_reordered_changed_and_unsealed_frames_are_refused_with_the_same_words(sealed_edge, served):
    talk = await Conversation(sealed_edge.peer).greeted()
    first, second, third = (talk.sealed(served.frame(f"r/phone/{n}")) for n in range(3))
    assert (await talk.ask(second)).error is None
    changed = bytearray(third)
    changed[-9] ^= 4
    renamed = pack_envelope(dataclasses.replace(unpack_envelope(third), id="r/phone/9"))
    again = pack_envelope(dataclasses.replace(unpack_envelope(third), attempt=2))
    plain = oip.pack_request(served.frame("r/phone/7"))
    for message in (second, first, bytes(changed), renamed, again, plain, talk.seal.hello, b"", b"\xff" * 40):
        reply = await talk.ask(message)
        assert reply.error == REFUSED
    assert (await talk.ask(third)).error is None
    await talk.end()
    assert sealed_edge.logged() == ["r/phone/1", "r/phone/2"]
    assert sealed_edge.server.metrics.failures["UNAUTHENTICATED"] == 9


async def test_a_recorded_stream_replayed_gives_only_refusals(sealed_edge, served):
    talk = await Conversation(sealed_edge.peer).greeted()
    for n in range(4):
        assert (await talk.ask(talk.sealed(served.frame(f"r/phone/{n}")))).error is None
    await talk.end()
    call = sealed_edge.peer.stream()
    for message in talk.recorded:
        await call.write(message)
    await call.done_writing()
    answers = [oip.unpack_stream_reply(message) async for message in call]
    assert [answer.error for answer in answers] == [None] + [REFUSED] * 4  # the hello, which is nobody's frame
    assert len(sealed_edge.logged()) == 4


async def test_without_the_key_nothing_is_computed_neither_on_streams_nor_by_calls(sealed_edge, served):
    assert [reply.error for reply in await sealed_edge.peer.ask([served.frame("r/phone/0")])] == [REFUSED]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await sealed_edge.peer.infer(served.frame("r/phone/0"))
    assert f"{error.value.code().name}: {error.value.details()}" == REFUSED
    assert sealed_edge.logged() == []


async def test_calls_are_sealed_too_and_each_is_good_once(sealed_edge, served):
    peer, calls = sealed_edge.peer, ClientCalls(KEY)
    calls.greeted(await peer.call(oip.INFER, calls.hello))
    asked = [calls.seal(frame := served.frame(f"r/phone/{n}"), oip.pack_request(frame)) for n in range(3)]
    for number, message in reversed(asked):
        assert calls.open(number, await peer.call(oip.INFER, message)).error is None
    for _, message in asked:
        with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
            await peer.call(oip.INFER, message)
    with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
        await peer.call(oip.INFER, ClientCalls(KEY).hello[:-2])
    assert len(sealed_edge.logged()) == 3


async def test_where_no_seal_is_required_a_stream_without_one_goes_on_as_before(start_edge, served):
    edge = await start_edge(seal_key=KEY)
    assert (await edge.peer.infer(served.frame("r/phone/0"))).error is None
    assert [reply.error for reply in await edge.peer.ask([served.frame("r/phone/1")])] == [None]
    talk = await Conversation(edge.peer).greeted()
    assert (await talk.ask(talk.sealed(served.frame("r/phone/2")))).error is None
    # who has begun to seal cannot be made to stop
    assert (await talk.ask(oip.pack_request(served.frame("r/phone/3")))).error == REFUSED
    await talk.end()


def test_calls_of_an_old_salt_are_forgotten_together_and_never_opened_again(served):
    clock = [0.0]
    seals = Seals(KEY, required=True, now_s=lambda: clock[0])
    frame = served.frame("r/phone/0")

    def conversation():
        calls = ClientCalls(KEY)
        calls.greeted(seals.greet(calls.hello))
        return calls

    old = conversation()
    message = old.seal(frame, oip.pack_request(frame))[1]
    seals.open(message)
    clock[0] = EPOCH_S + 1
    conversation()
    later = old.seal(frame, oip.pack_request(frame))[1]
    seals.open(later)  # the salt before still holds
    clock[0] = 2 * EPOCH_S + 2
    conversation()
    for one in (message, later, old.seal(frame, oip.pack_request(frame))[1]):
        with pytest.raises(NotOpened):
            seals.open(one)


def test_strangers_make_the_server_keep_nothing(served):
    seals = Seals(KEY, required=True, now_s=lambda: 0.0)
    for _ in range(50):
        stranger = ClientCalls(KEY)
        stranger.greeted(seals.greet(stranger.hello))
        frame = served.frame("r/phone/0")
        sealed = bytearray(stranger.seal(frame, oip.pack_request(frame))[1])
        sealed[-1] ^= 1
        with pytest.raises(NotOpened):
            seals.open(bytes(sealed))
    assert not seals._now.conversations
    assert MAX_CONVERSATIONS >= 1024


def test_an_answer_of_a_stream_without_a_seal_is_packed_as_before():
    reply = Reply(id="a", error="INTERNAL: x")
    assert Seals(KEY, required=False).stream().pack(reply) == oip.pack_stream_reply(reply)


async def phone(edge, artefact, state, *flags):
    """(exit status, what it said on standard error) of a phone that sends three frames."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mobile_client", "once", "--artefact", str(artefact), "--state", str(state), "--run", "once",
        "--target", edge.server.address, "--count", "3", "--patience-s", "3", *map(str, flags),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    return process.returncode, " ".join(errors.decode().split())


async def test_a_phone_with_certificate_token_and_key_gets_its_answers(start_edge, digits_artefact, tmp_path):
    write_set(tmp_path / "set")
    files, token, tokens, key = tmp_path / "set", tmp_path / "token", tmp_path / "tokens.json", tmp_path / "seal.key"
    token.write_text("a long secret".replace(" ", "-") + "\n")
    tokens.write_text(json.dumps([{"name": "phone", "sha256": hashlib.sha256(b"a-long-secret").hexdigest()}]))
    make_key(key)
    edge = await start_edge(
        tls=ServerTls(certificate=files / "server.pem", key=files / "server.key", client_trust=files / "ca.pem"),
        tokens=tokens, seal_key=load_key(key), require_seal=True,
    )  # fmt: skip
    tls = ("--tls-trust", files / "ca.pem", "--tls-certificate", files / "client.pem", "--tls-key", files / "client.key")
    whole = (*tls, "--access-token-file", token, "--seal-key-file", key)
    assert await phone(edge, digits_artefact, tmp_path / "phone", *whole) == (0, "")
    lines = list(read(tmp_path / "phone" / "passes" / "once" / "frames.jsonl"))
    assert [line["error"] for line in lines] == [None] * 3
    assert edge.logged() == [f"once/client/{n}" for n in range(3)]
    status, said = await phone(edge, digits_artefact, tmp_path / "without", *tls, "--seal-key-file", key)
    assert status == 1 and "give it another token, --access-token-file" in said


async def test_a_phone_notices_a_server_without_its_key(start_edge, digits_artefact, tmp_path):
    key = tmp_path / "seal.key"
    make_key(key)
    edge = await start_edge(seal_key=KEY)
    status, said = await phone(edge, digits_artefact, tmp_path / "phone", "--seal-key-file", key)
    assert status == 1 and "to hold the phone's key of sealed frames, whoever answers does not" in said
    assert edge.logged() == []
