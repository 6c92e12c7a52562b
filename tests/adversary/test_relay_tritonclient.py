"""Triton's own client through the relay, also while an addon rewrites what it sends: calls, streams, compressed, refused."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from interop import Relayed, relayed
from tritonclient.utils import InferenceServerException

from adversary.addons.recorder import Pass
from adversary.ledger import Kind
from adversary.relay import Addon, Forward, Order
from splitcore.frame import Frame, Reply
from splitcore.journal import read
from splitcore.wire import oip


class Model(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers with the length of each latent; refuses a model called `wrong`."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method == oip.path(oip.INFER):
            return grpc.unary_unary_rpc_method_handler(self.infer)
        return grpc.stream_stream_rpc_method_handler(self.stream) if details.method == oip.path(oip.STREAM) else None

    def _answer(self, message: bytes) -> Reply:
        frame = oip.unpack_request(message)
        if frame.model == "wrong":
            return Reply(id=frame.id, error="NOT_FOUND: unknown model")
        return Reply(id=frame.id, labels=np.array([len(payload) for payload in frame.payloads]))

    async def infer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        reply = self._answer(request)
        if reply.error is not None:
            await context.abort(grpc.StatusCode.NOT_FOUND, reply.error)
        return oip.pack_reply(reply)

    async def stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for request in requests:
            yield oip.pack_stream_reply(self._answer(request))


class Longer:
    """Ten bytes more in each latent."""

    kind: Kind = "forwarded"
    order: Order = "overtake"

    def request(self, frame: Frame, message: bytes) -> Forward:
        payloads = [bytes(payload) + bytes(10) for payload in frame.payloads]
        return Forward(oip.replace_payloads(message, payloads), "longer", sum(map(len, payloads)))

    async def close(self) -> None:
        return


CODED = {"lb_codec": "float16", "lb_shape": "1"}


def latents(*sizes: int) -> list[triton.InferInput]:
    tensor = triton.InferInput("latent", [len(sizes)], "BYTES")
    tensor.set_data_from_numpy(np.array([b"x" * size for size in sizes], dtype=np.object_))
    return [tensor]


def talk(path: Relayed) -> dict[str, Any]:
    found: dict[str, Any] = {}
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(path.target) as client:
        for compression in (None, "gzip", "deflate"):
            result = client.infer("digits", latents(5, 0, 70_000), parameters=CODED, compression_algorithm=compression)
            found[f"unary {compression}"] = result.as_numpy("label").tolist()
        client.async_infer("digits", latents(7), lambda result, error: answers.put((result, error)), parameters=CODED)
        found["asynchronous"] = answers.get(timeout=30)[0].as_numpy("label").tolist()
        with pytest.raises(InferenceServerException) as refused:
            client.infer("wrong", latents(1), parameters=CODED)
        found["refused"] = refused.value.status()
        client.start_stream(lambda result, error: answers.put((result, error)), compression_algorithm="gzip")
        client.async_stream_infer("digits", latents(8), request_id="1", parameters=CODED)
        found["stream"] = answers.get(timeout=30)[0].as_numpy("label").tolist()
        client.async_stream_infer("wrong", latents(8), request_id="2", parameters=CODED)
        found["refused in-band"] = "NOT_FOUND" in str(answers.get(timeout=30)[1])
        client.stop_stream()
    return found


@pytest.mark.parametrize(("addon", "more"), [(Pass(), 0), (Longer(), 10)], ids=["passing", "rewriting"])
async def test_tritonclient_talks_through_the_relay(addon: Addon, more: int, tmp_path: Path) -> None:
    async with relayed(tmp_path, Model(), addon) as path:
        found = await asyncio.to_thread(talk, path)
    wanted = [5 + more, more, 70_000 + more]
    assert found == {
        "unary None": wanted, "unary gzip": wanted, "unary deflate": wanted, "asynchronous": [7 + more],
        "refused": "StatusCode.NOT_FOUND", "stream": [8 + more], "refused in-band": True,
    }  # fmt: skip
    events = [row["event"] for row in read(path.books)]
    assert (events.count("sent"), events.count("answered"), events.count("lost")) == (7, 5, 2)
