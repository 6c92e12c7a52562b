"""Detectors on the edge: what they find, what is answered then, and what stands in the log and the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_server.detectors import DETECTORS, Asked, Blacklight, OutOfRange, OwnDetector, QueryRate
from edge_server.detectors.fingerprint import Fingerprints, Recent
from edge_server.detectors.panel import built
from edge_server.detectors.read import read_detector, said
from splitcore.codec import fit
from splitcore.errors import ScenarioError
from splitcore.journal import read
from splitcore.latent import LatentSpec
from splitcore.wire import oip

OWN = Path(__file__).parents[2] / "examples" / "own_detector" / "own_detector.py"
SPEC = LatentSpec((4, 8, 8), (-1.0,) * 4, (1.0,) * 4, 0.5)


def latents(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (rows, *SPEC.shape)).astype(np.float32)


def near(z: np.ndarray, rows: int, seed: int = 1) -> np.ndarray:
    """[rows, *shape] around one latent, a fiftieth of its values moved."""
    rng = np.random.default_rng(seed)
    moved = np.repeat(z[None], rows, axis=0)
    places = rng.random(moved.shape) < 0.02
    moved[places] += rng.choice(np.float32([-0.3, 0.3]), int(places.sum()))
    return moved


def asked(rows: int, client: str = "ipv4:10.0.0.7", at_s: float = 0.0) -> list[Asked]:
    return [Asked(rows, client, int(at_s * 1e9))]


@pytest.mark.parametrize("hashing", ["multilinear", "sha256"])
def test_queries_about_one_latent_are_detected_and_other_latents_are_not(hashing: str) -> None:
    watch = Blacklight(hashing=hashing, seed=1).for_model(SPEC)
    clean = latents(20)
    assert watch.look(clean, asked(20)) == {}
    detected = watch.look(near(clean[3], 16), asked(16))
    assert len(detected) >= 14 and all("of 50 hashes are those of query" in why for why in detected.values())
    assert watch.look(latents(5, seed=9), asked(5)) == {}


def test_rows_of_one_batch_are_compared_with_each_other() -> None:
    watch = Blacklight(seed=1).for_model(SPEC)
    detected = watch.look(near(latents(1)[0], 32), asked(32))
    assert 0 not in detected and len(detected) >= 28


def test_the_very_same_latent_has_the_verdict_of_the_first_time() -> None:
    watch = Blacklight(seed=1, window=1000).for_model(SPEC)
    first = latents(1)
    searched = near(first[0], 4)
    assert watch.look(first, asked(1)) == {}
    detected = watch.look(searched, asked(4))
    assert detected
    assert watch.look(first, asked(1)) == {}, "sent again, or on its way after an attack on it"
    assert watch.look(searched, asked(4)).keys() == detected.keys()
    for seed in range(60):
        watch.look(near(first[0], 50, seed=seed), asked(50))
    assert watch.look(first, asked(1)) == {}, "however many queries were rejected meanwhile"


def test_what_is_older_than_the_window_and_what_was_forgotten_detect_nothing() -> None:
    watch = Blacklight(seed=1, window=10).for_model(SPEC)
    z = latents(1)
    watch.look(z, asked(1))
    watch.look(latents(10, seed=5), asked(10))
    assert watch.look(near(z[0], 1), asked(1)) == {}
    watch.forget()
    assert watch.look(near(z[0], 1, seed=2), asked(1)) == {}


def test_the_detector_without_a_seed_has_another_secret_each_time() -> None:
    def fingerprint() -> np.ndarray:
        watch = Blacklight().for_model(SPEC)
        return watch._fingerprints(latents(1))[0]  # type: ignore[attr-defined]

    assert not np.intersect1d(fingerprint(), fingerprint()).size


@settings(max_examples=30, deadline=None)
@given(shape=st.sampled_from([(3,), (2, 5), (4, 8, 8)]), w=st.integers(1, 300), stride=st.integers(1, 7), k=st.integers(1, 60))
def test_windows_that_are_equal_have_equal_hashes_and_no_others(shape: tuple[int, ...], w: int, stride: int, k: int) -> None:
    spec = LatentSpec(shape, (0.0,) * shape[0], (1.0,) * shape[0], 1.0)
    rng = np.random.default_rng(0)
    z = rng.random((6, *shape), np.float32)
    z[3:] = z[:3]
    z[3:, -1] = 7.0  # the last channel differs, whatever window does not reach it is the same
    fingerprints = Fingerprints(spec, step=0.1, w=w, stride=stride, k=10**6, hashing="multilinear", rng=rng)
    d, hashes = spec.elements, fingerprints._multilinear(fingerprints.levels(z))
    levels = fingerprints.levels(z)
    for row in range(3):
        for place in range(fingerprints.windows):
            window = slice(place * stride, place * stride + fingerprints.w)
            assert window.stop <= d
            assert (hashes[row, place] == hashes[row + 3, place]) == bool(
                (levels[row, window] == levels[row + 3, window]).all()
            )
    few = Fingerprints(spec, step=0.1, w=w, stride=stride, k=k, hashing="multilinear", rng=np.random.default_rng(1))
    assert few(z).shape == (6, min(k, few.windows)) and few(z[:0]).shape == (0, few.k)


@pytest.mark.parametrize("enough", [1, 3, 6])
def test_the_table_of_recent_queries_finds_what_a_plain_dictionary_finds(enough: int) -> None:
    rng = np.random.default_rng(0)
    recent, plain, missed, found = Recent(queries=50, k=8), dict[int, set[int]](), 0, 0
    for number in range(1, 401):
        hashes = rng.permutation(100)[:8].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        if number % 5 == 0 and number > 60:
            again = sorted(plain[number - 30])[:7]
            hashes = np.array([*again, next(h for h in hashes.tolist() if h not in again)], np.uint64)
        [(like, shared)] = recent.look(hashes[None], enough)
        want = {n: len(plain[n] & set(hashes.tolist())) for n in range(max(1, number - 50), number)}
        newest = max((n for n, count in want.items() if count >= enough), default=0)
        # of each hash the newest 8 queries are known: the table may have lost one, and invents none
        assert like <= newest and (like == shared == 0 or enough <= shared <= want[like])
        missed, found = missed + (like != newest), found + (newest > 0)
        plain[number] = set(hashes.tolist())
    assert found >= 60 and missed <= 0.05 * found
    assert recent.nbytes < 1 << 15


def test_a_table_whose_numbers_run_out_begins_anew() -> None:
    recent = Recent(queries=50, k=4)
    prints = np.arange(1, 9, dtype=np.uint64).reshape(2, 4) * np.uint64(0x9E3779B97F4A7C15)
    recent._number = (1 << 32) - 4
    assert recent.look(prints, 2) == [(0, 0), (0, 0)]
    assert recent.look(prints, 2) == [(0, 0), (0, 0)]
    assert recent.look(prints, 2) == [(1, 4), (2, 4)]


def test_a_poisson_client_goes_unnoticed_and_one_that_asks_ten_times_as_much_is_found_at_once() -> None:
    rng = np.random.default_rng(3)
    for learned in (None, 50.0):
        watch = QueryRate(rows_per_s=learned, learn_s=5).for_model(SPEC)
        clock = 0.0
        for _ in range(3000):
            clock += rng.exponential(1 / 50)
            assert watch.look(latents(1), asked(1, at_s=clock)) == {}
        rows = 0
        while not watch.look(latents(1), asked(1, at_s=clock)):
            clock += rng.exponential(1 / 500)
            rows += 1
        assert rows < 60
        assert watch.look(latents(1), asked(1, "ipv4:10.0.0.8", clock)) == {}, "another client"
        clock += 6
        assert watch.look(latents(1), asked(1, at_s=clock)) == {}, "it was quiet for long enough"


def test_clients_are_remembered_within_bounds() -> None:
    watch = QueryRate(rows_per_s=1, max_clients=3).for_model(SPEC)
    for n in range(10):
        watch.look(latents(1), asked(1, f"ipv4:10.0.0.{n}"))
    assert len(watch._clients) == 3  # type: ignore[attr-defined]


def test_values_out_of_the_calibrated_range_are_detected() -> None:
    z = latents(4)
    z[2, :, 0, 0] = 5.0
    assert list(OutOfRange(share=0.01).for_model(SPEC).look(z, asked(4))) == [2]
    assert OutOfRange(share=0.1).for_model(SPEC).look(z, asked(4)) == {}


def test_every_detector_is_said_and_read_by_its_kind() -> None:
    for kind in DETECTORS:
        assert read_detector(kind().kind) == kind() == read_detector(json.dumps(said(kind())))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("blacklite", "expected kind one of blacklight, query_rate, out_of_range, or one's own"),
        ('{"kind": "blacklight", "threshold": 2}', "threshold: Input should be less than or equal to 1"),
        ('{"kind": "blacklight", "salt": 2}', "salt: Unexpected keyword argument"),
        ("{", "Invalid JSON"),
    ],
)
def test_what_is_no_detector_is_refused_in_words(text: str, wrong: str) -> None:
    with pytest.raises(ScenarioError, match="is no detector") as refused:
        read_detector(text)
    assert wrong in str(refused.value)


def test_a_detector_of_ones_own_is_run_only_where_it_is_trusted() -> None:
    own = read_detector('{"kind": "own_detector:Close", "within": 0.05}')
    assert isinstance(own, OwnDetector)
    with pytest.raises(ScenarioError, match=r"expected a trusted module for the detector.*say --trust .* to the edge server"):
        built([own], [])
    [config] = built([own], [str(OWN)])
    watch = config.for_model(SPEC)
    z = latents(2)
    assert (config.kind, watch.look(z, asked(2))) == ("close", {})
    assert list(watch.look(np.stack([z[0], z[0] + np.float32(0.01)]), asked(2))) == [1], "the very same latent is none"
    for arguments, wrong in (({"withn": 1}, "cannot be built from"), ({"action": "drop"}, "cannot be built from")):
        with pytest.raises(ScenarioError, match=wrong):
            built([OwnDetector.model_validate({"kind": "own_detector:Close", **arguments})], [str(OWN)])


async def test_rejected_rows_are_answered_as_such_and_stand_in_log_and_metrics(start_edge, served) -> None:
    edge = await start_edge(detectors=(Blacklight(seed=1),))
    codec = fit("identity", served.spec)
    z = codec.snap(served.latents(1, seed=2))
    searched = np.repeat(z, 3, axis=0)
    searched[1:, 0, 0, 0] += np.float32([0.01, 0.02])
    few = served.frame("run/query-1/0", searched, origin="query")
    [first] = await edge.peer.ask([few])
    assert first.error is None and first.labels.tolist() == [first.labels[0], -1, -1] and first.labels[0] >= 0
    np.testing.assert_allclose(first.scores[0], served.scores(searched[:1])[0], rtol=1e-4, atol=1e-4)
    assert not first.scores[1:].any(), "a rejected row tells nothing"
    lone = served.frame("run/query-1/1", searched[2:], origin="query")
    [whole] = await edge.peer.ask([lone])
    assert whole.error is not None and whole.error.startswith("PERMISSION_DENIED: rejected") and "blacklight" not in whole.error
    with pytest.raises(grpc.aio.AioRpcError) as unary:
        await edge.peer.infer(lone)
    assert unary.value.code() == grpc.StatusCode.PERMISSION_DENIED
    [again] = await edge.peer.ask([served.frame("run/phone/0", z)])
    assert again.labels.tolist() == [first.labels[0]], "the frame itself goes through"
    rows = list(read(edge.log))
    assert [row.get("rejected") for row in rows] == [[1, 2], [0], [0], None]
    assert rows[0]["detected"] == {"blacklight": [1, 2]} and rows[0]["rows"] == 3
    counts = edge.server.metrics.models[served.name, "1"]
    assert (counts.detected["blacklight"], counts.rejected_rows, counts.rows) == (4, 4, 2)
    assert counts.failures["REJECTED_DETECTED"] == 2
    async with httpx.AsyncClient(base_url=f"http://{edge.server.control}", trust_env=False) as client:
        text = (await client.get("/metrics")).text
        assert f'latentbed_detected_rows{{detector="blacklight",model="{served.name}",version="1"}} 4.0' in text
        tables = {table["title"]: table["rows"] for table in (await client.get("/live.json")).json()["tables"]}
        assert tables["Detected"] == [["blacklight", 4], ["in all rejected, so not computed", counts.rejected_rows]]
        [detector] = (await client.get("/detectors")).json()["detectors"]
        assert detector["settings"]["kind"] == "blacklight" and detector["detected_rows"] == {f"{served.name}/1": 4}
        assert (await client.put("/detectors", json={"order": "off"})).status_code == 401
        token = (edge.log.parent / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        for order, error in (("flag", None), ("off", None), (None, "PERMISSION_DENIED")):
            reply = await client.put("/detectors", json={"order": order}, headers=headers)
            assert reply.json()["order"] == order
            [fresh] = await edge.peer.ask([served.frame("run/phone/1", z)])
            [near] = await edge.peer.ask([served.frame("run/query-1/2", searched[1:2], origin="query")])
            assert fresh.error is None and (near.error or "").partition(":")[0] == (error or "")
    flagged, passed, rejected = [row for row in read(edge.log) if row["id"] == "run/query-1/2"]
    assert flagged["detected"] == {"blacklight": [0]} and "rejected" not in flagged
    assert "detected" not in passed
    assert rejected["rejected"] == [0]


async def test_a_detector_that_fails_fails_its_batch_and_nothing_passes_unseen(start_edge, served, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "class Broken:\n    kind, action = 'broken', 'reject'\n    def for_model(self, latent): return self\n"
        "    def forget(self): pass\n    def look(self, latents, requests): raise RuntimeError('no')\n"
    )
    own = OwnDetector.model_validate({"kind": "broken:Broken"})
    edge = await start_edge(detectors=(own,), trust=(str(tmp_path / "broken.py"),))
    [reply] = await edge.peer.ask([served.frame("run/phone/0")])
    assert reply.error is not None and reply.error.startswith("INTERNAL")
    assert edge.logged() == []
    assert await edge.peer.call(oip.LIVE), "the server lives"
