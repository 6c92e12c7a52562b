"""Pools: what a recording or an insider's samples become, and what is said where they cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from adversary.addons.recorder import Recorder
from adversary.attacks import ATTACKS
from adversary.attacks.base import Pool, learns, taught
from adversary.attacks.universal import Universal
from adversary.behaviour import AttackBehaviour
from adversary.pool import MAX_BYTES, OwnSamples, PoolConfig, Recording, Stock, stock
from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.errors import ScenarioError
from splitcore.frame import Frame, Reply
from splitcore.head import Head, as_unit
from splitcore.latent import F32
from splitcore.threat import ThreatModel
from testbed.scenario import SCENARIO

WIRE = ThreatModel(norm="linf", eps=0.5)


@pytest.fixture(scope="module")
def artefact(digits_artefact: Path) -> Artefact:
    return Artefact(digits_artefact)


@pytest.fixture(scope="module")
def latents(artefact: Artefact) -> F32:
    """[8, *shape], as the phone computes them."""
    return Head(artefact).from_uint8(artefact.samples[0][:8])


class Listening:
    """A real recorder, fed by hand."""

    def __init__(self, folder: Path, artefact: Artefact, run: str = "before") -> None:
        self.folder, self.artefact = folder, artefact
        self.recorder = Recorder(folder / f"{run}.jsonl")

    def sent(self, number: int, latent: F32, codec: str = "uniform8/channel", attempt: int = 1) -> Frame:
        payloads = tuple(fit(codec, self.artefact.latent).encode(latent[None]))
        frame = Frame(id=f"r/phone/{number}", payloads=payloads, codec=codec, shape=self.artefact.latent.shape, attempt=attempt)
        self.recorder.request(frame, b"")
        return frame

    def answered(self, frame: Frame, label: int, **fields: Any) -> None:
        self.recorder.reply(frame, Reply(id=frame.id, labels=np.array([label]), **fields))

    def stock(self, **config: Any) -> Stock:
        asyncio.run(self.recorder.close())
        return stock(Recording(run="before", **config), "wire", self.artefact, self.folder)


@pytest.fixture
def listening(tmp_path: Path, artefact: Artefact) -> Listening:
    return Listening(tmp_path, artefact)


def scores(label: int) -> F32:
    found = np.arange(10, dtype=np.float32)[None] / 10
    found[0, label] = 7.5
    return found


def test_a_recording_becomes_the_latents_that_arrived_with_what_the_server_said(
    listening: Listening, artefact: Artefact, latents: F32
) -> None:
    frames = [listening.sent(n, latents[n]) for n in range(3)]
    for n in (2, 0, 1):  # answers come in any order
        listening.answered(frames[n], n + 4, scores=scores(n + 4))
    pool = listening.stock().pool
    assert np.array_equal(pool.points, fit("uniform8/channel", artefact.latent).snap(latents[:3]))
    assert pool.labels.tolist() == [4, 5, 6]
    assert pool.scores is not None
    assert np.array_equal(pool.scores, np.concatenate([scores(4), scores(5), scores(6)]))


def test_every_payload_is_taken_once_and_no_more_than_the_limit(listening: Listening, latents: F32) -> None:
    for number in range(20):
        listening.answered(listening.sent(number, latents[number % 8]), number % 8)
    assert listening.stock(limit=100).pool.labels.tolist() == list(range(8))
    assert listening.stock(limit=5).pool.labels.tolist() == list(range(5))


def test_a_frame_that_was_sent_again_counts_once(listening: Listening, latents: F32) -> None:
    listening.sent(0, latents[0])
    listening.answered(listening.sent(0, latents[0], attempt=2), 3)
    assert listening.stock().pool.labels.tolist() == [3]


def test_frames_without_a_label_are_left_out_and_their_places_go_to_others(listening: Listening, latents: F32) -> None:
    refused = listening.sent(0, latents[0])
    listening.recorder.reply(refused, Reply(id=refused.id, error="RESOURCE_EXHAUSTED: the queue is full"))
    listening.answered(listening.sent(1, latents[1]), -1)  # rejected by a detector
    listening.answered(listening.sent(2, latents[2]), 5)
    listening.sent(3, latents[3])  # never answered
    listening.answered(listening.sent(4, latents[4]), 6)
    assert listening.stock(limit=3).pool.labels.tolist() == [5, 6]
    assert listening.stock(limit=1).pool.labels.tolist() == [5]


def test_rows_of_labels_alone_have_no_scores_and_all_alone_none_at_all(listening: Listening, latents: F32) -> None:
    listening.answered(listening.sent(0, latents[0]), 1)
    assert listening.stock().pool.scores is None
    listening.recorder = Recorder(listening.folder / "before.jsonl")
    listening.answered(listening.sent(1, latents[1]), 2, scores=scores(2))
    found = listening.stock().pool.scores
    assert found is not None
    assert np.isnan(found[0]).all()
    assert np.array_equal(found[1:], scores(2))


def test_a_server_that_gives_scores_alone_is_understood(listening: Listening, latents: F32) -> None:
    frame = listening.sent(0, latents[0])
    listening.recorder.reply(frame, Reply(id=frame.id, scores=scores(9)))
    assert listening.stock().pool.labels.tolist() == [9]


def test_a_row_that_a_killed_recorder_tore_is_passed_over(listening: Listening, latents: F32) -> None:
    listening.answered(listening.sent(0, latents[0]), 1)
    listening.sent(1, latents[1])
    path = listening.folder / "before.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert listening.stock().pool.labels.tolist() == [1]


def test_what_no_recording_gives_is_said_with_what_to_do(listening: Listening, artefact: Artefact, latents: F32) -> None:
    with pytest.raises(ScenarioError, match="recording of run other, found before: record first"):
        stock(Recording(run="other"), "wire", artefact, listening.folder)
    with pytest.raises(ScenarioError, match="frames with answers in the recording of run before, found none"):
        listening.stock()
    listening.recorder = Recorder(listening.folder / "before.jsonl")
    foreign = Frame(id="r/phone/9", payloads=(b"\0" * 8,), codec="identity", shape=(2,))
    listening.recorder.request(foreign, b"")
    listening.answered(foreign, 0)
    with pytest.raises(ScenarioError, match=r"expected latents \[8, 4, 4\] .* got \[2\]: it was made with another artefact"):
        listening.stock()


def test_a_pool_larger_than_memory_is_refused_before_it_is_read(artefact: Artefact, tmp_path: Path) -> None:
    vast = artefact.latent.elements * 4
    assert vast * 8192 < MAX_BYTES
    with pytest.raises(ValidationError, match="less than or equal to 8192"):
        TypeAdapter(PoolConfig).validate_python({"kind": "artefact", "limit": 8193})
    wide = artefact.manifest.model_copy(update={"input_shape": (3, 2048, 2048)})
    big = Artefact(artefact.folder)
    big.manifest = wide
    with pytest.raises(ScenarioError, match="at most 512 MiB, got a limit of 256 points of 12582912 elements: say `limit: 10`"):
        stock(OwnSamples(), "input", big, tmp_path)


def test_an_insiders_pool_is_the_samples_as_they_are_at_each_point(artefact: Artefact, tmp_path: Path) -> None:
    images = as_unit(artefact.samples[0][:100])
    head = Head(artefact)
    stocks = {point: stock(OwnSamples(limit=100), point, artefact, tmp_path) for point in ("input", "latent", "wire")}
    assert np.array_equal(stocks["input"].pool.points, images)
    assert stocks["latent"].pool.points == pytest.approx(head(images), abs=1e-5)
    codec = fit(artefact.manifest.codec, artefact.latent)
    assert np.array_equal(stocks["wire"].pool.points, codec.snap(stocks["latent"].pool.points))
    for held in stocks.values():
        assert np.array_equal(held.pool.labels, artefact.unsplit_labels[:100])


def test_what_a_learner_is_told_is_in_the_values_of_its_point(artefact: Artefact, tmp_path: Path) -> None:
    def about(threat: ThreatModel) -> Any:
        return stock(OwnSamples(limit=20), threat.point, artefact, tmp_path).about(threat, 10, 3)

    spec = artefact.latent
    told = about(ThreatModel(norm="l2", eps=0.5, eps_unit="std"))
    assert told.eps == pytest.approx(0.5 * spec.std * np.sqrt(spec.elements))
    assert (told.norm, told.classes, told.target, told.seed) == ("l2", 10, None, 3)
    steps = about(ThreatModel(norm="linf", eps=2, eps_unit="codec_steps", box="calibrated"))
    codec = fit(artefact.manifest.codec, spec)
    assert steps.eps == pytest.approx(2 * codec.step.max())
    assert np.array_equal(np.broadcast_to(steps.lo, codec.lo.shape), codec.lo)
    at_input = about(ThreatModel(point="input", norm="linf", eps=0.5, eps_unit="std"))
    images = as_unit(artefact.samples[0][:20])
    assert at_input.eps == pytest.approx(0.5 * np.mean([image.std() for image in images]), rel=1e-5)


def behaviour(**fields: Any) -> AttackBehaviour:
    return AttackBehaviour.model_validate({"run": "now", "attack": {"kind": "hopskipjump"}, "threat": {"norm": "l2"}, **fields})


def test_a_recording_is_for_the_wire_alone_and_a_learner_needs_a_pool() -> None:
    recording = {"kind": "recording", "run": "before"}
    assert behaviour(pool=recording).pool == Recording(run="before")
    with pytest.raises(ValidationError, match="expected point wire for a recording, got latent"):
        behaviour(pool=recording, threat={"point": "latent", "norm": "l2"}, source={"kind": "artefact"})
    with pytest.raises(ValidationError, match="attack universal learns from other latents, got no pool: say `pool:"):
        behaviour(attack={"kind": "universal"})
    with pytest.raises(ScenarioError, match="attack universal learns from other latents, got no pool"):
        taught(Universal(), None)


def test_only_those_that_take_a_lesson_are_taken_for_learners() -> None:
    assert {attack.kind for attack in ATTACKS if learns(attack())} == {"universal", "transfer"}


def test_a_scenario_records_before_it_uses_the_recording() -> None:
    use = {
        "name": "hsj",
        "attack": {"kind": "hopskipjump"},
        "threat": {"norm": "l2"},
        "pool": {"kind": "recording", "run": "seen"},
    }
    record = {"name": "seen", "record": True, "frames": 30, "source": {"kind": "dataset", "name": "digits", "split": "train"}}
    base = {"name": "x", "artefact": "somewhere"}
    assert len(SCENARIO.validate_python({**base, "attacks": [record, use]}).attacks) == 2
    with pytest.raises(ValidationError, match=r"hsj: expected a record pass before it .* got 'seen' with none before it"):
        SCENARIO.validate_python({**base, "attacks": [use, record]})


def test_a_pool_is_fixed_and_the_same_each_time(listening: Listening, latents: F32) -> None:
    for number in range(8):
        listening.answered(listening.sent(number, latents[number]), number, scores=scores(number))
    first, second = listening.stock().pool, listening.stock().pool
    assert isinstance(first, Pool)
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("points", "labels", "scores"))
