"""CNN_A and CNN_B of the Q-Layer paper, the MLP and CNN-MLP of the information-bottleneck paper."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from splitcore.data import Dataset
from splitcore.errors import ScenarioError
from splitcore.head import Head
from splitcore.nn.bottleneck import UniformBottleneck
from splitcore.nn.export import export
from splitcore.nn.net import QLayerCnn, StochasticMlp
from splitcore.nn.net.stochastic_mlp import Gaussian
from splitcore.nn.recipe import Recipe
from splitcore.nn.split_model import SplitModel, as_unit, calibrate
from splitcore.nn.tail import load_tail

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(
    ("kind", "cut", "latent"),
    [
        ("cnn_a", "conv1", (64, 28, 28)),
        ("cnn_a", "conv2", (64, 12, 12)),
        ("cnn_b", "conv1", (128, 28, 28)),
        ("cnn_b", "conv2", (64, 13, 13)),
    ],
)
def test_cnn_a_and_b_have_the_layers_of_the_papers_table_4(kind: str, cut: str, latent: tuple[int, int, int]) -> None:
    net = QLayerCnn(kind=kind, cut=cut)  # type: ignore[arg-type]
    head, tail = net.head(MNIST, (0.1,), (0.3,)).eval(), net.tail(latent, 10).eval()
    z = head(torch.rand(2, *MNIST, generator=torch.Generator().manual_seed(0))).detach()
    assert z.shape == (2, *net.latent_shape(MNIST)) == (2, *latent)
    assert float(z.min()) == 0, "after ReLU"
    assert tail(z).shape == (2, 10)
    first, second, sides = {"cnn_a": ((64, 25), (64, 25), 12), "cnn_b": ((128, 9), (64, 9), 13)}[kind]
    convolutions = first[0] * (first[1] + 1) + second[0] * (first[0] * second[1] + 1)
    assert parameters(head, tail) == convolutions + (64 * sides**2 + 1) * 128 + 129 * 10
    assert [module.p for module in tail if isinstance(module, nn.Dropout)] == [0.25, 0.5]  # type: ignore[attr-defined]


def test_both_cuts_of_cnn_a_are_the_same_network() -> None:
    torch.manual_seed(0)
    early, late = QLayerCnn(cut="conv1"), QLayerCnn(cut="conv2")
    heads = [net.head(MNIST, (0.1,), (0.3,)) for net in (early, late)]
    tails = [net.tail(net.latent_shape(MNIST), 10).eval() for net in (early, late)]
    weights = heads[0].state_dict() | tails[0].state_dict()
    heads[1].load_state_dict({name: weights[name] for name in heads[1].state_dict()})
    tails[1].load_state_dict({name: weights[name] for name in tails[1].state_dict()})
    images = torch.rand(2, *MNIST)
    torch.testing.assert_close(tails[0](heads[0](images)), tails[1](heads[1](images)))


@pytest.mark.parametrize("stochastic", [True, False])
def test_the_mlp_has_the_papers_widths(stochastic: bool) -> None:
    net = StochasticMlp(stochastic=stochastic, features=64)
    head, tail = net.head(MNIST, (0.1,), (0.3,)), net.tail((64,), 10)
    widths = [784, 512, 512, 512, 256, 256, 256, 128 if stochastic else 64]
    assert [module.out_features for module in head.modules() if isinstance(module, nn.Linear)] == widths[1:]
    assert parameters(head) == sum((a + 1) * b for a, b in itertools.pairwise(widths))
    assert parameters(tail) == 65 * 10
    assert not [module for module in head.modules() if isinstance(module, nn.Dropout | nn.BatchNorm2d)], "section 6"
    assert StochasticMlp().latent_shape(MNIST) == (256,)


def test_the_cnn_mlp_has_two_convolutions_in_front() -> None:
    net = StochasticMlp(kind="cnn_mlp", repeats=1)
    head = net.head(CIFAR, (0.5,) * 3, (0.2,) * 3)
    layers = [module for module in head.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [
        (32, 3, 3, 3), (64, 32, 3, 3), (512, 64 * 8 * 8), (256, 512), (512, 256),
    ]  # fmt: skip
    assert head(torch.rand(2, *CIFAR)).shape == (2, *net.latent_shape(CIFAR)) == (2, 256)


def test_the_latent_is_a_sample_in_training_and_the_mean_in_evaluation() -> None:
    torch.manual_seed(0)
    gaussian = Gaussian()
    x = torch.tensor([[2.0, -1.0, 0.0, 3.0]])
    mean, std = gaussian.moments(x)
    assert mean.tolist() == [[2.0, -1.0]]
    torch.testing.assert_close(std, torch.log1p(torch.tensor([[0.0, 3.0]]).exp()))
    assert gaussian.eval()(x).tolist() == mean.tolist()
    samples = gaussian.train()(x.expand(20_000, 4))
    torch.testing.assert_close(samples.mean(0, keepdim=True), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(samples.std(0, keepdim=True), std, atol=0.1, rtol=0)


def test_latents_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ScenarioError, match=r"mlp: expected a latent shape of this cut, got \[32\].*256 features"):
        StochasticMlp().tail((32,), 10)
    with pytest.raises(ScenarioError, match=r"cnn_a: expected a latent shape of this cut, got \[3, 28, 28\]"):
        QLayerCnn(cut="conv1").tail((3, 28, 28), 10)
    with pytest.raises(ScenarioError, match=r"cnn_a: expected images that reach the cut, got \[1, 3, 3\]"):
        QLayerCnn().head((1, 3, 3), (0.5,), (0.5,))


@torch.inference_mode()
def test_a_vector_as_latent_survives_export(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, *MNIST), np.uint8)
    dataset = Dataset(images, np.zeros(8, np.int64), tuple("0123456789"), "mnist", "test")
    net = StochasticMlp(features=16)
    recipe = Recipe(name="mlp", dataset="mnist", net=net, bottleneck=UniformBottleneck(per="channel"), epochs=1)
    torch.manual_seed(0)
    model = SplitModel(net.head(MNIST, (0.1,), (0.3,)), recipe.bottleneck.build(), net.tail((16,), 10)).eval()
    model.freeze(calibrate(model.head, torch.from_numpy(images)))
    artefact = export(model, recipe, dataset, tmp_path / "mlp")
    latents = Head(artefact).from_uint8(images)
    assert latents.shape == (8, 16)
    expected = model.unsplit(as_unit(torch.from_numpy(images)))
    torch.testing.assert_close(load_tail(artefact)(torch.from_numpy(latents)), expected, atol=1e-3, rtol=1e-3)
