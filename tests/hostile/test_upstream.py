"""The relay between a good client and a server that says whatever it likes: the client hears of it, the relay goes on."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import grpc
import http2
import numpy as np
import pytest
from http2 import answer, conversation, frame, mutated_frames
from mutation import MUTATIONS, mutated
from siege import Besieged, Good

from splitcore.frame import Reply
from splitcore.wire import oip
from splitcore.wire.channel import sync_channel

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

Speech = Callable[[socket.socket], None]
"""what a server does with a connection"""


class TwoFaced:
    """A TCP port: an honest way to a server, or whatever `speech` does, as it is told."""

    def __init__(self, honest: str) -> None:
        self.speech: Speech | None = None
        self._honest = honest
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(client, self.speech), daemon=True).start()

    def _one(self, client: socket.socket, speech: Speech | None) -> None:
        with client, contextlib.suppress(OSError):
            if speech is not None:
                client.settimeout(20)
                speech(client)
                return
            with http2.connect(self._honest, 20) as server:
                server.settimeout(None)
                threading.Thread(target=poured, args=(client, server, bytes), daemon=True).start()
                poured(server, client, bytes)

    def close(self) -> None:
        self._listener.close()


def poured(source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes]) -> None:
    """Until either end closes."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(change(data))
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def liar(edge: Besieged) -> Iterator[TwoFaced]:
    upstream = TwoFaced(edge.grpc)
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def before(liar: TwoFaced, good: Good, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    """An adversary whose upstream is the liar."""
    state = tmp_path_factory.mktemp("hostile") / "before-a-liar"
    node = Besieged("adversary", state, "--artefact", str(good.artefact.folder), "--upstream", liar.address)
    yield node
    node.stop()


def hurt(address: str, good: Good, count: int) -> int:
    """Asks; how many calls got an answer or an error within their time. Each on a connection of its own."""
    ended = 0
    for _ in range(count):
        with sync_channel(address) as channel:
            stream = channel.stream_stream(oip.path(oip.STREAM))(iter([oip.pack_request(good.frame(run="liar"))]), timeout=3)
            with contextlib.suppress(grpc.RpcError):
                for _ in stream:
                    pass
            ended += stream.code() is not None
    return ended


def answers(good: Good) -> list[bytes]:
    scores = np.zeros((1, 10), np.float32)
    replies = [Reply(id=f"liar/phone/{n}", scores=scores, labels=np.zeros(1, np.int64)) for n in range(3)]
    return answer([oip.pack_stream_reply(reply) for reply in replies])


def garbage(rng: random.Random, good: Good) -> Speech:
    """One of: noise, a server's frames bent, HTTP/1, settings and then nothing, an endless header block, a lot of nothing."""
    frames = answers(good)
    bent = mutated_frames(frames, rng, keep=rng.randrange(3))
    odd = (
        rng.randbytes(rng.randint(1, 500)),
        mutated(b"".join(frames), rng),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        frames[0],
        frames[0] + frame(http2.HEADERS, 0, 1, b"") + frame(http2.CONTINUATION, 0, 1, http2.literal(b"a", b"b" * 900)) * 400,
        frames[0] + frame(http2.GOAWAY, payload=struct.pack(">II", 0, 11) + b"\x1b[2J calm down" * 50),
        frames[0] + frame(http2.PUSH_PROMISE, 4, 1, struct.pack(">I", 2) + http2.block()),
        frames[0] + frame(http2.DATA, 0, 1, bytes(16384)) * 40,
        frames[0] + frame(http2.RST_STREAM, 0, 1, struct.pack(">I", rng.randrange(20))),
        http2.settings(s4=2**31),
        http2.settings(s5=5),
        frame(http2.SETTINGS, payload=bytes(6)) * 2000,
        b"".join(conversation(good.seeds()[:1])),
    )
    data = bent if rng.random() < 0.6 else rng.choice(odd)

    def speak(client: socket.socket) -> None:
        client.recv(1 << 16)
        client.sendall(data)
        http2.heard(client, quiet_s=0.1)

    return speak


@pytest.mark.parametrize("behaviour", ["pass", "record", "attack"])
def test_a_server_that_answers_garbage_hurts_its_own_calls_only(
    behaviour: str, before: Besieged, liar: TwoFaced, good: Good
) -> None:
    attack = {"attack": {"kind": "square"}, "threat": {"norm": "linf", "eps": 0.5, "budget": 6, "deadline_ms": 500}}
    body = {"kind": behaviour, "run": f"liar-{behaviour}", **(attack if behaviour == "attack" else {})}
    before.put("/behaviour", body)
    rng = random.Random(31)

    def lies(count: int) -> None:
        for _ in range(count):
            liar.speech = garbage(rng, good)
            assert hurt(before.grpc, good, 1) == 1

    lies(8)
    liar.speech = None
    good.is_served(before.grpc, exact=behaviour != "attack")
    with before.stands():
        lies(max(12, MUTATIONS // 500))
        liar.speech = None
        good.is_served(before.grpc, exact=behaviour != "attack")
    before.put("/behaviour", {"kind": "pass"})
    before.healthy()


def test_answers_with_bits_turned_on_their_way_reach_the_client_as_an_error_or_an_answer(
    before: Besieged, liar: TwoFaced, edge: Besieged, good: Good
) -> None:
    rng = random.Random(32)

    def altering(client: socket.socket) -> None:
        def turned(data: bytes) -> bytes:
            return mutated(data, rng) if rng.random() < 0.3 else data

        with http2.connect(edge.grpc, 20) as server:
            threading.Thread(target=poured, args=(client, server, bytes), daemon=True).start()
            poured(server, client, turned)

    with before.stands(), edge.stands():
        liar.speech = altering
        hurt(before.grpc, good, max(12, MUTATIONS // 500))
        liar.speech = None
        good.is_served(before.grpc)


def test_a_server_that_takes_connections_and_says_nothing_costs_a_deadline(
    before: Besieged, liar: TwoFaced, good: Good
) -> None:
    def silent(client: socket.socket) -> None:
        http2.heard(client, quiet_s=4)

    with before.stands():
        liar.speech = silent
        assert hurt(before.grpc, good, 2) == 2
        liar.speech = None
        good.is_served(before.grpc)
