"""Sealed frames: what opens, and that nothing else does. Any single changed bit, replay, order, direction, conversation."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from splitcore.errors import LatentbedError, SecurityError, WireError
from splitcore.frame import Frame, Reply
from splitcore.wire import oip
from splitcore.wire.envelope import (
    CallConversation,
    ClientCalls,
    ClientStream,
    ServerStream,
    pack_call_hello_reply,
    unpack_envelope,
    unpack_hello,
)
from splitcore.wire.sealing import (
    KEY_VARIABLE,
    WINDOW,
    Keys,
    Opener,
    Sealer,
    SealError,
    Window,
    about,
    load_key,
    new_salt,
)
from testbed.cli import app

KEY, OTHER = bytes(range(32)), bytes(32)


def frame(n: int = 0, payload: bytes = b"\x01\x02\x03\x04") -> Frame:
    return Frame(id=f"run/phone/{n}", payloads=(payload,), codec="uniform8/channel", shape=(2, 2), model="digits", timeout_us=9)


def reply(n: int = 0, error: str | None = None) -> Reply:
    if error:
        return Reply(id=f"run/phone/{n}", error=error)
    return Reply(id=f"run/phone/{n}", labels=np.array([3]), scores=np.ones((1, 10), np.float32), model="digits")


def stream(key: bytes = KEY) -> tuple[ClientStream, ServerStream]:
    client = ClientStream(key)
    salt = unpack_hello(client.hello)
    assert salt is not None
    server = ServerStream(key, salt)
    client.greeted(server.hello_reply)
    return client, server


def sent(client: ClientStream, one: Frame) -> bytes:
    return client.seal(one, oip.pack_request(one))


def received(server: ServerStream, message: bytes) -> Frame:
    envelope = unpack_envelope(message)
    if envelope is None:
        raise WireError("no envelope")
    return oip.unpack_request(server.open(envelope))


def test_frames_and_answers_arrive_as_they_were_and_a_relay_reads_their_ids_alone() -> None:
    client, server = stream()
    for n in range(3):
        message = sent(client, frame(n))
        assert received(server, message) == frame(n)
        seen = oip.unpack_request(message)
        assert (seen.id, seen.attempt, seen.codec) == (f"run/phone/{n}", 1, "sealed")
        assert frame().payloads[0] not in message
        answer = server.seal(reply(n))
        assert client.open(answer).label == 3
        assert oip.unpack_stream_reply(answer).labels is None
    refusal = client.open(server.seal(reply(4, "RESOURCE_EXHAUSTED: full")))
    assert refusal.error == "RESOURCE_EXHAUSTED: full"
    assert oip.unpack_stream_reply(server.seal(reply(5, "INTERNAL: x"))).error == "INTERNAL: x"


def test_not_one_bit_of_a_request_can_be_changed() -> None:
    client, server = stream()
    message = sent(client, frame())
    for bit in range(8 * len(message)):
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LatentbedError):
            received(server, bytes(changed))
    assert received(server, message) == frame()  # none of it has moved the server


def test_not_one_bit_of_an_answer_changes_what_the_phone_reads() -> None:
    client, server = stream()
    message = server.seal(reply())
    for bit in range(8 * len(message)):
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            read = client.open(bytes(changed))
        except LatentbedError:
            continue
        # what is not looked at (the tensor's name, say) says nothing
        assert (read.id, read.label, read.error) == ("run/phone/0", 3, None)
        client._down._highest = 0
    client, server = stream()
    assert client.open(server.seal(reply())).label == 3


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_messages_of_any_content_open_whole_and_changed_ones_do_not(data: st.DataObject) -> None:
    up = Keys.of(KEY, new_salt(), new_salt(), "stream").up
    sealer, opener = Sealer(up), Opener(up)
    content = data.draw(st.binary(max_size=300))
    parts = about(*data.draw(st.lists(st.text(max_size=20) | st.integers(0, 1 << 40), max_size=4)))
    number, sealed = sealer.seal(content, parts)
    place = data.draw(st.integers(0, 8 * len(sealed) - 1))
    changed = bytearray(sealed)
    changed[place // 8] ^= 1 << place % 8
    shorter = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
    for wrong in ((number, bytes(changed), parts), (number, shorter, parts), (number, sealed + b"x", parts),
                  (number + 1, sealed, parts), (number, sealed, parts + b"x"), (0, sealed, parts)):  # fmt: skip
        with pytest.raises(SealError):
            opener.open(*wrong)
    assert opener.open(number, sealed, parts) == content


@given(
    one=st.lists(st.text(max_size=5) | st.integers(0, 1 << 40), max_size=4),
    other=st.lists(st.text(max_size=5) | st.integers(0, 1 << 40), max_size=4),
)
def test_what_is_vouched_for_is_unambiguous(one: list[str | int], other: list[str | int]) -> None:
    assert (about(*one) == about(*other)) == (list(map(str, one)) == list(map(str, other)))


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(6)))
def test_on_a_stream_only_what_comes_in_order_opens(order: list[int]) -> None:
    client, server = stream()
    messages, highest = [sent(client, frame(n)) for n in range(6)], -1
    for n in order:
        if n > highest:
            assert received(server, messages[n]) == frame(n)
            highest = n
        else:
            with pytest.raises(SealError):
                received(server, messages[n])
    for message in messages:
        with pytest.raises(SealError):
            received(server, message)


def test_a_recorded_stream_replayed_gives_only_refusals() -> None:
    client, server = stream()
    recorded = [client.hello, *(sent(client, frame(n)) for n in range(5))]
    for message in recorded[1:]:
        received(server, message)
    salt = unpack_hello(recorded[0])
    assert salt is not None
    again = ServerStream(KEY, salt)
    for message in recorded[1:]:
        with pytest.raises(SealError):
            received(again, message)


def test_what_goes_one_way_does_not_come_back_the_other() -> None:
    client, server = stream()
    keys = Keys.of(KEY, new_salt(), new_salt(), "stream")
    number, sealed = Sealer(keys.up).seal(b"content", b"about")
    with pytest.raises(SealError):
        Opener(keys.down).open(number, sealed, b"about")
    with pytest.raises(LatentbedError):
        client.open(sent(client, frame()))
    with pytest.raises(LatentbedError):
        received(server, server.seal(reply()))


def test_a_phone_notices_at_once_that_whoever_answers_does_not_hold_the_key() -> None:
    client = ClientStream(KEY)
    salt = unpack_hello(client.hello)
    assert salt is not None
    with pytest.raises(SealError):
        client.greeted(ServerStream(OTHER, salt).hello_reply)
    plain = oip.pack_stream_reply(Reply(id="", error="INVALID_ARGUMENT: expected one input tensor, got 0"))
    with pytest.raises(SealError, match="expected a server that seals its answers, got INVALID_ARGUMENT"):
        client.greeted(plain)


def test_calls_open_once_in_any_order_and_answers_belong_to_their_call() -> None:
    client, salt = ClientCalls(KEY), new_salt()
    hello = unpack_hello(client.hello)
    assert hello is not None
    client.greeted(pack_call_hello_reply(KEY, hello, salt))
    server = CallConversation(Keys.of(KEY, hello, salt, "call"))
    calls = [client.seal(frame(n), oip.pack_request(frame(n))) for n in range(4)]
    answers = {}
    for n in (2, 0, 3, 1):
        number, message = calls[n]
        envelope = unpack_envelope(message)
        assert envelope is not None and envelope.salt == hello
        assert oip.unpack_request(server.open(envelope)) == frame(n)
        with pytest.raises(SealError):
            server.open(envelope)
        answers[n] = server.seal(number, reply(n))
    assert client.open(calls[1][0], answers[1]).id == "run/phone/1"
    with pytest.raises(SealError):
        client.open(calls[1][0], answers[2])
    keys = Keys.of(KEY, hello, salt, "stream")
    with pytest.raises(SealError):
        Opener(keys.up).open(envelope.number, envelope.sealed, envelope.about)


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(1, 3 * WINDOW) | st.integers(1 << 40, (1 << 40) + 3), max_size=60))
def test_a_window_is_a_set_of_numbers_that_forgets_none_it_would_take(numbers: list[int]) -> None:
    key = bytes(32)
    window, sealer, seen = Window(key), Sealer(key), set[int]()
    for number in numbers:
        sealed = sealer.seal_as(number, b"", b"")
        if number in seen or number <= max(seen, default=0) - WINDOW:
            with pytest.raises(SealError):
                window.open(number, sealed, b"")
        else:
            window.open(number, sealed, b"")
            seen.add(number)


def test_a_key_is_made_for_its_owner_alone_and_read_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seal.key"
    assert CliRunner().invoke(app, ["seal-key", str(path)]).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = load_key(path)
    assert key is not None and len(key) == 32
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert load_key(None) is None
    monkeypatch.setitem(os.environ, KEY_VARIABLE, path.read_text())
    assert load_key(None) == key
    path.write_text("short")
    with pytest.raises(SecurityError, match=r"64 hexadecimal digits or in base64 in .*seal\.key, got 5 characters"):
        load_key(path)
    with pytest.raises(SecurityError, match="expected the key of sealed frames in"):
        load_key(tmp_path / "absent")
