"""The networks for ImageNet: shapes, parameters, multiplications, torchvision's names, and a plain twin of the arithmetic."""

from __future__ import annotations

import functools
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from splitcore.artefact import sha256
from splitcore.errors import DataError, ScenarioError
from splitcore.nn.bottleneck import UniformBottleneck
from splitcore.nn.net import ResNet, Vgg
from splitcore.nn.net.parts import chained
from splitcore.nn.pretrained import fill, load_pretrained
from splitcore.nn.recipe import Pretrained
from splitcore.nn.split_model import SplitModel

IMAGE = (3, 224, 224)
Shapes = dict[str, tuple[int, ...]]
RESNET_CUTS = ("stem", "pool", "layer1", "layer2", "layer3", "layer4", "avgpool")


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def torchvision_resnet(depth: int) -> Shapes:
    """Names and shapes of torchvision's weights, written down by hand."""
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    fan_in = 64
    for stage, n in enumerate(blocks):
        width = 64 << stage
        for block in range(n):
            name = f"layer{stage + 1}.{block}"
            if depth < 50:
                convolutions = [(width, fan_in, 3, 3), (width, width, 3, 3)]
            else:
                convolutions = [(width, fan_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            for k, shape in enumerate(convolutions, start=1):
                shapes |= {f"{name}.conv{k}.weight": shape} | norm(f"{name}.bn{k}", shape[0])
            fan_out = convolutions[-1][0]
            if block == 0 and (fan_in != fan_out or stage > 0):
                shapes |= {f"{name}.downsample.0.weight": (fan_out, fan_in, 1, 1)} | norm(f"{name}.downsample.1", fan_out)
            fan_in = fan_out
    return shapes | {"fc.weight": (1000, fan_in), "fc.bias": (1000,)}


def torchvision_vgg16(*, batch_norm: bool) -> Shapes:
    shapes: Shapes = {}
    index, fan_in = 0, 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width == 0:
            index += 1
            continue
        shapes |= {f"features.{index}.weight": (width, fan_in, 3, 3), f"features.{index}.bias": (width,)}
        if batch_norm:
            shapes |= norm(f"features.{index + 1}", width)
        index, fan_in = index + (3 if batch_norm else 2), width
    for k, shape in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
        shapes |= {f"classifier.{k}.weight": shape, f"classifier.{k}.bias": shape[:1]}
    return shapes


@functools.cache
def on_meta(net: ResNet | Vgg) -> SplitModel:
    """Not initialised: without numbers that takes longer than with."""
    with torch.device("meta"):
        head, tail = chained(net.first(IMAGE)), chained(net.rest(net.latent_shape(IMAGE), 1000))
        return SplitModel(head, UniformBottleneck().build(), tail).eval()


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def mmac(module: nn.Module, *shape: int) -> tuple[float, tuple[int, ...]]:
    """Millions of multiplications of a convolution or matrix for one [*shape], and the shape that comes out."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        out = module(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() / 2e6, tuple(out.shape[1:])


@pytest.mark.parametrize(
    ("depth", "count", "work", "to_layer2"),
    [
        (18, 11_689_512, 1814, None),
        (34, 21_797_672, 3664, None),  # as 101, from torchvision's list of its models
        (50, 25_557_032, 4089, 1814),
        (101, 44_549_160, 7801, None),
        (152, 60_192_808, 11514, 2687),
    ],
)
def test_a_resnet_has_torchvisions_parameters_and_the_fact_sheets_work(
    depth: int, count: int, work: int, to_layer2: int | None
) -> None:
    model = on_meta(ResNet(depth=depth, cut="layer2"))  # type: ignore[arg-type]
    assert parameters(model) == count
    of_head, latent = mmac(model.head, *IMAGE)
    of_tail, logits = mmac(model.tail, *latent)
    assert logits == (1000,)
    assert of_head + of_tail == pytest.approx(work, abs=1)
    if to_layer2 is not None:
        assert of_head == pytest.approx(to_layer2, abs=1)


@pytest.mark.parametrize(("batch_norm", "count"), [(False, 138_357_544), (True, 138_365_992)])
def test_a_vgg16_has_torchvisions_parameters_and_the_fact_sheets_work(batch_norm: bool, count: int) -> None:
    model = on_meta(Vgg(batch_norm=batch_norm, cut="pool3"))
    assert parameters(model) == count
    of_head, latent = mmac(model.head, *IMAGE)
    of_tail, logits = mmac(model.tail, *latent)
    assert (latent, logits) == ((256, 28, 28), (1000,))
    assert of_head == pytest.approx(9335, abs=1)
    assert of_head + of_tail == pytest.approx(15470, abs=1)


def test_latents_at_the_named_cuts_have_the_fact_sheets_sizes() -> None:
    """KiB at a byte an element."""
    kib = {cut: prod(ResNet(cut=cut).latent_shape(IMAGE)) / 1024 for cut in RESNET_CUTS}  # type: ignore[arg-type]
    assert kib == {"stem": 784, "pool": 196, "layer1": 784, "layer2": 392, "layer3": 196, "layer4": 98, "avgpool": 2}
    sizes = {"block1": 3136, "pool1": 784, "pool2": 392, "pool3": 196, "pool4": 98, "pool5": 24.5}
    for batch_norm in (True, False):
        assert sizes == {
            cut: prod(Vgg(cut=cut, batch_norm=batch_norm).latent_shape(IMAGE)) / 1024  # type: ignore[arg-type]
            for cut in sizes
        }
    assert Vgg(cut=8).latent_shape(IMAGE) == (128, 112, 112), "the literature's cut of vgg16_bn: 6.4 MB of float32"
    assert ResNet(depth=152, cut="layer2").latent_shape(IMAGE) == (512, 28, 28)
    assert ResNet(depth=18, cut="layer2").latent_shape(IMAGE) == (128, 28, 28)


@pytest.mark.parametrize(("net", "nodes", "single"), [(ResNet(), 176, 40), (ResNet(depth=152), 516, 108), (Vgg(), 54, 54)])
def test_as_many_boundaries_have_one_live_tensor_as_the_fact_sheet_counts(net: ResNet | Vgg, nodes: int, single: int) -> None:
    """Table A.5, over the traced graph without its output."""
    model = on_meta(net)
    graph = symbolic_trace(nn.Sequential(model.head, model.tail))
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    assert len(order) - 1 == nodes
    last_used = [max((order[user] for user in node.users), default=-1) for node in order]
    live = [sum(last > i for last in last_used[: i + 1]) for i in range(nodes)]
    assert live.count(1) == single


@pytest.mark.parametrize(("depth", "entries"), [(18, 122), (34, 218), (50, 320), (101, 626), (152, 932)])
def test_torchvisions_resnet_weights_have_as_many_entries_as_its_files(depth: int, entries: int) -> None:
    """A check of the lists above, by hand: six entries a normalised convolution, two of the linear layer."""
    assert len(torchvision_resnet(depth)) == entries == 6 * (depth - 1 + (3 if depth < 50 else 4)) + 2


@pytest.mark.parametrize(
    ("depth", "cut"), [*((18, cut) for cut in RESNET_CUTS), *((depth, "layer2") for depth in (34, 50, 101, 152))]
)
def test_torchvisions_resnet_weights_load_without_a_missing_or_unexpected_name(depth: int, cut: str) -> None:
    shapes = torchvision_resnet(depth)
    model = on_meta(ResNet(depth=depth, cut=cut))  # type: ignore[arg-type]
    loaded = model.head.state_dict() | model.tail.state_dict()
    assert {name: tuple(weight.shape) for name, weight in loaded.items()} == shapes
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    fill(model, weights)
    with pytest.raises(DataError, match=r"layer4\.1\.bn1\.weight"):
        fill(model, {name: weight for name, weight in weights.items() if name != "layer4.1.bn1.weight"})


@pytest.mark.parametrize("cut", ["block1", "pool2", 8, "pool5"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_torchvisions_vgg_weights_load_without_a_missing_or_unexpected_name(batch_norm: bool, cut: str | int) -> None:
    shapes = torchvision_vgg16(batch_norm=batch_norm)
    model = on_meta(Vgg(batch_norm=batch_norm, cut=cut))  # type: ignore[arg-type]
    loaded = model.head.state_dict() | model.tail.state_dict()
    assert {name: tuple(weight.shape) for name, weight in loaded.items()} == shapes
    fill(model, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})


@pytest.mark.parametrize("counted", [True, False])
def test_a_file_with_torchvisions_names_loads_with_or_without_counts_of_batches(counted: bool, tmp_path: Path) -> None:
    """The first files that torchvision published have no `num_batches_tracked`."""
    shapes = {k: v for k, v in torchvision_resnet(18).items() if counted or not k.endswith("num_batches_tracked")}
    path = tmp_path / "resnet18.pth"
    torch.save({name: torch.full((), 0.5).expand(shape) for name, shape in shapes.items()}, path)
    net = ResNet(depth=18, cut="layer3")
    model = SplitModel(net.head(IMAGE, (), ()), UniformBottleneck().build(), net.tail(net.latent_shape(IMAGE), 1000))
    load_pretrained(model, Pretrained(file=path.name, sha256=sha256(path)), tmp_path)
    assert float(model.tail.state_dict()["layer4.1.bn2.running_var"].min()) == 0.5
    assert float(model.head.state_dict()["conv1.weight"].max()) == 0.5


def random_weights(shapes: Shapes) -> dict[str, Tensor]:
    """He's size, so that nothing vanishes on the way, and statistics that are not those of fresh layers."""
    rng = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(1)
        elif len(shape) > 1:
            weights[name] = torch.randn(shape, generator=rng) * (2 / prod(shape[1:])) ** 0.5
        else:
            weights[name] = torch.rand(shape, generator=rng) * 0.5 + 0.5
    return weights


def normalised(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (w[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(x, mean, var, weight, bias)


def plain_pixels(x: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None]


def plain_resnet(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Eqs. 1 and 2 of the paper, weight by weight; the stride is in a block's only or first 3x3."""
    x = normalised(w, "bn1", functional.conv2d(plain_pixels(x), w["conv1.weight"], stride=2, padding=3)).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    for block in sorted({name.rsplit(".", 2)[0] for name in w if name.endswith(".conv1.weight")}):
        first = 2 if block.endswith(".0") and not block.startswith("layer1") else 1
        f = x
        convolutions = [k for k in (1, 2, 3) if f"{block}.conv{k}.weight" in w]
        for k in convolutions:
            weight = w[f"{block}.conv{k}.weight"]
            stride = first if k == len(convolutions) - 1 else 1
            f = normalised(w, f"{block}.bn{k}", functional.conv2d(f, weight, stride=stride, padding=weight.shape[-1] // 2))
            f = f if k == convolutions[-1] else f.relu()
        if f"{block}.downsample.0.weight" in w:
            shortcut = functional.conv2d(x, w[f"{block}.downsample.0.weight"], stride=first)
            x = normalised(w, f"{block}.downsample.1", shortcut)
        x = (f + x).relu()
    return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


@pytest.mark.parametrize(("depth", "cuts"), [(18, ("layer1", "layer3")), (50, ("stem", "pool", "layer2", "layer4", "avgpool"))])
@torch.inference_mode()
def test_head_then_tail_is_the_plain_resnet_at_every_cut(depth: int, cuts: tuple[str, ...]) -> None:
    weights = random_weights(torchvision_resnet(depth))
    images = torch.rand(1, 3, 32, 20, generator=torch.Generator().manual_seed(1))
    expected = plain_resnet(weights, images)
    for cut in cuts:
        net = ResNet(depth=depth, cut=cut)  # type: ignore[arg-type]
        with torch.device("meta"):
            head, tail = net.head((3, 32, 20), (), ()), net.tail(net.latent_shape((3, 32, 20)), 1000)
        head, tail = head.eval(), tail.eval()
        # normalisation has no weights to load
        head.normalise = net.pixels((), ())
        head.load_state_dict({k: v for k, v in weights.items() if k in head.state_dict()}, assign=True)
        tail.load_state_dict({k: v for k, v in weights.items() if k in tail.state_dict()}, assign=True)
        z = head(images)
        assert z.shape[1:] == net.latent_shape((3, 32, 20))
        torch.testing.assert_close(tail(z), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def plain_vgg_features(w: dict[str, Tensor], x: Tensor, *, batch_norm: bool) -> Tensor:
    x = plain_pixels(x)
    index = 0
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            x = functional.conv2d(x, w[f"features.{index}.weight"], w[f"features.{index}.bias"], padding=1)
            x = (normalised(w, f"features.{index + 1}", x) if batch_norm else x).relu()
            index += 3 if batch_norm else 2
        x = functional.max_pool2d(x, 2)
        index += 1
    return x


@pytest.mark.parametrize("batch_norm", [True, False])
@torch.inference_mode()
def test_head_then_tail_is_the_plain_vgg_at_every_cut(batch_norm: bool) -> None:
    """Up to the classifier, whose 400 MB would be the same layers as ever."""
    shapes = {k: v for k, v in torchvision_vgg16(batch_norm=batch_norm).items() if k.startswith("features")}
    weights = random_weights(shapes)
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    expected = plain_vgg_features(weights, images, batch_norm=batch_norm)
    cuts = ("block1", "pool1", 8, "block3", "pool4", "pool5", 31)
    for cut in cuts:
        net = Vgg(batch_norm=batch_norm, cut=cut)  # type: ignore[arg-type]
        shape = net.latent_shape((3, 32, 48))
        with torch.device("meta"):
            head, rest = chained(net.first((3, 32, 48))).eval(), net.rest(shape, 1000)["features"]().eval()
        head.load_state_dict({k: v for k, v in weights.items() if k in head.state_dict()}, assign=True)
        names = {f"features.{k}": k for k in rest.state_dict()}
        rest.load_state_dict({names[k]: v for k, v in weights.items() if k in names}, assign=True)
        z = head(net.pixels((), ())(images))
        assert z.shape[1:] == shape, cut
        torch.testing.assert_close(rest(z), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_images_and_latents_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ScenarioError, match=r"resnet: expected images that reach the cut, got \[1, 28, 28\].*3 channels"):
        ResNet().head((1, 28, 28), (), ())
    with pytest.raises(ScenarioError, match=r"vgg: expected images that reach the cut, got \[3, 16, 16\].*too small"):
        Vgg(cut="pool5").head((3, 16, 16), (), ())
    with pytest.raises(ScenarioError, match=r"resnet: expected a latent shape of this cut, got \[12, 29, 29\]"):
        ResNet(cut="layer2").tail((12, 29, 29), 1000)
    with pytest.raises(ScenarioError, match="linear layer"):
        ResNet(cut="avgpool").tail((2048, 2, 2), 1000)
    with pytest.raises(ScenarioError, match="latent shape"):
        Vgg(cut="pool3").tail((256,), 1000)
    with pytest.raises(ValueError, match=r"expected a cut up to 31"):
        Vgg(batch_norm=False, cut=32)
