"""What protection costs: the same frames one by one over a protected and an unprotected path, straight to the edge, in turns.

Both paths go through a relay that counts bytes. What is kept (`price.json`) are the times and the counts; the report makes
figures of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from splitcore import journal
from splitcore.control import load_token
from splitcore.errors import SecurityError
from splitcore.link.pipe import CountingPipe
from splitcore.wire import oip
from splitcore.wire.channel import sync_channel
from splitcore.wire.envelope import ClientStream
from testbed.nodes import Node, Process, following
from testbed.scenario import Scenario
from testbed.security import Arming

PRICE = "price.json"
ROUNDS = 16
SINGLES = 3
"""of the rounds begin with a connection of one frame"""
HANDSHAKES = 15
SIDES = ("plain", "protected")


@dataclass
class Side:
    """One of the two paths."""

    arming: Arming
    client: Node
    target: str
    pipe: CountingPipe
    total_ms: list[list[float]] = field(default_factory=list)
    """of each frame, from its arrival at the head to its answer, a list a round"""
    bytes_of_one: list[tuple[int, int]] = field(default_factory=list)
    """(up, down) of connections that carried one frame"""
    bytes_of_many: list[tuple[int, int]] = field(default_factory=list)
    """and of those that carried a round"""
    first_answer_ms: list[float] = field(default_factory=list)
    """from nothing to the first answer on a new connection"""


def measure(scenario: Scenario, artefact: Path, arming: Arming, folder: Path, data_dir: Path | None) -> None:
    """Writes `price.json` into `folder`. Raises LatentbedError."""
    assert scenario.security is not None
    with contextlib.ExitStack() as stack:
        sides = dict(zip(SIDES, _sides(scenario, artefact, arming, folder, data_dir, stack), strict=True))
        frames = max(2, scenario.security.price_frames // ROUNDS)
        for n in range(ROUNDS + 1):
            # the first round warms up; the order of the two changes from one to the next
            for name in SIDES if n % 2 else SIDES[::-1]:
                for count in (1, frames) if n <= SINGLES else (frames,):
                    _round(
                        sides[name], scenario, f"{folder.name}.price-{name}-{n}-{count}", count, folder / "nodes", kept=n > 0
                    )
        for _ in range(HANDSHAKES):
            for side in sides.values():
                side.first_answer_ms.append(_first_answer_ms(side))
    document = {
        "frames_a_round": frames,
        "sides": {
            name: {key: getattr(side, key) for key in ("total_ms", "bytes_of_one", "bytes_of_many", "first_answer_ms")}
            for name, side in sides.items()
        },
    }
    temporary = folder / f"{PRICE}.new"
    temporary.write_text(json.dumps(document) + "\n")
    temporary.replace(folder / PRICE)


def _sides(
    scenario: Scenario, artefact: Path, arming: Arming, folder: Path, data_dir: Path | None, stack: contextlib.ExitStack
) -> Iterator[Side]:
    token_file = folder / "nodes" / "token"
    token = load_token(token_file)
    common = ["--artefact", str(artefact), "--token-file", str(token_file)]
    data = [] if data_dir is None else ["--data-dir", str(data_dir)]
    armings = (Arming(), arming)
    edges = []
    for name, armed in zip(SIDES, armings, strict=True):
        device = ["--device", scenario.edge.device, "--tail", scenario.edge.tail]
        edges.append(Process("edge_server", folder / "nodes" / f"price-edge-{name}", [*common, *device, *armed.edge]))
        stack.callback(edges[-1].stop)
    for name, armed, edge in zip(SIDES, armings, edges, strict=True):
        target = edge.wait_ready()["grpc"]
        pipe = stack.enter_context(_piped(target))
        phone = Process(
            "mobile_client",
            folder / "nodes" / f"price-client-{name}",
            [*common, *data, "--target", pipe.address, *armed.client],
        )
        stack.callback(phone.stop)
        yield Side(armed, Node("client", phone.wait_ready()["control"], token), target, pipe)


@contextlib.contextmanager
def _piped(target: str) -> Iterator[CountingPipe]:
    """A counting relay on a thread of its own."""
    pipe, loop, started = CountingPipe(target), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        await pipe.start()
        started.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(pipe.close())
        loop.close()

    thread = threading.Thread(target=run, name="counting pipe", daemon=True)
    thread.start()
    started.wait()
    try:
        yield pipe
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _round(side: Side, scenario: Scenario, run: str, count: int, nodes: Path, *, kept: bool) -> None:
    up, down = side.pipe.bytes_up, side.pipe.bytes_down
    request: dict[str, Any] = {
        "run": run, "count": count, "window": 1, "load": {"kind": "single_stream"},
        "source": scenario.model_dump(mode="json", include={"source"})["source"],
        "codec": scenario.model_dump(mode="json", include={"codec"})["codec"],
    }  # fmt: skip
    side.client.post("/passes", request)
    for _ in following(side.client, run, every_s=0.02):
        pass
    side.pipe.settle()
    if not kept:
        return
    crossed = (side.pipe.bytes_up - up, side.pipe.bytes_down - down)
    if count == 1:
        side.bytes_of_one.append(crossed)
    else:
        side.bytes_of_many.append(crossed)
        into = nodes / f"{run}.jsonl"
        side.client.save(f"/passes/{run}/frames", into)
        side.total_ms.append([float(row["total_ms"]) for row in journal.read(into)])
        into.unlink()


def _first_answer_ms(side: Side) -> float:
    """A new connection to its first answer, and where frames are sealed to the server's salt."""
    started = time.perf_counter()
    with sync_channel(side.target, tls=side.arming.tls) as channel:
        channel.unary_unary(oip.path(oip.LIVE))(b"", timeout=30)
        if side.arming.seal_key is not None:
            seal = ClientStream(side.arming.seal_key)
            said = None if side.arming.token is None else (("authorization", f"Bearer {side.arming.token}"),)
            call = channel.stream_stream(oip.path(oip.STREAM))(iter([seal.hello]), timeout=30, metadata=said)
            try:
                seal.greeted(next(iter(call)))
            except grpc.RpcError as error:
                raise SecurityError(f"expected the edge to answer a hello: {error}") from error
        return (time.perf_counter() - started) * 1e3
