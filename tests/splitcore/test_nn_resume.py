"""A training that was killed goes on to the weights that it would have had."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from splitcore.artefact import Artefact
from splitcore.data import load
from splitcore.errors import DataError
from splitcore.nn import fit
from splitcore.nn.bottleneck import EntropyBottleneck
from splitcore.nn.checkpoint import Checkpoint
from splitcore.nn.net import LeNet, Narrow
from splitcore.nn.objective import Distil, Match
from splitcore.nn.recipe import Recipe, Taught, load_recipe
from splitcore.nn.split_model import SplitModel, as_unit
from splitcore.nn.stage import Stage
from splitcore.nn.training import train

RECIPES = Path(__file__).parents[2] / "recipes"
STUDENT = Recipe(
    name="student",
    dataset="digits",
    net=Narrow(teacher=LeNet(resize=True), form="entropic", channels=2, width=4),
    bottleneck=EntropyBottleneck(channels=2, beta=0.1),
    teacher=Taught(stages=(Stage(epochs=1, batch=512),)),
    stages=(
        Stage(objective=Match(after=("conv2",)), epochs=2, batch=512, optimiser="adam", frozen=("rest",)),
        Stage(objective=Distil(), epochs=2, batch=512, frozen=("head", "bottleneck")),
    ),
    augment="shift",
)


class CutOffError(Exception):
    pass


def cut_off_after(steps: int, monkeypatch: pytest.MonkeyPatch, keep: Path) -> None:
    """A training with a checkpoint after every batch, ended in the middle."""
    step, done = fit.Fit._step, []

    def counted(*arguments: object) -> object:
        if len(done) == steps:
            raise CutOffError
        done.append(None)
        return step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(fit, "KEPT_EVERY_S", -1.0)
        patch.setattr(fit.Fit, "_step", counted)
        with pytest.raises(CutOffError):
            train(STUDENT, progress=False, device="cpu", keep=keep)


def same(a: SplitModel, b: SplitModel) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs) and a.latent == b.latent


@pytest.mark.long
def test_wherever_it_was_cut_off_it_ends_with_the_same_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    undisturbed = train(STUDENT, progress=False, device="cpu")
    for steps in (2, 7, 13):  # of 3 an epoch: in the teacher's only one, in the second of the first stage and of the second
        cut_off_after(steps, monkeypatch, tmp_path / str(steps))
        assert same(undisturbed, train(STUDENT, progress=False, device="cpu", keep=tmp_path / str(steps))), steps
    assert same(undisturbed, train(STUDENT, progress=False, device="cpu", keep=tmp_path / "13")), "done, so nothing is trained"


def test_another_recipes_state_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Checkpoint(tmp_path / "x.pt", "one recipe").save({"stage": 1})
    assert Checkpoint(tmp_path / "x.pt", "one recipe").load() == {"stage": 1}
    assert Checkpoint(tmp_path / "x.pt", "another").load() is None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 and nothing else", b"no archive at all"])
def test_a_damaged_state_is_an_error_that_names_its_file(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(damage)
    with pytest.raises(DataError, match=r"x\.pt, got a damaged file: remove it"):
        Checkpoint(tmp_path / "x.pt", "a recipe").load()


@pytest.mark.long
def test_a_killed_process_goes_on_from_its_last_stage_and_exports_the_same_artefact(tmp_path: Path) -> None:
    recipe = {
        "name": "short", "approach": "two", "dataset": "digits",
        "net": {"kind": "small_conv", "latent_channels": 4, "head_width": 4, "tail_width": 8},
        "bottleneck": {"kind": "uniform", "bits": 4},
        "stages": [{"epochs": 1, "batch": 64}, {"epochs": 12, "batch": 32, "frozen": ["head"]}],
    }  # fmt: skip
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump(recipe))

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "splitcore.nn", str(file), "--out", str(out), "--device", "cpu"]

    cut, whole = tmp_path / "cut", tmp_path / "whole"
    victim = subprocess.Popen(command(cut), stderr=subprocess.DEVNULL)
    state = cut / ".training" / "short.pt"
    deadline = time.monotonic() + 60
    while not state.exists() and victim.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "it was at its second stage"
    assert not (cut / "manifest.json").exists()
    for out in (cut, whole):
        subprocess.run(command(out), check=True, capture_output=True)
    assert Artefact(cut).manifest == Artefact(whole).manifest
    assert Artefact(cut).manifest.approach == "two"
    assert not state.parent.exists(), "what it no longer needs is gone"


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_too_a_training_that_was_cut_off_goes_on_and_its_student_is_as_good(compiled: bool, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "digits-es.yaml")
    model = train(recipe, progress=False, device="cuda", keep=tmp_path, compiled=compiled)
    assert same(model, train(recipe, progress=False, device="cuda", keep=tmp_path, compiled=compiled)), "from its last state"
    held_out = load("digits", "test")
    with torch.inference_mode():
        said = model.cpu()(as_unit(torch.from_numpy(held_out.images))).argmax(1).numpy()
    assert (said == held_out.labels).mean() > 0.9
