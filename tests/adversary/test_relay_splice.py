"""The splice between two peers of another HTTP/2 library, which check every window: bytes in, bytes out, cut anywhere."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from h2_path import Line, message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adversary.addons.recorder import Pass
from adversary.ledger import Kind
from adversary.relay import Forward, Order
from adversary.relay import frames as h2
from adversary.relay.frames import H2Error
from adversary.relay.splice import ANSWER, ASK
from splitcore.frame import Frame, Reply
from splitcore.journal import read
from splitcore.wire import oip

STREAM, INFER, OTHER = oip.path(oip.STREAM), oip.path(oip.INFER), "/any.Service/Any"


def frame(name: str, payload: bytes) -> bytes:
    return oip.pack_request(Frame(id=name, payloads=(payload,), codec="float16", shape=(1,)))


class Changing:
    """Another payload for every frame, at once or when it is told to, and for every answer where it has `longer`."""

    kind: Kind = "forwarded"

    def __init__(self, more: int = 0, held: bool = False, order: Order = "overtake") -> None:
        self.more, self.held = more, held
        self.order: Order = order
        self.gates: dict[str, asyncio.Future[None]] = {}

    def request(self, frame: Frame, message: bytes) -> Forward | Awaitable[Forward]:
        size = max(0, len(frame.payloads[0]) + self.more)
        changed = Forward(oip.replace_payloads(message, [b"\x07" * size]), "changed", size)
        if not self.held:
            return changed
        self.gates[frame.id] = gate = asyncio.get_running_loop().create_future()

        async def wait() -> Forward:
            await gate
            return changed

        return wait()

    async def close(self) -> None:
        return


class Answering(Changing):
    """Changes the answers alone."""

    def request(self, frame: Frame, message: bytes) -> Forward:
        return Forward(message, "passed", 0)

    def answer(self, frame: Frame, message: bytes) -> Forward | Awaitable[Forward]:
        reply = oip.unpack_stream_reply(message)
        changed = Forward(oip.pack_stream_reply(Reply(id=reply.id, parameters={"lie": "x" * self.more})), "changed", 0)
        if not self.held:
            return changed
        self.gates[frame.id] = gate = asyncio.get_running_loop().create_future()

        async def wait() -> Forward:
            await gate
            return changed

        return wait()


def payloads(data: bytes) -> list[bytes]:
    """Of the frames in a stream's DATA."""
    found = []
    while data:
        size = int.from_bytes(data[1:5])
        found.append(bytes(oip.unpack_request(bytes(data[5 : 5 + size])).payloads[0]))
        data = data[5 + size :]
    return found


async def turns(line: Line) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
        line.run()


def assert_nothing_owed(line: Line) -> None:
    """Both windows of the connection are the same again, and nothing is kept."""
    ask = line.splice.lanes[ASK].window
    assert ask.queued == 0
    assert ask.allowance + ask.skew == line.client.h2.outbound_flow_control_window
    assert ask.skew >= 0  # what a longer message took is swallowed of the server's next grants
    assert ask.allowance == line.server.h2.inbound_flow_control_window
    assert line.books.room == 64 << 20


WINDOWS = [0, 1000, 65_535, 300_000]
sizes = st.lists(st.integers(0, 100_000), min_size=1, max_size=4)
cuts = st.lists(st.integers(1, 40_000) | st.integers(1, 30).map(lambda n: 60_000 // n), min_size=1, max_size=50)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    sizes=sizes,
    cuts=cuts,
    more=st.sampled_from([None, 0, -100, 1000, 90_000]),
    window=st.sampled_from([0, 100, 65_535, 300_000]),
)
async def test_frames_of_any_size_cut_anywhere_arrive_changed_or_as_they_were(
    sizes: list[int], cuts: list[int], more: int | None, window: int, tmp_path_factory: Any
) -> None:
    line = Line(Pass() if more is None else Changing(more), tmp_path_factory.mktemp("books"))
    line.server.h2.update_settings({4: window})
    line.run()
    pieces = itertools.cycle(cuts)
    line.ask(1, STREAM)
    content = b"".join(message(frame(f"r/c/{i}", b"\x01" * size)) for i, size in enumerate(sizes))
    line.client.send(1, content, lambda: line.client.h2.end_stream(1))
    line.run(lambda n: next(pieces))
    if window == 0:
        line.server.h2.update_settings({4: 70_000})  # in mid-connection, with DATA under way
        line.run(lambda n: next(pieces))
    wanted = [size if more is None else max(0, size + more) for size in sizes]
    assert [len(payload) for payload in payloads(line.server.got.get(1, bytearray()))] == wanted
    assert 1 in line.server.ended
    rows = [(row["id"], row["bytes"], row["rows"]) for row in read(line.ledger.path)]
    assert rows == [(f"r/c/{i}", size, 1) for i, size in enumerate(wanted)]
    assert_nothing_owed(line)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(sizes=sizes, more=st.sampled_from([-50, 0, 5000]), data=st.data())
async def test_held_frames_go_on_in_any_order_and_the_end_behind_them(
    sizes: list[int], more: int, data: st.DataObject, tmp_path_factory: Any
) -> None:
    addon = Changing(more, held=True)
    line = Line(addon, tmp_path_factory.mktemp("books"))
    for number, size in enumerate(sizes):
        line.ask(2 * number + 1, STREAM)
        line.client.send(2 * number + 1, message(frame(f"r/c/{number}", b"\x01" * size)))
        line.client.h2.end_stream(2 * number + 1) if 2 * number + 1 not in line.client._unsent else None
    line.run()
    assert len(addon.gates) == len(sizes)  # a held message takes no window from the others
    assert not line.server.got
    for name in data.draw(st.permutations(sorted(addon.gates))):
        addon.gates[name].set_result(None)
        await turns(line)
        stream = 2 * int(name.rpartition("/")[2]) + 1
        assert len(payloads(line.server.got[stream])[0]) == max(0, sizes[stream // 2] + more)
    assert_nothing_owed(line)


async def test_300_calls_cancelled_while_they_are_held_leave_no_window_behind(tmp_path: Path) -> None:
    line = Line(Changing(held=True), tmp_path)
    for number in range(300):
        stream = 2 * number + 1
        line.ask(stream, INFER)
        line.client.send(stream, message(frame(f"r/c/{number}", bytes(5000))))
        line.run()
        line.client.h2.reset_stream(stream, h2.CANCEL)
        line.run()
    assert line.client.h2.outbound_flow_control_window == 65_535
    assert (line.splice.lanes[ASK].window.allowance, line.splice.lanes[ASK].window.skew) == (65_535, 0)
    assert not line.splice.streams
    assert line.books.room == 64 << 20
    assert not line.server.got


async def test_a_slow_reader_stalls_the_writer_and_only_what_fits_is_kept(tmp_path: Path) -> None:
    line = Line(Changing(1000), tmp_path)
    line.server.takes = False
    line.ask(1, STREAM)
    line.client.send(1, b"".join(message(frame(f"r/c/{i}", bytes(8000))) for i in range(100)))
    line.run()
    kept = len(line.splice.streams[1].ways[ASK].waiting)
    assert len(line.server.got[1]) == 65_535
    assert line.client._unsent  # the client may send no more
    assert kept < 65_535 + 20_000


async def test_a_small_call_passes_beside_a_held_one_of_3_mb(tmp_path: Path) -> None:
    addon = Changing(held=True)
    line = Line(addon, tmp_path)
    line.ask(1, INFER)
    line.client.send(1, message(frame("r/c/0", bytes(3_000_000))))
    line.run()
    line.ask(3, OTHER)
    line.client.send(3, b"x" * 60_000)
    line.run()
    assert len(line.server.got[3]) == 60_000
    addon.gates["r/c/0"].set_result(None)
    await turns(line)
    assert len(payloads(line.server.got[1])[0]) == 3_000_000


async def test_answers_are_changed_too_and_trailers_wait_behind_them(tmp_path: Path) -> None:
    addon = Answering(60_000, held=True)
    line = Line(addon, tmp_path)
    line.ask(1, STREAM)
    line.ask(3, STREAM)
    for stream, name in ((1, "r/c/0"), (3, "r/c/1")):
        line.client.send(stream, message(frame(name, b"abc")))
        line.run()
        line.answer(stream)
        line.server.send(stream, message(oip.pack_stream_reply(Reply(id=name))))
        line.trailers(stream)
    line.run()
    assert not line.client.got and not line.client.ended
    addon.gates["r/c/1"].set_result(None)  # header blocks go in another order than they came
    await turns(line)
    assert line.client.ended == {3}
    addon.gates["r/c/0"].set_result(None)
    await turns(line)
    assert line.client.ended == {1, 3}
    reply = oip.unpack_stream_reply(bytes(line.client.got[1][5:]))
    assert (reply.id, len(str(reply.parameters["lie"]))) == ("r/c/0", 60_000)
    assert line.client.headers[1][-1] == {"grpc-status": "0"}
    assert [row["event"] for row in read(tmp_path / "queries.jsonl")] == ["sent", "sent", "answered", "answered"]


async def test_compressed_messages_are_read_and_changed_ones_are_compressed_anew(tmp_path: Path) -> None:
    line = Line(Changing(500), tmp_path)
    line.ask(1, STREAM, ("grpc-encoding", "gzip"))
    line.client.send(1, message(gzip.compress(frame("r/c/0", bytes(2000))), True) + message(frame("r/c/1", bytes(10))))
    line.run()
    got = bytes(line.server.got[1])
    size = int.from_bytes(got[1:5])
    assert got[0] == 1
    assert len(oip.unpack_request(gzip.decompress(got[5 : 5 + size])).payloads[0]) == 2500
    assert got[5 + size] == 0


async def test_a_decompression_bomb_passes_unread(tmp_path: Path) -> None:
    line = Line(Changing(500), tmp_path)
    line.ask(1, STREAM, ("grpc-encoding", "gzip"))
    bomb = message(gzip.compress(bytes(65 << 20)), True)
    line.client.send(1, bomb)
    line.run()
    assert line.server.got[1] == bomb
    assert line.books.unaccounted == 1


async def test_an_addon_that_fails_ends_its_call_alone(tmp_path: Path) -> None:
    class Broken(Changing):
        def request(self, frame: Frame, message: bytes) -> Forward:
            raise ZeroDivisionError("a bug")

    line = Line(Broken(), tmp_path)
    line.ask(1, STREAM)
    line.ask(3, OTHER)
    line.client.send(1, message(frame("r/c/0", b"abc")) * 20)
    line.client.send(3, b"as it is")
    line.run()
    assert line.client.headers[1][-1]["grpc-status"] == "13"
    assert line.server.reset == {1: h2.CANCEL}
    assert line.server.got == {3: b"as it is"}
    assert_nothing_owed(line)


async def test_padding_is_credited_where_it_is_taken_off(tmp_path: Path) -> None:
    line = Line(Changing(10), tmp_path)
    line.ask(1, STREAM)
    content = message(frame("r/c/0", bytes(300)))
    line.client.h2.send_data(1, content, pad_length=200)
    line.run()
    assert len(payloads(line.server.got[1])[0]) == 310
    assert_nothing_owed(line)


async def test_an_addon_that_comes_in_mid_stream_has_the_next_message(tmp_path: Path) -> None:
    line = Line(Pass(), tmp_path)
    line.ask(1, STREAM)
    first, second = message(frame("r/c/0", bytes(50))), message(frame("r/c/1", bytes(50)))
    line.client.h2.send_data(1, first[:20])
    line.run()
    line.addon = Changing(7)
    line.client.h2.send_data(1, first[20:] + second)
    line.run()
    assert [len(payload) for payload in payloads(line.server.got[1])] == [50, 57]
    assert [row["kind"] for row in read(tmp_path / "queries.jsonl")] == ["clean", "forwarded"]


async def test_a_message_that_ends_too_early_passes_as_far_as_it_came(tmp_path: Path) -> None:
    line = Line(Changing(7), tmp_path)
    line.ask(1, INFER)
    content = message(frame("r/c/0", bytes(50)))[:-9]
    line.client.h2.send_data(1, content, end_stream=True)
    line.run()
    assert line.server.got[1] == content
    assert 1 in line.server.ended


@pytest.mark.parametrize(
    "bytes_in",
    [
        b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n",
        h2.PREFACE + h2.frame(h2.PING, 0, 0, bytes(8)),
        h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0, bytes(5)),
        h2.PREFACE + h2.pack_settings([(4, 1 << 31)]),
        h2.PREFACE + h2.pack_settings([]) + h2.header(1 << 20, h2.DATA, 0, 1),
        h2.PREFACE + h2.pack_settings([]) + h2.frame(h2.HEADERS, 4, 2, b"\x83"),
        h2.PREFACE + h2.pack_settings([]) + h2.frame(h2.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff"),
        h2.PREFACE + h2.pack_settings([]) + h2.frame(h2.HEADERS, 0, 1, b"\x83") + h2.frame(h2.PING, 0, 0, bytes(8)),
        h2.PREFACE + h2.pack_settings([]) + h2.frame(h2.HEADERS, 0, 1, b"") + h2.frame(h2.CONTINUATION, 0, 1, bytes(16384)) * 9,
        h2.PREFACE + h2.pack_settings([]) + h2.frame(h2.CONTINUATION, 4, 1, b"\x83"),
        h2.PREFACE + h2.pack_settings([]) + h2.frame(h2.DATA, 0, 0, b"x"),
        h2.PREFACE + h2.pack_settings([]) + h2.frame(h2.WINDOW_UPDATE, 0, 0, b"x"),
        h2.PREFACE + h2.pack_settings([]) + h2.frame(h2.HEADERS, 12, 1, b""),
    ],
)  # fmt: skip
async def test_what_is_not_http2_is_refused_by_name(bytes_in: bytes, tmp_path: Path) -> None:
    line = Line(Pass(), tmp_path)
    with pytest.raises(H2Error, match="expected"):
        line.splice.receive(ASK, bytes_in)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300), kind=st.integers(0, 12), flags=st.integers(0, 255), stream=st.sampled_from([0, 1, 3, 7]))
async def test_no_frame_of_either_side_does_more_than_end_the_connection(
    data: bytes, kind: int, flags: int, stream: int, tmp_path_factory: Any
) -> None:
    line = Line(Changing(5), tmp_path_factory.mktemp("books"))
    line.ask(1, STREAM)
    line.client.send(1, message(frame("r/c/0", b"abc")))
    line.run()
    for index in (ASK, ANSWER):
        try:
            line.splice.receive(index, h2.frame(kind, flags, stream, data) + h2.frame(h2.PING, 0, 0, bytes(8)))
        except H2Error as error:
            line.splice.abort(error)


async def test_header_blocks_in_many_frames_and_with_a_dynamic_table_are_followed(tmp_path: Path) -> None:
    """A client that has not heard yet that it is to keep no table, and metadata of more than a frame."""
    line = Line(Changing(3), tmp_path)
    line.ask(1, STREAM, ("blob", "y" * 40_000))
    line.ask(3, STREAM, ("authorization", "Bearer abc"))
    line.ask(5, STREAM)
    for number in (1, 3, 5):
        line.client.send(number, message(frame(f"r/c/{number}", bytes(number))))
    line.run()
    assert [len(payloads(line.server.got[number])[0]) for number in (1, 3, 5)] == [4, 6, 8]
    assert line.server.headers[1][0]["blob"] == "y" * 40_000
    assert line.books.overheard == "Bearer abc"
    line.ask(7, STREAM)  # by now it has
    line.client.send(7, message(frame("r/c/7", bytes(7))))
    line.run()
    assert len(payloads(line.server.got[7])[0]) == 10


async def test_a_server_that_goes_away_loses_what_it_did_not_take(tmp_path: Path) -> None:
    addon = Changing(held=True)
    line = Line(addon, tmp_path)
    for stream in (1, 3):
        line.ask(stream, STREAM)
        line.client.send(stream, message(frame(f"r/c/{stream}", b"abc")))
    await turns(line)
    line.server.h2.close_connection(last_stream_id=1)
    line.run()
    assert list(line.splice.streams) == [1]
    await asyncio.sleep(0)
    assert addon.gates["r/c/3"].cancelled()
    line.splice.close("over")


async def test_a_client_that_does_not_wait_for_the_servers_settings_has_them_first(tmp_path: Path) -> None:
    """Kept messages are credited before the server has said a word: its SETTINGS come before that."""
    line = Line(Changing(7), tmp_path)
    line.ask(1, STREAM)
    line.client.h2.send_data(1, message(frame("r/c/0", bytes(60_000)))[:16_384])
    line.client.h2.send_data(1, message(frame("r/c/0", bytes(60_000)))[16_384:32_768])
    line.client.h2.send_data(1, message(frame("r/c/0", bytes(60_000)))[32_768:45_000])
    line.splice.receive(ASK, line.client.h2.data_to_send())
    assert not line.splice.lanes[ANSWER].out
    line.client.h2.send_data(1, message(frame("r/c/0", bytes(60_000)))[45_000:])
    line.run()
    assert len(payloads(line.server.got[1])[0]) == 60_007


async def test_what_there_is_no_room_to_keep_passes_and_the_books_say_so(tmp_path: Path) -> None:
    addon = Changing(7, held=True)
    line = Line(addon, tmp_path)
    line.books.room = 1000
    line.ask(1, STREAM)
    line.client.send(1, b"".join(message(frame(f"r/c/{i}", bytes(size))) for i, size in enumerate((300, 5000, 300, 300))))
    line.run()
    assert list(addon.gates) == ["r/c/0", "r/c/2"]
    assert [len(payload) for payload in payloads(line.server.got[1])] == [5000, 300]
    assert [(row["id"], row["why"]) for row in read(tmp_path / "queries.jsonl")] == [("r/c/1", "full"), ("r/c/3", "full")]
    for gate in addon.gates.values():
        gate.set_result(None)
    await turns(line)
    assert line.books.room == 1000
    assert len(payloads(line.server.got[1])) == 4


async def test_with_order_keep_frames_leave_as_they_came(tmp_path: Path) -> None:
    addon = Changing(7, held=True, order="keep")
    line = Line(addon, tmp_path)
    line.ask(1, STREAM)
    line.client.send(1, b"".join(message(frame(f"r/c/{i}", bytes(100 * i))) for i in range(3)))
    line.run()
    await turns(line)
    for name in ("r/c/2", "r/c/0", "r/c/1"):
        addon.gates[name].set_result(None)
        await turns(line)
    assert [len(payload) for payload in payloads(line.server.got[1])] == [7, 107, 207]
