"""The networks: shapes, parameters, names of weights, and the published accuracy where the data are."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.data import Dataset, load
from splitcore.errors import DataError, ScenarioError
from splitcore.head import Head
from splitcore.nn.bottleneck import UniformBottleneck
from splitcore.nn.export import export
from splitcore.nn.net import CifarResNet, LeNet
from splitcore.nn.net.cifar_resnet import Block
from splitcore.nn.pretrained import fill, load_pretrained
from splitcore.nn.recipe import Pretrained, Recipe, load_recipe
from splitcore.nn.split_model import SplitModel, as_unit, calibrate
from splitcore.nn.tail import load_tail
from splitcore.nn.training import build

RECIPES = Path(__file__).parents[2] / "recipes"
DATA = os.environ.get("LATENTBED_DATA", "")
RGB = (3, 32, 32)


def model_of(net: CifarResNet) -> SplitModel:
    head = net.head(RGB, (), ())
    return SplitModel(head, UniformBottleneck().build(), net.tail(net.latent_shape(RGB), 10)).eval()


def published_weights(depth: int, seed: int = 0) -> dict[str, Tensor]:
    """A state dict with the names and shapes under which weights of these networks are published, written down by hand."""
    rng = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3), "linear.weight": (10, 64), "linear.bias": (10,)}
    norms = {"bn1": 16}
    fan_in = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, fan_in, 3, 3), f"{name}.conv2.weight": (width, width, 3, 3)}
            norms |= {f"{name}.bn1": width, f"{name}.bn2": width}
            fan_in = width
    for name, width in norms.items():
        shapes |= {f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")}
    return {name: torch.rand(shape, generator=rng) * 0.2 for name, shape in shapes.items()}


def test_cut_before_everything_the_tail_is_the_whole_network_under_the_same_names() -> None:
    whole, split = model_of(CifarResNet(cut="input")), model_of(CifarResNet(cut="stage2"))
    fill(whole, published_weights(20))
    fill(split, published_weights(20))
    x = torch.rand(3, *RGB)
    assert torch.equal(whole.head(x), x)
    assert torch.allclose(whole.unsplit(x), split.unsplit(x), atol=1e-5)
    assert parameters(whole.tail) == 269_722


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
@pytest.mark.parametrize(("cut", "latent"), [("stage1", (16, 32, 32)), ("stage2", (32, 16, 16))])
def test_a_cifar_resnet_has_the_latent_of_its_cut_and_the_parameters_of_the_paper(
    depth: int, cut: str, latent: tuple[int, ...]
) -> None:
    net = CifarResNet(depth=depth, cut=cut)  # type: ignore[arg-type]
    model = model_of(net)
    images = torch.rand(2, *RGB, generator=torch.Generator().manual_seed(0))
    z = model.head(images).detach()
    assert z.shape == (2, *latent) == (2, *net.latent_shape(RGB))
    assert float(z.min()) == 0.0, "the latent is cut after ReLU"
    assert model.tail(z).shape == (2, 10)
    # closed form: two 3x3 convolutions with two normalisations a block; of a stage's first block the first one widens
    n = (depth - 2) // 6
    expected = 9 * 3 * 16 + 2 * 16 + 64 * 10 + 10
    for fan_in, width in ((16, 16), (16, 32), (32, 64)):
        expected += 9 * fan_in * width + (2 * n - 1) * 9 * width * width + 2 * n * 2 * width
    assert parameters(model.head, model.tail) == expected
    assert expected == {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}[depth]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth


@pytest.mark.parametrize("cut", ["stage1", "stage2"])
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_published_weights_load_without_a_missing_or_unexpected_name(depth: int, cut: str) -> None:
    model = model_of(CifarResNet(depth=depth, cut=cut))  # type: ignore[arg-type]
    weights = published_weights(depth)
    fill(model, weights)
    loaded = model.head.state_dict() | model.tail.state_dict()
    assert {name for name in loaded if not name.endswith("num_batches_tracked")} == set(weights)
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    for change in ({"layer9.weight": torch.zeros(1)}, {"linear.bias": torch.zeros(11)}):
        with pytest.raises(DataError, match=next(iter(change)).replace(".", r"\.")):
            fill(model, weights | change)
    with pytest.raises(DataError, match=r"Missing key.*layer1\.0\.bn1\.running_mean"):
        fill(model, {name: weight for name, weight in weights.items() if name != "layer1.0.bn1.running_mean"})


def test_both_cuts_of_the_same_weights_are_the_same_network() -> None:
    images = torch.rand(3, *RGB, generator=torch.Generator().manual_seed(1))
    logits = []
    for cut in ("stage1", "stage2"):
        model = model_of(CifarResNet(cut=cut))  # type: ignore[arg-type]
        fill(model, published_weights(20))
        with torch.inference_mode():
            logits.append(model.unsplit(images))
    torch.testing.assert_close(logits[0], logits[1])


def test_the_shortcut_of_a_stages_first_block_takes_every_second_pixel_between_channels_of_zeros() -> None:
    x = torch.rand(2, 16, 6, 4, generator=torch.Generator().manual_seed(2))
    y = Block(16, 32).shortcut(x)
    assert y.shape == (2, 32, 3, 2)
    for c in range(32):
        for i in range(3):
            for j in range(2):
                expected = x[:, c - 8, 2 * i, 2 * j] if 8 <= c < 24 else torch.zeros(2)
                assert torch.equal(y[:, c, i, j], expected), (c, i, j)
    assert torch.equal(Block(16, 16).shortcut(x), x)


def test_the_head_normalises_pixels_as_the_weights_were_trained() -> None:
    net = CifarResNet()
    head = net.head(RGB, (0.1, 0.2, 0.3), (9.0, 9.0, 9.0))
    pixels = torch.rand(1, *RGB, generator=torch.Generator().manual_seed(3))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(head.normalise(pixels), expected)  # type: ignore[operator]


def test_lenet_5_has_its_latent_and_its_parameters() -> None:
    net = LeNet()
    head, tail = net.head((1, 28, 28), (0.13,), (0.31,)), net.tail((6, 14, 14), 10)
    z = head(torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))).detach()
    assert z.shape == (2, 6, 14, 14)
    assert float(z.min()) >= 0
    assert tail(z).shape == (2, 10)
    assert parameters(head) == 6 * 25 + 6
    assert parameters(head, tail) == 156 + (16 * 6 * 25 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10) == 61_706
    assert set(tail.state_dict()) == {
        f"{layer}.{kind}" for layer in ("conv2", "fc1", "fc2", "fc3") for kind in ("weight", "bias")
    }


def test_lenet_5_brings_digits_to_28x28_in_its_head_and_only_when_told() -> None:
    with pytest.raises(ScenarioError, match="resize: true"):
        LeNet().head((1, 8, 8), (0.5,), (0.5,))
    head = LeNet(resize=True).head((1, 8, 8), (0.5,), (0.5,))
    plain = LeNet().head((1, 28, 28), (0.5,), (0.5,))
    plain.load_state_dict(head.state_dict())
    flat = torch.full((1, 1, 8, 8), 0.25)
    torch.testing.assert_close(head(flat), plain(torch.full((1, 1, 28, 28), 0.25)))
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    # bilinear by hand: pixel centres, the border held
    at = ((torch.arange(28) + 0.5) * 8 / 28 - 0.5).clamp(0, 7)
    low = at.floor().long().clamp(max=6)
    weight = torch.zeros(28, 8)
    weight[torch.arange(28), low] = 1 - (at - low)
    weight[torch.arange(28), low + 1] += at - low
    torch.testing.assert_close(head(image), plain(weight @ image @ weight.T), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 32, 32), (3, 64, 64)])
def test_a_cifar_resnet_refuses_other_images_by_name(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ScenarioError, match=r"cifar_resnet: expected images \[3, 32, 32\]"):
        CifarResNet().head(shape, (), ())
    with pytest.raises(ScenarioError, match="latent shape"):
        CifarResNet(cut="stage2").tail((16, 32, 32), 10)
    with pytest.raises(ScenarioError, match="latent shape"):
        LeNet().tail((6, 12, 12), 10)


def test_a_recipe_is_trained_or_pretrained_and_not_both() -> None:
    recipe = load_recipe(RECIPES / "cifar10-resnet20-stage1.yaml")
    assert recipe.pretrained is not None
    for change in ({"epochs": 3}, {"pretrained": None}):
        with pytest.raises(ValueError, match="expected one of `epochs` from 1, `stages` and `pretrained`"):
            dataclasses.replace(recipe, **change)  # type: ignore[arg-type]
    for file in ("/etc/x.safetensors", "../x.safetensors", "a/../x.safetensors", "x.pkl"):
        with pytest.raises(ValueError, match="file"):
            Pretrained(file=file, sha256="0" * 64)


def test_weights_that_are_absent_altered_or_another_networks_are_refused_and_the_path_is_named(tmp_path: Path) -> None:
    model = model_of(CifarResNet())
    path = tmp_path / "nets" / "w.safetensors"

    def pretrained() -> Pretrained:
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
        return Pretrained(file="nets/w.safetensors", sha256=digest)

    with pytest.raises(DataError, match=r"w\.safetensors, there is no file"):
        load_pretrained(model, pretrained(), tmp_path)
    path.parent.mkdir()
    save_file(published_weights(20), path)
    load_pretrained(model, pretrained(), tmp_path)
    with pytest.raises(DataError, match="expected sha256 0000"):
        load_pretrained(model, Pretrained(file="nets/w.safetensors", sha256="0" * 64), tmp_path)
    save_file(published_weights(32), path)
    with pytest.raises(DataError, match=r"w\.safetensors: (?s:.)*Unexpected key"):
        load_pretrained(model, pretrained(), tmp_path)
    path.write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"w\.safetensors"):
        load_pretrained(model, pretrained(), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("file", ["cifar10-resnet20-stage1", "cifar10-resnet56-stage2", "lenet-mnist", "lenet-digits"])
@torch.inference_mode()
def test_a_recipes_network_survives_export(file: str, tmp_path: Path) -> None:
    """Head in ONNX and tail from its file are the torch model, with fresh weights and random images: needs no data."""
    recipe = load_recipe(RECIPES / f"{file}.yaml")
    shape = {"cifar10": RGB, "digits": (1, 8, 8)}.get(recipe.dataset, (1, 28, 28))
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), np.uint8)
    dataset = Dataset(images, np.zeros(8, np.int64), tuple("0123456789"), recipe.dataset, "test")
    model = build(recipe, dataset).eval()
    model.freeze(calibrate(model.head, torch.from_numpy(images)))
    artefact = export(model, recipe, dataset, tmp_path / file)
    latents = Head(artefact).from_uint8(images)
    codec = fit("identity", artefact.latent)
    logits = load_tail(artefact)(torch.from_numpy(codec.decode(codec.encode(latents)).copy()))
    expected = model.unsplit(as_unit(torch.from_numpy(images)))
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert artefact.manifest.cut == recipe.net.cut_at


def published(tmp_path: Path, depth: int, cut: str) -> tuple[Artefact, Recipe]:
    """As `train` makes it, but calibrated on a tenth of the training images."""
    recipe = load_recipe(RECIPES / f"cifar10-resnet{depth}-{cut}.yaml")
    assert recipe.pretrained is not None
    images = load("cifar10", "train", Path(DATA)).images[:2000]
    held_out = load("cifar10", "test", Path(DATA))
    model = build(recipe, held_out).eval()
    load_pretrained(model, recipe.pretrained, Path(DATA))
    model.freeze(calibrate(model.head, torch.from_numpy(images)))
    return export(model, recipe, held_out, tmp_path / recipe.name), recipe


@pytest.mark.skipif(not DATA, reason="needs CIFAR-10 and the published weights in LATENTBED_DATA")
@pytest.mark.parametrize(
    ("depth", "cut", "right"),
    [(20, "stage1", 915), (20, "stage2", 915), (32, "stage2", 928), (44, "stage1", 933), (56, "stage1", 926)],
)
def test_the_published_weights_give_the_published_accuracy_through_the_exported_head(
    depth: int, cut: str, right: int, tmp_path: Path
) -> None:
    artefact, recipe = published(tmp_path, depth, cut)
    images, labels = artefact.samples
    images, labels = images[:1000], labels[:1000]
    assert len(images) == 1000
    tail, codec = load_tail(artefact), fit("identity", artefact.latent)
    said = []
    with torch.inference_mode():
        for first in range(0, 1000, 100):
            z = codec.decode(codec.encode(Head(artefact).from_uint8(images[first : first + 100])))
            said.append(tail(torch.from_numpy(z.copy())).argmax(1).numpy())
    predicted = np.concatenate(said)
    # both sum in another order than one whole network: a tie of the last bit may fall the other way
    assert abs(int((predicted == labels).sum()) - right) <= 1
    assert int((predicted != artefact.unsplit_labels[:1000]).sum()) <= 1
    assert artefact.manifest.made_with["weights"] == recipe.pretrained.file  # type: ignore[union-attr]
