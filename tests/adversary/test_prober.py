"""What the adversary tries against protected frames, against a real edge server that wants a seal or a token."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from adversary.addons.prober import Prober, Reach, changed
from adversary.ledger import Ledger
from adversary.relay import Forward
from edge_server.node import EdgeConfig, EdgeServer
from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.frame import Frame
from splitcore.journal import Journal, read
from splitcore.wire import oip

TOKEN = "Bearer of-the-phone"


@pytest.fixture
async def edge(digits_artefact: Path, tmp_path: Path) -> AsyncIterator[EdgeServer]:
    tokens = tmp_path / "tokens.json"
    digest = hashlib.sha256(TOKEN.removeprefix("Bearer ").encode()).hexdigest()
    tokens.write_text(json.dumps([{"name": "phone", "sha256": digest}]))
    server = EdgeServer(
        EdgeConfig(artefact=digits_artefact, state=tmp_path / "edge", device="cpu", threads=1, grace_s=0.1, tokens=tokens)
    )
    await server.start()
    yield server
    await server.drain()


def frame_of(artefact: Path, n: int = 0) -> Frame:
    opened = Artefact(artefact)
    codec = fit("uniform8/channel", opened.latent)
    payload = codec.encode(np.zeros((1, *opened.latent.shape), np.float32))[0]
    return Frame(
        id=f"run/phone/{n}", payloads=(payload,), codec=codec.name, shape=opened.latent.shape, model=opened.manifest.name
    )


async def test_what_is_tried_is_written_down_with_what_became_of_it(
    edge: EdgeServer, digits_artefact: Path, tmp_path: Path
) -> None:
    frame = frame_of(digits_artefact)
    ledger, journal = Ledger(tmp_path / "queries.jsonl"), Journal(tmp_path / "probes.jsonl")
    reach = Reach(edge.address, None, lambda: TOKEN, tmp_path / "forged")
    prober = Prober("run", 2, frame, reach, ledger, journal)
    message = oip.pack_request(frame)
    assert prober.request(frame, message) == Forward(message, "passed", len(frame.payloads[0]))
    await prober.close()
    ledger.close()
    rows = list(read(tmp_path / "probes.jsonl"))
    told = [(row["way"], (row["refused"] or "answered").partition(":")[0]) for row in rows]
    assert told == [
        ("query", "UNAUTHENTICATED"), ("query", "UNAUTHENTICATED"),
        ("query with stolen token", "answered"), ("query with stolen token", "answered"),
        ("replay", "answered"),
    ]  # fmt: skip
    ends = [row["event"] for row in read(tmp_path / "queries.jsonl") if row["event"] != "sent"]
    assert ends == ["lost", "lost", "answered", "answered"]


async def test_frames_are_changed_and_put_behind_the_next_one(edge: EdgeServer, digits_artefact: Path, tmp_path: Path) -> None:
    frames = [frame_of(digits_artefact, n) for n in range(6)]
    ledger, journal = Ledger(tmp_path / "queries.jsonl"), Journal(tmp_path / "probes.jsonl")
    prober = Prober("run", 1, frames[0], Reach(edge.address, None, lambda: None, tmp_path), ledger, journal)
    left: list[str] = []

    def came(frame: Frame) -> str:
        forward = prober.request(frame, oip.pack_request(frame))
        if isinstance(forward, Forward):
            left.append(frame.id)
            return forward.why
        asyncio.ensure_future(forward).add_done_callback(lambda _: left.append(frame.id))
        return "held"

    assert [came(frame) for frame in frames] == ["passed", "changed", "held", "passed", "passed", "passed"]
    for _ in range(5):
        await asyncio.sleep(0)
    assert left.index(frames[2].id) > left.index(frames[3].id)
    await prober.close()
    ledger.close()


def test_a_changed_frame_differs_in_one_bit(digits_artefact: Path) -> None:
    frame = frame_of(digits_artefact)
    after = oip.unpack_request(changed(frame, oip.pack_request(frame)))
    before, now = frame.payloads[0], after.payloads[0]
    assert sum((a ^ b).bit_count() for a, b in zip(before, now, strict=True)) == 1
    assert (after.id, after.codec, after.shape) == (frame.id, frame.codec, frame.shape)
