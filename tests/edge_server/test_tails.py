"""The forms of a tail: what they say, which one is chosen, and that nothing is copied that need not be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_server.batch import decode
from edge_server.choose_tail import Where, _best, choose, make
from edge_server.queue import Job
from edge_server.trial import Trial
from splitcore.artefact import Artefact
from splitcore.codec import fit


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tails")


@pytest.fixture
def where(digits_artefact: Path, exports: Path) -> Where:
    return Where(Artefact(digits_artefact), "cpu", 1, 16, (), exports)


def test_auto_measures_the_forms_that_are_cheap_to_make_and_serves_one_that_says_the_same(where, served):
    tail, trials = choose("auto", where)
    assert [trial.kind for trial in trials] == ["eager", "onnxruntime", "channels-last"]
    assert [trial.kind for trial in trials if trial.chosen] == [tail.kind]
    for trial in trials:
        assert set(trial.ms) == {1, 8} and not trial.against
    latents = served.latents(11)
    np.testing.assert_allclose(tail(latents), served.scores(latents), rtol=1e-3, atol=1e-3)
    assert len(list(where.exports.glob("*.onnx"))) == 1, "exported once, for whoever starts here again"


@pytest.mark.parametrize("kind", ["eager", "channels-last", "bfloat16", "onnxruntime"])
@pytest.mark.parametrize("rows", [1, 7, 16])
def test_every_form_says_what_torch_says_whether_its_room_was_used_or_not(kind, rows, where, served):
    tail = make(kind, where)
    latents = served.latents(rows)
    expected, near = served.scores(latents), 0.15 if kind == "bfloat16" else 1e-3
    for _ in range(2):
        np.testing.assert_allclose(tail(latents), expected, rtol=near, atol=near)
        room = tail.room(rows)
        room[...] = latents
        np.testing.assert_allclose(tail(room), expected, rtol=near, atol=near)
    assert tail.room(17) is None


def test_a_form_that_is_barely_faster_or_says_something_else_is_not_chosen():
    plain = Trial("eager", {1: 1.0, 8: 4.0})
    level = Trial("channels-last", {1: 0.98, 8: 3.9})
    wrong = Trial("onnxruntime", {1: 0.1, 8: 0.4}, labels_changed=1, against="another label")
    assert _best([plain, level, wrong]) is plain
    faster = Trial("onnxruntime", {1: 0.5, 8: 4.0})
    assert _best([plain, level, wrong, faster]) is faster


def test_what_an_exporter_raises_leaves_the_plain_form(where, monkeypatch):
    def broken(where: Where) -> Path:
        raise RuntimeError("no exporter here")

    monkeypatch.setattr("edge_server.choose_tail._exported", broken)
    _, trials = choose("auto", where)
    assert trials[1].against == "RuntimeError: no exporter here" and not trials[1].chosen
    with pytest.raises(RuntimeError, match="no exporter"):
        choose("onnxruntime", where)


async def test_a_server_writes_down_what_it_chose_and_says_so(start_edge, tmp_path):
    edge = await start_edge(tail="bfloat16")
    written = json.loads((tmp_path / "edge" / "tail.json").read_text())
    [(_, trials)] = written["models"].items()
    assert [(trial["kind"], trial["chosen"]) for trial in trials] == [("eager", False), ("bfloat16", True)]
    [model] = edge.server.service.models
    assert model.tail.kind == "bfloat16" and model.trials[1].furthest is not None


class Nobody:
    gone, identity, trace = False, "", ""

    def answer(self, job: Job, outcome: object) -> None:
        raise AssertionError("nobody asks")


@pytest.mark.parametrize("codec", ["identity", "uniform8/channel", "float16"])
def test_payloads_are_decoded_into_the_tails_own_room(codec, where, served):
    tail, coder = make("eager", where), fit(codec, served.spec)
    stacks = [served.latents(rows, seed=rows) for rows in (3, 1, 5)]
    jobs = [Job(served.frame(str(n), stack, codec), coder, Nobody(), 0) for n, stack in enumerate(stacks)]
    latents = decode(jobs, tail.room)
    assert np.shares_memory(latents, tail.room(16))
    np.testing.assert_array_equal(latents, coder.snap(np.concatenate(stacks)))


def test_several_codecs_in_a_batch_are_each_decoded_to_their_own_rows(served):
    codecs = ["identity", "uniform8/channel", "identity", "uniform4/tensor"]
    stacks = [served.latents(2, seed=n) for n in range(4)]
    coders = [fit(codec, served.spec) for codec in codecs]
    jobs = [
        Job(served.frame(str(n), stack, codec), coder, Nobody(), 0)
        for n, (stack, codec, coder) in enumerate(zip(stacks, codecs, coders, strict=True))
    ]
    expected = np.concatenate([coder.snap(stack) for coder, stack in zip(coders, stacks, strict=True)])
    np.testing.assert_array_equal(decode(jobs), expected)
