"""Export: head in ONNX, codec in numpy and tail from its file are the torch model."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import typer
from typer.testing import CliRunner

from splitcore.artefact import HEAD, MANIFEST, TAIL, Artefact, sha256
from splitcore.codec import fit
from splitcore.data import load
from splitcore.errors import ArtefactError
from splitcore.head import Head
from splitcore.nn.__main__ import is_artefact_of, main
from splitcore.nn.export import export
from splitcore.nn.recipe import Recipe, load_recipe
from splitcore.nn.split_model import SplitModel, as_unit
from splitcore.nn.tail import load_tail
from splitcore.nn.training import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained() -> tuple[SplitModel, Recipe]:
    recipe = dataclasses.replace(load_recipe(ROOT / "recipes" / "digits.yaml"), epochs=2, name="two-epochs")
    return train(recipe, progress=False, device="cpu"), recipe


@pytest.fixture(scope="module")
def exported(trained: tuple[SplitModel, Recipe], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        artefact = export(*trained, load("digits", "test"), tmp_path_factory.mktemp("export"))
    assert said.getvalue() == ""
    return artefact


@torch.inference_mode()
def test_onnx_head_with_the_identity_codec_and_the_tail_is_the_unsplit_torch_model(
    trained: tuple[SplitModel, Recipe], exported: Artefact
) -> None:
    model, _ = trained
    images, _ = exported.samples
    codec = fit("identity", exported.latent)
    latents = codec.decode(codec.encode(Head(exported).from_uint8(images)))
    logits = load_tail(exported)(torch.from_numpy(latents.copy()))
    expected = model.unsplit(as_unit(torch.from_numpy(images)))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(logits.argmax(1).numpy(), exported.unsplit_labels)


@torch.inference_mode()
def test_onnx_head_with_the_manifests_codec_and_the_tail_is_the_torch_model_with_its_bottleneck(
    trained: tuple[SplitModel, Recipe], exported: Artefact
) -> None:
    model, _ = trained
    images, _ = exported.samples
    codec = fit(exported.manifest.codec, exported.latent)
    assert codec.name == "uniform8/channel"
    latents = Head(exported).from_uint8(images)
    arrived = codec.decode(codec.encode(latents))
    z = model.head(as_unit(torch.from_numpy(images)))
    # where torch and ONNX Runtime differ in the last bit, a value on the edge between two codes may fall either way
    assert (np.abs(arrived - model.bottleneck(z).numpy()) > codec.step / 2).mean() < 1e-4
    np.testing.assert_array_equal(model.bottleneck(torch.from_numpy(latents)).numpy(), arrived)
    logits = load_tail(exported)(torch.from_numpy(arrived.copy()))
    torch.testing.assert_close(logits, model.tail(model.bottleneck(torch.from_numpy(latents))), atol=1e-4, rtol=0)
    agree = (logits.argmax(1) == model(as_unit(torch.from_numpy(images))).argmax(1)).float().mean()
    assert agree > 0.995


def test_the_manifest_says_what_was_made(trained: tuple[SplitModel, Recipe], exported: Artefact) -> None:
    model, recipe = trained
    manifest = exported.manifest
    assert manifest.name == "two-epochs"
    assert manifest.input_shape == (1, 8, 8)
    assert exported.latent == model.latent
    assert manifest.tail.net == "small_conv"
    assert manifest.made_with["recipe"] == recipe.digest
    images, labels = exported.samples
    assert len(images) == len(labels) == len(exported.unsplit_labels) == 360
    assert manifest.accuracy == np.mean(exported.unsplit_labels == labels)
    assert manifest.accuracy > 0.8


def test_the_head_is_one_valid_onnx_file_that_tells_nothing_of_the_machine_it_was_made_on(exported: Artefact) -> None:
    model = onnx.load(exported.path(HEAD))
    onnx.checker.check_model(model, full_check=True)
    assert str(ROOT).encode() not in exported.path(HEAD).read_bytes()
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "latent"]
    assert {file.name for file in exported.folder.iterdir()} == {*exported.manifest.files, MANIFEST}


def test_every_file_is_readable_by_others_who_may_be_the_edge_or_the_phone(exported: Artefact) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for file in exported.folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask, file


def test_a_folder_is_no_artefact_while_an_export_into_it_is_under_way(
    trained: tuple[SplitModel, Recipe], exported: Artefact, tmp_path: Path
) -> None:
    """Killed after any number of moved files, what is left has no manifest, and the next export mends it."""
    model, recipe = trained
    folder = tmp_path / "artefact"
    shutil.copytree(exported.folder, folder)
    (folder / MANIFEST).unlink()
    (folder / TAIL).write_bytes(b"half")
    (folder / ".export").mkdir()
    (folder / ".export" / "head.onnx").write_bytes(b"old")
    with pytest.raises(ArtefactError, match="no readable manifest"):
        Artefact(folder)
    assert not is_artefact_of(recipe, folder)
    export(model, recipe, load("digits", "test"), folder)
    assert is_artefact_of(recipe, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*exported.manifest.files, MANIFEST])
    for name in (HEAD, TAIL):
        assert Artefact(folder).manifest.files[name] == exported.manifest.files[name], "the same networks each time"


def altered(exported: Artefact, folder: Path, **changes: object) -> Path:
    shutil.copytree(exported.folder, folder)
    manifest = exported.manifest.model_copy(update=changes)
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder


def test_an_altered_tail_is_refused(exported: Artefact, tmp_path: Path) -> None:
    folder = altered(exported, tmp_path / "x")
    data = bytearray((folder / TAIL).read_bytes())
    data[-1] ^= 1
    (folder / TAIL).write_bytes(data)
    with pytest.raises(ArtefactError, match=r"expected sha256 .* for tail.safetensors"):
        load_tail(Artefact(folder))


@pytest.mark.parametrize("change", [{"net": "resnet"}, {"arguments": {"latent_channels": 8, "evil": 1}}])
def test_a_tail_of_an_unknown_architecture_is_refused(exported: Artefact, tmp_path: Path, change: dict[str, object]) -> None:
    folder = altered(exported, tmp_path / "x", tail=exported.manifest.tail.model_copy(update=change))
    with pytest.raises(ArtefactError, match="no network here is as its tail declares"):
        load_tail(folder)


def test_weights_of_another_architecture_are_refused(exported: Artefact, tmp_path: Path) -> None:
    arguments = {**exported.manifest.tail.arguments, "tail_width": 12}
    folder = altered(exported, tmp_path / "x", tail=exported.manifest.tail.model_copy(update={"arguments": arguments}))
    with pytest.raises(ArtefactError, match="does not fit the declared architecture"):
        load_tail(folder)


def test_weights_that_are_no_safetensors_are_refused(exported: Artefact, tmp_path: Path) -> None:
    folder = altered(exported, tmp_path / "x")
    (folder / TAIL).write_bytes(b"\x80\x04pickle")
    files = {**exported.manifest.files, TAIL: sha256(folder / TAIL)}
    (folder / MANIFEST).write_text(exported.manifest.model_copy(update={"files": files}).model_dump_json())
    with pytest.raises(ArtefactError, match="does not fit"):
        load_tail(folder)


def test_a_head_of_another_shape_than_the_manifest_says_is_refused(exported: Artefact, tmp_path: Path) -> None:
    folder = altered(exported, tmp_path / "x", input_shape=(1, 8, 9))
    with pytest.raises(ArtefactError, match="as the manifest says"):
        Head(folder)


def test_the_tail_loads_where_nothing_for_training_is_installed(exported: Artefact) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "for name in ('onnx', 'onnxscript', 'onnxruntime', 'yaml', 'sklearn', 'PIL'): sys.modules[name] = None\n"
        "from splitcore.nn.tail import load_tail\n"
        "print(load_tail(Path(sys.argv[1])).training)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(exported.folder)], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_the_command_line_trains_once_and_then_finds_the_artefact_there(tmp_path: Path) -> None:
    recipe, out = tmp_path / "quick.yaml", tmp_path / "out"
    text = (ROOT / "recipes" / "digits.yaml").read_text()
    recipe.write_text(text.replace("epochs: ", "epochs: 1 # ").replace("name: digits", "name: quick"))
    command = typer.Typer()
    command.command()(main)
    arguments = [str(recipe), "--out", str(out), "--device", "cpu", "--if-missing"]
    made = CliRunner().invoke(command, arguments)
    assert made.exit_code == 0, made.output
    assert "quick@" in made.stdout
    before = (out / MANIFEST).stat()
    again = subprocess.run([sys.executable, "-m", "splitcore.nn", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert "already" in again.stdout, again.stderr
    assert (out / MANIFEST).stat() == before
    recipe.write_text(text.replace("epochs: ", "epochs: 2 # "))
    assert not is_artefact_of(load_recipe(recipe), out)
    recipe.write_text("name: x")
    failed = CliRunner().invoke(command, arguments)
    assert failed.exit_code == 1
    assert "is not a recipe" in failed.stderr
