"""The way to the server: one stream of requests, calls where a server has no stream, and what a broken line comes to."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from adversary import oracle as oracles
from adversary.oracle import LinkError, LiveOracle
from splitcore.frame import Frame, Reply
from splitcore.wire import oip

Unpacked = Reply | Exception
Serve = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]


def frame(number: int) -> Frame:
    return Frame(id=f"run/query-0/{number}", payloads=(np.full(2, number, "<f4").tobytes(),), shape=(2,), origin="query")


def answer(message: bytes) -> Reply:
    asked = oip.unpack_request(message)
    [value] = np.frombuffer(asked.payloads[0], "<f4")[:1]
    return Reply(id=asked.id, scores=np.array([[value, 0.0]], np.float32), labels=np.array([0]))


@contextmanager
def server(*, stream: Serve | None, call: bool = True) -> Iterator[str]:
    """A server of the protocol that is none of ours."""
    methods = {}
    if stream is not None:
        methods[oip.STREAM] = grpc.stream_stream_rpc_method_handler(stream)
    if call:
        methods[oip.INFER] = grpc.unary_unary_rpc_method_handler(lambda message, context: oip.pack_reply(answer(message)))
    methods[oip.LIVE] = grpc.unary_unary_rpc_method_handler(lambda message, context: b"")
    made = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(oip.SERVICE, methods),))
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        made.stop(0).wait()


def ask_all(oracle: LiveOracle, n: int, timeout_s: float | None = 20) -> dict[int, Unpacked]:
    replies: queue.SimpleQueue[tuple[int, Unpacked]] = queue.SimpleQueue()
    for number in range(n):
        oracle.ask(frame(number), lambda reply, number=number: replies.put((number, reply)), timeout_s)  # type: ignore[misc]
    return dict(replies.get(timeout=30) for _ in range(n))


def test_requests_go_out_on_one_stream_and_answers_come_back_in_any_order() -> None:
    streams = []

    def backwards(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        streams.append(context)
        batch = [next(messages) for _ in range(5)]
        yield from (oip.pack_stream_reply(answer(message)) for message in reversed(batch))
        yield from (oip.pack_stream_reply(answer(message)) for message in messages)

    with server(stream=backwards, call=False) as target:
        oracle = LiveOracle(target)
        replies = ask_all(oracle, 20)
        assert oracle.round_trip_s() > 0
        oracle.close()
    assert len(streams) == 1
    for number, reply in replies.items():
        assert isinstance(reply, Reply) and reply.scores is not None
        assert reply.scores[0, 0] == number


def test_a_server_without_a_stream_gets_calls() -> None:
    with server(stream=None) as target:
        oracle = LiveOracle(target)
        for _ in range(2):
            replies = ask_all(oracle, 6)
            assert all(isinstance(reply, Reply) and reply.error is None for reply in replies.values())
        oracle.close()


def test_a_stream_that_breaks_fails_what_is_on_it_and_the_next_request_takes_another() -> None:
    lives = []

    def dies_first(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        lives.append(context)
        for message in messages:
            if len(lives) == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield oip.pack_stream_reply(answer(message))

    with server(stream=dies_first) as target:
        oracle = LiveOracle(target)
        first = ask_all(oracle, 3)
        assert all(isinstance(reply, Exception) for reply in first.values())
        second = ask_all(oracle, 3)
        assert all(isinstance(reply, Reply) for reply in second.values())
        oracle.close()


def test_a_request_that_is_not_answered_in_time_fails_and_its_late_answer_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracles, "LOOK_S", 0.01)
    release = threading.Event()

    def slow(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for message in messages:
            if oip.unpack_request(message).id.endswith("/0") and not release.is_set():
                release.wait(10)
            yield oip.pack_stream_reply(answer(message))

    with server(stream=slow) as target:
        oracle = LiveOracle(target)
        [late] = ask_all(oracle, 1, timeout_s=0.1).values()
        assert isinstance(late, Exception)
        release.set()
        [again] = ask_all(oracle, 1, timeout_s=10).values()
        assert isinstance(again, Reply)
        oracle.close()


def test_a_server_that_is_about_to_stop_is_a_failed_link_and_a_refusal_is_an_answer() -> None:
    def refuses(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for message in messages:
            asked = oip.unpack_request(message)
            text = "UNAVAILABLE: draining" if asked.id.endswith("/0") else "RESOURCE_EXHAUSTED: full"
            yield oip.pack_stream_reply(Reply(id=asked.id, error=text))

    with server(stream=refuses) as target:
        oracle = LiveOracle(target)
        replies = ask_all(oracle, 2)
        oracle.close()
    assert isinstance(replies[0], LinkError)
    assert isinstance(replies[1], Reply) and replies[1].error == "RESOURCE_EXHAUSTED: full"
