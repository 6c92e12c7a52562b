"""A model that is not ours: exported by its own script, and loaded by nobody who does not trust its code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge_server.tail import Tail
from splitcore.artefact import MANIFEST, Architecture, Artefact
from splitcore.codec import fit
from splitcore.errors import ArtefactError, DataError
from splitcore.head import Head
from splitcore.nn.bottleneck import UniformBottleneck
from splitcore.nn.export import check_head, export_split
from splitcore.nn.split_model import SplitModel
from splitcore.nn.tail import build_own, load_tail
from testbed.nodes import local_nodes
from testbed.scenario import dump_scenario, load_scenario

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model"
OWN = str(EXAMPLE / "own_model.py")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    folder = tmp_path_factory.mktemp("own") / "artefact"
    subprocess.run([sys.executable, OWN, str(folder)], check=True, cwd=folder.parent)
    return Artefact(folder)


@pytest.mark.long
@torch.inference_mode()
def test_head_in_onnx_and_codec_and_trusted_tail_are_the_exported_model(exported: Artefact) -> None:
    images, labels = exported.samples
    latents = Head(exported).from_uint8(images)
    assert latents.shape == (360, 16, 8), "tokens: a latent need not be an image"
    tail = load_tail(exported, trusted=[OWN])
    identity = fit("identity", exported.latent)
    unsplit = tail(torch.from_numpy(identity.decode(identity.encode(latents)).copy())).argmax(1).numpy()
    np.testing.assert_array_equal(unsplit, exported.unsplit_labels)
    assert exported.manifest.accuracy == np.mean(unsplit == labels) > 0.9
    codec = fit(exported.manifest.codec, exported.latent)
    assert codec.name == "uniform6/tensor"
    arrived = tail(torch.from_numpy(codec.decode(codec.encode(latents)).copy())).argmax(1).numpy()
    assert np.mean(arrived == unsplit) > 0.97
    assert not tail.training


def test_a_tail_of_own_code_is_not_built_without_trust(exported: Artefact) -> None:
    for trusted in ([], ["another"], [str(EXAMPLE / "another.py")], ["own_model_of_mine"]):
        with pytest.raises(
            ArtefactError, match=r"own-mixer: expected a trusted module .* got 'own_model'.*--trust path/to/own_"
        ):
            load_tail(exported, trusted=trusted)


def test_a_trusted_module_is_found_where_python_finds_modules(exported: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtefactError, match=r"ModuleNotFoundError.*PYTHONPATH"):
        load_tail(exported, trusted=["own_model"])
    monkeypatch.syspath_prepend(EXAMPLE)
    assert type(load_tail(exported, trusted=["own_model"])).__name__ == "Tail"


@pytest.mark.parametrize(
    ("net", "arguments", "said"),
    [
        ("own_model:Path", {}, "defined in module own_model"),
        ("own_model:nothing", {}, "defined in module own_model"),
        ("own_model:ARGUMENTS", {}, "defined in module own_model"),
        ("own_model:Tail", {"tokens": 16}, "TypeError"),
        ("own_model:Tail.__init__", {}, "`module:factory`"),
        ("../own_model:Tail", {}, "`module:factory`"),
    ],
)
def test_a_trusted_module_gives_only_tails_that_it_defines(net: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        build_own(Architecture(net=net, arguments=arguments), trusted=[OWN])


def test_a_trusted_file_that_is_not_there_is_named(exported: Artefact, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=str(tmp_path / "own_model.py")):
        load_tail(exported, trusted=[str(tmp_path / "own_model.py")])


def test_a_scenarios_trusted_file_is_meant_from_its_folder_and_a_module_is_a_name(tmp_path: Path) -> None:
    text = (EXAMPLE / "scenario.yaml").read_text().replace("[own_model.py]", "[own_model.py, my.package]")
    (tmp_path / "scenario.yaml").write_text(text)
    scenario = load_scenario(tmp_path / "scenario.yaml")
    assert scenario.edge.trust == (str(tmp_path / "own_model.py"), "my.package")
    again = tmp_path / "run" / "scenario.yaml"
    again.parent.mkdir()
    again.write_text(dump_scenario(scenario))
    assert load_scenario(again) == scenario, "a run that is resumed trusts the same file"


@pytest.mark.long
def test_the_edge_server_serves_an_own_tail_when_the_scenario_trusts_it(exported: Artefact, tmp_path: Path) -> None:
    scenario = load_scenario(EXAMPLE / "scenario.yaml").model_copy(update={"attacks": (), "adversary": False})
    with local_nodes(scenario, exported.folder, tmp_path, None, None) as nodes:
        assert nodes.edge.get("/models")["models"][0]["name"] == "own-mixer"


def test_the_edge_server_does_not_serve_an_own_tail_that_nobody_trusts(exported: Artefact) -> None:
    with pytest.raises(ArtefactError, match="expected a trusted module"):
        Tail(exported, device="cpu", threads=1, max_batch_size=4)


class Constant(nn.Module):
    """A tail of which a part is neither weight nor buffer."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift, self.linear = shift, nn.Linear(4, 2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.linear(z + self.shift)


def export_constant(folder: Path, **changes: Any) -> Artefact:
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 2, 2), np.uint8)
    settings: dict[str, Any] = {
        "name": "constant", "tail_factory": f"{__name__}:Constant", "tail_arguments": {}, "calibration": images,
        "samples": (images, np.zeros(6, np.int64)), "classes": ("a", "b"), "folder": folder,
    }  # fmt: skip
    tail = changes.pop("tail", None) or Constant()
    return export_split(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), UniformBottleneck().build(), tail, **settings | changes)


def test_an_export_whose_factory_builds_another_tail_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tail": Constant(1.0)}, "no weight or buffer must be in tail_arguments"),
        ({"tail": nn.Linear(4, 2)}, "weights to fit"),
        ({"classes": ("a", "b", "c")}, r"logits \[6, 3\].*got \[6, 2\]"),
        ({"tail_arguments": {"shift": float("nan")}}, "JSON can carry"),
        ({"tail_arguments": {"shift": {1}}}, "JSON can carry"),
        ({"tail_factory": "Constant"}, "`module:factory`"),
        ({"tail_factory": "no_such_module:Tail"}, "ModuleNotFoundError"),
    ]
    for changes, said in wrong:
        with pytest.raises(ArtefactError, match=said):
            export_constant(tmp_path, **changes)
    with pytest.raises(DataError, match="labels"):
        export_constant(tmp_path, samples=(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 7])))
    assert not (tmp_path / MANIFEST).exists()


def test_an_export_whose_onnx_head_computes_something_else_leaves_no_artefact(exported: Artefact, tmp_path: Path) -> None:
    """As a head does whose Python has a state that ONNX does not have."""
    shutil.copytree(exported.folder, tmp_path / "copy")
    bottleneck = UniformBottleneck().build()
    check_head(SplitModel(Passed(exported), bottleneck, nn.Identity()), Artefact(tmp_path / "copy"))
    with pytest.raises(ArtefactError, match="latents of the ONNX head as in torch"):
        check_head(SplitModel(Passed(exported, 0.1), bottleneck, nn.Identity()), Artefact(tmp_path / "copy"))
    assert not (tmp_path / "copy" / MANIFEST).exists()


class Passed(nn.Module):
    """A head of torch that computes what the one in ONNX does, and something more."""

    def __init__(self, artefact: Artefact, more: float = 0.0) -> None:
        super().__init__()
        self.head, self.more = Head(artefact), more

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.head(images.numpy())) + self.more


def test_an_artefact_that_names_other_code_in_a_trusted_file_has_another_digest(exported: Artefact, tmp_path: Path) -> None:
    shutil.copytree(exported.folder, tmp_path / "altered")
    tail = Architecture(net="own_model:Head", arguments={"tokens": 16, "latent": 8, "width": 48})
    (tmp_path / "altered" / MANIFEST).write_text(exported.manifest.model_copy(update={"tail": tail}).model_dump_json())
    altered = Artefact(tmp_path / "altered")
    assert altered.manifest.handshake != exported.manifest.handshake, "client and server notice"
    with pytest.raises(ArtefactError, match="does not fit the declared architecture"):
        load_tail(altered, trusted=[OWN])
