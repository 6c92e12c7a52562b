"""The GPU path, on a machine that has one: `make test-gpu`. Fails, not skips, where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from edge_server.choose_tail import Where, choose
from edge_server.gpu import ENERGY, GAUGES, Gpus
from edge_server.graph_tail import GraphTail
from edge_server.tail import Tail
from splitcore.artefact import Artefact
from splitcore.data import load
from splitcore.head import Head
from splitcore.nn.export import export
from splitcore.nn.recipe import load_recipe
from splitcore.nn.tail import load_tail
from splitcore.nn.training import train
from testbed.drive import drive, new_run
from testbed.report.build import build
from testbed.scenario import load_scenario

pytestmark = pytest.mark.gpu

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"


@pytest.fixture(scope="module")
def cuda_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the GPU, exported as anywhere."""
    recipe = load_recipe(RECIPE)
    folder = tmp_path_factory.mktemp("artefacts") / "digits"
    export(train(recipe, progress=False, device="cuda"), recipe, load("digits", "test"), folder)
    return folder


def test_a_model_that_was_trained_on_the_gpu_is_as_accurate_as_one_from_the_cpu(cuda_artefact: Path) -> None:
    assert Artefact(cuda_artefact).manifest.accuracy >= 0.97


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_tail_on_the_gpu_says_what_it_says_on_the_cpu(cuda_artefact: Path, rows: int) -> None:
    artefact = Artefact(cuda_artefact)
    tail = Tail(artefact, device="cuda", threads=1, max_batch_size=64)
    tail.warm_up()
    assert tail.device.startswith("cuda:0 ")
    latents = Head(artefact).from_uint8(artefact.samples[0][:rows])
    with torch.inference_mode():
        expected = load_tail(artefact)(torch.from_numpy(latents)).numpy()
    for _ in range(3):  # the staging buffer is used again and again
        got = tail(latents)
        assert np.abs(got - expected).max() < 2e-2
        assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_a_scenario_runs_on_the_gpu_to_its_report_and_the_books_agree(cuda_artefact: Path, tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "name": "gpu", "artefact": str(cuda_artefact), "frames": 128, "window": 128, "edge": {"device": "cuda"},
        "attacks": [
            {"name": "noise", "attack": {"kind": "noise"}, "threat": {"norm": "linf", "eps": 0.5}},
            {"name": "square", "attack": {"kind": "square"}, "threat": {"norm": "linf", "eps": 0.5, "budget": 500}},
            {"name": "hsj", "attack": {"kind": "hopskipjump"}, "threat": {"norm": "l2", "eps": 0.5, "budget": 500}},
        ],
    }  # fmt: skip
    (tmp_path / "gpu.yaml").write_text(yaml.safe_dump(document))
    folder = new_run(load_scenario(tmp_path / "gpu.yaml"), tmp_path / "runs")
    drive(folder, cuda_artefact, None, Console(quiet=True))
    report = build(folder, cuda_artefact)
    assert report.ledger.agrees, report.ledger.disagreements
    assert report.clean.agreement_with_unsplit is not None
    assert report.clean.agreement_with_unsplit >= 0.99  # float32 sums differ between devices in the last bits
    attacks = {attack.name: attack for attack in report.attacks}
    assert (attacks["square"].asr.value or 0) > 2 * (attacks["noise"].asr.value or 0)
    print({name: (attack.asr.value, attack.queries.total, attack.wall_s) for name, attack in attacks.items()})


def test_the_gpus_are_in_the_metrics_under_tritons_names() -> None:
    metrics = {family.name: family.samples for family in Gpus().collect()}
    assert set(metrics) == {*GAUGES, ENERGY}
    [used], [total] = metrics["nv_gpu_memory_used_bytes"], metrics["nv_gpu_memory_total_bytes"]
    assert 0 < used.value <= total.value and used.labels["gpu_uuid"].startswith("GPU-")
    assert 0 <= metrics["nv_gpu_utilization"][0].value <= 1


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_cuda_graphs_say_what_the_tail_says_on_the_cpu_for_every_size_of_batch(cuda_artefact: Path, rows: int) -> None:
    artefact = Artefact(cuda_artefact)
    tail = GraphTail(artefact, device="cuda", threads=1, max_batch_size=64)
    tail.warm_up()
    latents = Head(artefact).from_uint8(artefact.samples[0][:rows])
    with torch.inference_mode():
        expected = load_tail(artefact)(torch.from_numpy(latents)).numpy()
    for _ in range(3):
        room = tail.room(rows)
        assert room is not None
        room[...] = latents
        got = tail(room)
        assert np.abs(got - expected).max() < 2e-2
        assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_on_a_gpu_auto_tries_cuda_graphs_and_serves_a_form_with_the_same_labels(cuda_artefact: Path, tmp_path: Path) -> None:
    tail, trials = choose("auto", Where(Artefact(cuda_artefact), "cuda", 1, 64, (), tmp_path))
    graphs = next(trial for trial in trials if trial.kind == "cuda-graphs")
    assert graphs.labels_changed == 0 and not graphs.against
    assert [trial.kind for trial in trials if trial.chosen] == [tail.kind]
    print(tail.kind, {trial.kind: (trial.ms, trial.against) for trial in trials})
