"""Load patterns, sources and what a pass leaves behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mobile_client.load import arrivals_ns
from mobile_client.passes import Offline, PassRequest, Server, SingleStream
from splitcore.artefact import Artefact
from splitcore.data.source import ArtefactSource, FolderSource, open_source
from splitcore.errors import DataError, ScenarioError
from splitcore.frame import Frame, FrameId, Reply
from splitcore.journal import read
from splitcore.telemetry.collector import Collector
from splitcore.wire import oip


async def zero(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
    async for frame in frames:
        await write(oip.pack_stream_reply(Reply(id=frame.id, labels=np.array([0]))))


@given(rate_hz=st.floats(0.01, 1e5), seed=st.integers(0, 2**32 - 1), count=st.integers(1, 200))
def test_arrivals_are_the_seeded_poisson_process_and_a_longer_pass_only_adds_to_them(
    rate_hz: float, seed: int, count: int
) -> None:
    arrivals = arrivals_ns(Server(rate_hz=rate_hz), count, seed)
    assert arrivals is not None
    rng, total = np.random.default_rng(seed), 0.0
    for arrival in arrivals:
        total += rng.exponential(1 / rate_hz)
        assert arrival == pytest.approx(total * 1e9, rel=1e-9, abs=2)
    longer = arrivals_ns(Server(rate_hz=rate_hz), count + 7, seed)
    assert longer is not None
    np.testing.assert_array_equal(longer[:count], arrivals)


def test_the_gaps_of_the_poisson_process_have_the_mean_and_the_spread_of_an_exponential() -> None:
    arrivals = arrivals_ns(Server(rate_hz=250), 20_000, 5)
    assert arrivals is not None
    gaps_s = np.diff(arrivals) / 1e9
    assert gaps_s.mean() == pytest.approx(1 / 250, rel=0.03)
    assert gaps_s.std() == pytest.approx(1 / 250, rel=0.05)


def test_offline_is_all_at_once_and_single_stream_has_no_arrivals_of_its_own() -> None:
    offline = arrivals_ns(Offline(), 3, 0)
    assert offline is not None
    assert offline.tolist() == [0, 0, 0]
    assert arrivals_ns(SingleStream(), 3, 0) is None


async def test_frames_of_the_server_pattern_are_scheduled_at_their_arrivals_also_when_the_phone_is_behind(
    start_peer: Any, run_pass: Any
) -> None:
    async def slow(peer: Any, frames: AsyncIterator[Frame], write: Any) -> None:
        async for frame in frames:
            await asyncio.sleep(0.005)
            await write(oip.pack_stream_reply(Reply(id=frame.id, labels=np.array([0]))))

    peer = await start_peer(slow)
    # ten times as many arrivals as the server answers
    done = await run_pass(peer.address, count=40, window=2, load={"kind": "server", "rate_hz": 2000}, seed=9)
    arrivals = arrivals_ns(Server(rate_hz=2000), 40, 9)
    assert arrivals is not None
    rows = sorted(done.frames, key=lambda row: row["sequence"])
    scheduled = np.array([row["scheduled_ns"] for row in rows])
    np.testing.assert_array_equal(scheduled - scheduled[0], arrivals - arrivals[0])
    for row in rows:
        assert row["total_ms"] == pytest.approx((row["answered_ns"] - row["scheduled_ns"]) / 1e6)
    sent = {row["id"]: row["t_ns"] for row in done.attempts if row["event"] == "sent"}
    assert all(sent[row["id"]] >= row["scheduled_ns"] for row in rows)


async def test_single_stream_has_one_frame_in_flight_whatever_the_window(start_peer: Any, run_pass: Any) -> None:
    peer = await start_peer(zero)
    done = await run_pass(peer.address, count=10, window=8, load={"kind": "single_stream"})
    assert peer.most_in_flight == 1
    rows = done.frames
    assert all(later["scheduled_ns"] >= before["answered_ns"] for before, later in itertools.pairwise(rows))


async def test_frame_n_shows_sample_n_modulo_the_size(start_peer: Any, run_pass: Any, digits_artefact: Path) -> None:
    images, labels = Artefact(digits_artefact).samples
    count = len(images) + 3
    peer = await start_peer(zero)
    done = await run_pass(peer.address, count=count, window=64)
    for row in done.frames:
        assert row["sample"] == row["sequence"] % len(images)
        assert row["label"] == labels[row["sample"]]
    by_sequence = {FrameId.parse(frame.id).sequence: bytes(frame.payloads[0]) for frame in peer.received}
    assert by_sequence[len(images)] == by_sequence[0]


def test_a_folder_of_images_is_a_source_and_without_sub_folders_it_has_no_labels(digits_artefact: Path, tmp_path: Path) -> None:
    for n in range(3):
        Image.fromarray(np.full((8, 8), 40 * n, np.uint8)).save(tmp_path / f"{n}.png")
    samples = open_source(FolderSource(path=tmp_path), Artefact(digits_artefact), None)
    assert [int(image[0, 0, 0]) for image in samples.images] == [0, 40, 80]
    assert samples.label_of(2) is None


def test_a_source_of_another_shape_is_refused_with_both_named(digits_artefact: Path, tmp_path: Path) -> None:
    artefact = Artefact(digits_artefact)
    assert len(open_source(ArtefactSource(), artefact, None).images)
    artefact.manifest = artefact.manifest.model_copy(update={"input_shape": (1, 9, 9)})
    with pytest.raises(DataError, match=r"expected images \[n, 1, 9, 9\], the artefact's samples gave"):
        open_source(ArtefactSource(), artefact, None)


async def test_a_pass_that_ended_is_not_sent_again_and_another_request_of_its_name_is_refused(
    start_peer: Any, run_pass: Any
) -> None:
    peer = await start_peer(zero)
    await run_pass(peer.address, count=5)
    done = await run_pass(peer.address, count=5)
    assert len(peer.received) == len(done.frames) == 5
    with pytest.raises(ScenarioError, match="give another pass another name"):
        await run_pass(peer.address, count=6)


async def test_every_answered_frame_tells_its_times_in_order(start_peer: Any, run_pass: Any, tmp_path: Path) -> None:
    peer = await start_peer(zero)
    collector = Collector(tmp_path / "spans.jsonl")
    try:
        done = await run_pass(peer.address, count=6, collector=collector.endpoint)
    finally:
        collector.close()
    spans = {row["frame"]: row for row in read(tmp_path / "spans.jsonl") if row["kind"] == "span"}
    assert set(spans) == {row["id"] for row in done.frames}
    for row in done.frames:
        times = spans[row["id"]]["t"]
        assert list(times) == ["scheduled", "head_start", "head_end", "encoded", "sent", "answered"]
        assert list(times.values()) == sorted(times.values())
        assert (times["scheduled"], times["answered"]) == (row["scheduled_ns"], row["answered_ns"])


async def test_a_pass_through_a_link_has_every_answer_and_counts_its_time(start_peer: Any, run_pass: Any) -> None:
    peer = await start_peer(zero)
    link = {"rate_up_kbps": 1000, "rate_down_kbps": 1000, "delay_ms": 15}
    done = await run_pass(peer.address, count=5, load={"kind": "single_stream"}, link=link)
    # there and back, and 265 bytes at 1000 kbit/s: physics, not a wall time of ours
    assert min(row["total_ms"] for row in done.frames) >= 30 + 265 * 8 / 1000


def test_a_run_is_named_as_a_folder_and_a_word_of_a_frame_id() -> None:
    for run in ("", ".", "..", ".a", "a/b", "a b", "x" * 97, "ä", "a\n"):
        with pytest.raises(ValueError, match="run"):
            PassRequest(run=run, count=1)
    PassRequest(run="2026-11-20T10:00:00+01.clean", count=1)
