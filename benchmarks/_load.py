"""Clients of the serving benchmark: messages that were made before, sent as raw bytes over real channels, answers counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import grpc
import numpy as np

from splitcore.wire import oip
from splitcore.wire.channel import aio_channel


async def stream_rate(target: str, messages: Sequence[bytes], in_flight: int, seconds: float) -> float:
    """Answers per second of one stream that always has `in_flight` messages on their way."""
    async with aio_channel(target) as channel:
        call = channel.stream_stream(oip.path(oip.STREAM))()
        slots, sent, answered, ending = asyncio.Semaphore(in_flight), 0, 0, False

        async def write() -> None:
            nonlocal sent
            while not ending:
                await slots.acquire()
                await call.write(messages[sent % len(messages)])
                sent += 1
            await call.done_writing()

        writing = asyncio.create_task(write())
        first = await call.read()
        check(first)
        slots.release()
        start = time.perf_counter()
        until = start + seconds
        while await call.read() is not grpc.aio.EOF:
            now = time.perf_counter()
            if now < until:
                answered += 1
            else:
                ending = True
            slots.release()
        await writing
        assert await call.code() == grpc.StatusCode.OK
    return answered / seconds


async def unary_rate(target: str, messages: Sequence[bytes], in_flight: int, seconds: float) -> float:
    """Answers per second of `in_flight` callers, each of which asks again when it is answered."""
    async with aio_channel(target) as channel:
        ask = channel.unary_unary(oip.path(oip.INFER))
        await ask(messages[0])
        answered, until = 0, time.perf_counter() + seconds

        async def caller(number: int) -> None:
            nonlocal answered
            while time.perf_counter() < until:
                await ask(messages[number % len(messages)])
                answered += 1

        await asyncio.gather(*map(caller, range(in_flight)))
    return answered / seconds


async def unary_latencies_ms(
    target: str, messages: Sequence[bytes], per_second: float, seconds: float, seed: int
) -> list[float]:
    """[requests]: from a request's scheduled arrival to its answer, arrivals being Poisson's. Nobody waits for anybody."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / per_second, int(per_second * seconds)))
    async with aio_channel(target) as channel:
        ask = channel.unary_unary(oip.path(oip.INFER))
        await ask(messages[0])
        start = time.perf_counter() + 0.05

        async def one(number: int, at: float) -> float:
            try:
                await ask(messages[number % len(messages)])
            except grpc.aio.AioRpcError:
                return seconds * 1e3  # refused, or its connection went: as bad as can be
            return (time.perf_counter() - start - at) * 1e3

        asked = []
        for number, at in enumerate(arrivals):
            if (wait := start + at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            asked.append(asyncio.create_task(one(number, float(at))))
        return list(await asyncio.gather(*asked))


def check(message: bytes) -> None:
    """A benchmark of refusals would be a fast one."""
    reply = oip.unpack_stream_reply(message)
    assert reply.error is None, reply.error
