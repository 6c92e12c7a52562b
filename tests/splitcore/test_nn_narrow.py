"""The students with a narrow latent: the fact sheet's tables, GDN by its formula, small ones end to end, and ONNX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from splitcore.codec import fit
from splitcore.data import Dataset
from splitcore.errors import ScenarioError
from splitcore.head import Head
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck import UniformBottleneck
from splitcore.nn.export import export, write_onnx
from splitcore.nn.net import CifarResNet, LeNet, Narrow, NetConfig, ResNet, Vgg
from splitcore.nn.net.narrow.gdn import Gdn1
from splitcore.nn.recipe import Recipe
from splitcore.nn.split_model import as_unit, calibrate
from splitcore.nn.tail import load_tail
from splitcore.nn.training import build

IMAGE = (3, 224, 224)
RN50_1, RN152_2, RN50_2 = ResNet(cut="layer1"), ResNet(depth=152, cut="layer2"), ResNet(cut="layer2")
CIFAR, MNIST = (3, 32, 32), (1, 28, 28)
SMALL: list[tuple[Any, tuple[int, int, int], str, tuple[int, ...]]] = [
    (CifarResNet(cut="stage2"), CIFAR, "ver1", (3, 32, 32)),
    (CifarResNet(cut="stage2"), CIFAR, "ver2", (3, 17, 17)),
    (CifarResNet(cut="stage2"), CIFAR, "ver3", (3, 9, 9)),
    (CifarResNet(cut="stage2"), CIFAR, "layer1", (3, 20, 20)),
    (CifarResNet(cut="stage2"), CIFAR, "entropic", (3, 15, 15)),
    (CifarResNet(cut="stage1"), CIFAR, "layer1", (3, 36, 36)),
    (CifarResNet(cut="stage1"), CIFAR, "entropic", (3, 31, 31)),
    (LeNet(), MNIST, "ver2", (3, 15, 15)),
    (LeNet(resize=True), (1, 8, 8), "ver2", (3, 15, 15)),
    (LeNet(), MNIST, "ver3", (3, 8, 8)),
    (LeNet(), MNIST, "layer1", (3, 18, 18)),
    (LeNet(), MNIST, "entropic", (3, 13, 13)),
]


def halves(net: Narrow) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder, without weights."""
    with torch.device("meta"):
        return net._encoder(IMAGE).eval(), net._decoder().eval()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def mmac(module: nn.Module, *shape: int) -> tuple[float, tuple[int, ...]]:
    """Millions of multiplications of a convolution or matrix for one [*shape], and the shape that comes out."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        out = module(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() / 2e6, tuple(out.shape[1:])


@pytest.mark.parametrize(
    ("teacher", "form", "b", "latent", "head", "decoder"),
    [
        # tables A.1 to A.4: parameters and MMAC of the head; of the decoder, millions of parameters and MMAC
        (RN152_2, "ver2", 3, (3, 29, 29), (10_432, 119), (3.15, 2839)),
        (RN152_2, "ver2", 12, (12, 29, 29), (12_736, 121), (3.17, 2855)),
        (RN50_2, "ver2", 24, (24, 29, 29), (15_808, 123), (3.20, 2877)),
        (RN152_2, "ver1", 12, (12, 56, 56), (None, None), (None, None)),
        (RN152_2, "ver3", 6, (6, 15, 15), (None, None), (None, None)),
        (RN50_1, "layer1", 12, (12, 60, 60), (160_832, 631), (0.43, 1369)),
        (RN50_1, "entropic", 24, (24, 55, 55), (138_672, 588), (1.16, 3583)),
        (RN50_1, "entropic", 12, (12, 55, 55), (36_504, 170), (None, None)),
        (Vgg(), "vgg16_fc", 3, (3, 112, 112), (None, 1958), (None, None)),
        (Vgg(), "vgg16_fc", 9, (9, 112, 112), (None, 2001), (None, None)),
        (Vgg(), "vgg16_fc_lite", 12, (12, 28, 28), (None, 71), (None, None)),
    ],
)
def test_a_student_has_the_shapes_parameters_and_work_of_the_fact_sheet(
    teacher: Any, form: Any, b: int, latent: tuple[int, ...], head: tuple[Any, Any], decoder: tuple[Any, Any]
) -> None:
    net = Narrow(teacher=teacher, form=form, channels=b)
    assert net.latent_shape(IMAGE) == latent
    encoder, after = halves(net)
    work, out = mmac(encoder, *IMAGE)
    assert out == latent
    assert head in ((parameters(encoder), round(work)), (None, round(work)), (None, None))
    work, out = mmac(after, *latent)
    assert out == teacher.latent_shape(IMAGE)
    assert decoder in ((round(parameters(after) / 1e6, 2), round(work)), (None, None))


def sides(module: nn.Module, *shape: int) -> list[int]:
    """Height after each layer that changes it, that of the input first."""
    seen = [shape[1]]

    def see(layer: nn.Module, inputs: object, out: Tensor) -> None:
        if out.shape[2] != seen[-1]:
            seen.append(out.shape[2])

    for layer in module:  # type: ignore[attr-defined]
        layer.register_forward_hook(see)
    with torch.inference_mode():
        module(torch.empty(1, *shape, device="meta"))
    return seen


@pytest.mark.parametrize(
    ("teacher", "form", "before", "after"),
    [
        (RN50_2, "ver2", [224, 112, 56, 29], [29, 30, 31, 30, 29, 28]),
        (RN50_2, "ver3", [224, 112, 56, 29, 15], [15, 30, 31, 30, 29, 28]),
        (RN50_1, "layer1", [224, 112, 56, 57, 58, 59, 60], [60, 59, 58, 57, 56]),
        (RN50_1, "entropic", [224, 112, 56, 55], [55, 56, 55, 56]),
        (Vgg(), "vgg16_fc", [224, 112], [112, 56, 28]),
    ],
)
def test_a_students_layers_have_the_fact_sheets_sides_on_the_way(
    teacher: Any, form: Any, before: list[int], after: list[int]
) -> None:
    encoder, decoder = halves(Narrow(teacher=teacher, form=form, channels=3))
    assert sides(encoder, *IMAGE) == before
    assert sides(decoder, 3, before[-1], before[-1]) == after


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_one_student_fits_every_resnet_of_three_convolutions_a_block(depth: int) -> None:
    net = Narrow(teacher=ResNet(depth=depth, cut="layer2"), form="ver2", channels=12)  # type: ignore[arg-type]
    encoder, decoder = halves(net)
    assert (parameters(encoder), round(parameters(decoder) / 1e6, 2)) == (12_736, 3.17)
    head, tail = mmac(encoder, *IMAGE)[0], mmac(decoder, 12, 29, 29)[0]
    assert round(head + tail) == 2976, "more than the 1,814 (ResNet-50) or 2,687 (152) of the stages that they replace"


@pytest.mark.parametrize(
    ("teacher", "form", "b", "elements"),
    [
        (RN152_2, "ver2", 3, 2_523), (RN152_2, "ver2", 12, 10_092), (RN152_2, "ver2", 24, 20_184),
        (RN50_1, "layer1", 12, 43_200), (RN50_1, "entropic", 12, 36_300), (RN50_1, "entropic", 24, 72_600),
        (Vgg(), "vgg16_fc", 3, 37_632), (Vgg(), "vgg16_fc", 9, 112_896), (Vgg(), "vgg16_fc", 12, 150_528),
        (Vgg(), "vgg16_fc_lite", 12, 9_408),
    ],
)  # fmt: skip
def test_a_latent_on_the_wire_has_the_fact_sheets_bytes(teacher: Any, form: Any, b: int, elements: int) -> None:
    shape = Narrow(teacher=teacher, form=form, channels=b).latent_shape(IMAGE)
    spec = LatentSpec(shape=shape, lo=(-1.0,) * b, hi=(1.0,) * b, std=0.5)
    for codec, size in (("uniform8/channel", 1), ("float16", 2), ("identity", 4)):
        (payload,) = fit(codec, spec).encode(np.zeros((1, *shape), np.float32))
        assert len(payload) == size * elements


def test_the_lite_head_of_vgg16_does_a_28th_of_the_published_ones_work() -> None:
    published, lite = (
        mmac(halves(Narrow(teacher=Vgg(), form=form, channels=12))[0], *IMAGE)[0]  # type: ignore[arg-type]
        for form in ("vgg16_fc", "vgg16_fc_lite")
    )
    assert 28 <= published / lite < 29


@pytest.mark.parametrize(("teacher", "image", "form", "latent"), SMALL)
def test_small_students_imitate_their_teachers_latent_and_go_on_with_its_own_tail(
    teacher: Any, image: tuple[int, int, int], form: Any, latent: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net = Narrow(teacher=teacher, form=form, channels=3)
    mean = (0.5,) * image[0]
    head, tail = net.head(image, mean, mean).eval(), net.tail(latent, 10).eval()
    theirs = teacher.tail(teacher.latent_shape(image), 10).eval()
    with torch.inference_mode():
        z = head(torch.rand(2, *image))
        assert z.shape[1:] == latent == net.latent_shape(image)
        imitated = tail.decoder(z)  # type: ignore[operator]
        assert imitated.shape[1:] == teacher.latent_shape(image)
        # the teacher's weights fit by name, and then the rest is the teacher
        tail.rest.load_state_dict(theirs.state_dict())  # type: ignore[union-attr]
        torch.testing.assert_close(tail(z), theirs(imitated))
    assert [name for name, _ in tail.rest.named_children()] == [name for name, _ in theirs.named_children()]  # type: ignore[union-attr]
    assert head.normalise.mean.flatten().tolist() == teacher.pixels(mean, mean).mean.flatten().tolist()  # type: ignore[union-attr, operator]


def test_every_weight_of_a_student_gets_a_gradient() -> None:
    torch.manual_seed(0)
    for form in ("ver3", "entropic"):
        net = Narrow(teacher=CifarResNet(cut="stage2"), form=form, channels=4)  # type: ignore[arg-type]
        head, tail = net.head(CIFAR, (), ()), net.tail(net.latent_shape(CIFAR), 10)
        torch.autograd.backward(tail(head(torch.rand(4, *CIFAR))).square().sum())
        for name, parameter in (*head.named_parameters(), *tail.named_parameters()):
            assert parameter.grad is not None, name
            assert bool(parameter.grad.abs().max() > 0), name


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn1_divides_by_a_weighted_sum_of_its_channels_sizes(inverse: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    gdn = Gdn1(4, inverse=inverse)
    x = torch.randn(2, 4, 3, 5, generator=rng)
    fresh = 1 + 0.1 * x.abs()
    torch.testing.assert_close(gdn(x), x * fresh if inverse else x / fresh, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        gdn.beta.copy_(torch.randn(4, generator=rng))
        gdn.gamma.copy_(torch.randn(4, 4, generator=rng))
    y = gdn(x)
    for i in range(4):
        norm: Tensor = gdn.beta[i] ** 2 + 1e-6 + sum(gdn.gamma[i, j] ** 2 * x[:, j].abs() for j in range(4))
        torch.testing.assert_close(y[:, i], x[:, i] * norm if inverse else x[:, i] / norm)


def exported(net: Narrow, image: tuple[int, int, int], path: Path) -> onnx.ModelProto:
    """The head in ONNX, having been compared with torch on two images that its export has not seen."""
    torch.manual_seed(0)
    head = net.head(image, (0.4,) * image[0], (0.2,) * image[0]).eval()
    write_onnx(head, image, path)
    pixels = torch.rand(3, *image)
    with torch.inference_mode():
        expected = head(pixels).numpy()
    (got,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": pixels.numpy()})
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))
    return onnx.load(path)


@pytest.mark.parametrize(
    ("teacher", "image", "form"),
    [
        (CifarResNet(cut="stage2"), CIFAR, "ver3"),
        (Vgg(), (3, 32, 32), "vgg16_fc_lite"),
        (RN50_2, IMAGE, "ver2"),
    ],
)
def test_heads_in_onnx_are_the_heads_in_torch(teacher: Any, image: tuple[int, int, int], form: Any, tmp_path: Path) -> None:
    exported(Narrow(teacher=teacher, form=form, channels=3), image, tmp_path / "head.onnx")


def test_an_entropic_head_is_of_plain_operations_in_onnx(tmp_path: Path) -> None:
    model = exported(Narrow(teacher=RN50_1, form="entropic", channels=24), IMAGE, tmp_path / "head.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert {node.op_type for node in model.graph.node} <= {"Conv", "Abs", "Div", "Sub", "Add", "Mul", "Unsqueeze", "Reshape"}


@torch.inference_mode()
def test_a_student_survives_export_as_an_artefact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (8, *MNIST), np.uint8)
    dataset = Dataset(images, np.zeros(8, np.int64), tuple("0123456789"), "mnist", "test")
    recipe = Recipe(
        name="student", dataset="mnist", net=Narrow(teacher=LeNet(), form="layer1", channels=2),
        bottleneck=UniformBottleneck(), epochs=1,
    )  # fmt: skip
    model = build(recipe, dataset).eval()
    model.freeze(calibrate(model.head, torch.from_numpy(images)))
    artefact = export(model, recipe, dataset, tmp_path / "student")
    latents = Head(artefact).from_uint8(images)
    assert latents.shape == (8, 2, 18, 18)
    expected = model.unsplit(as_unit(torch.from_numpy(images)))
    torch.testing.assert_close(load_tail(artefact)(torch.from_numpy(latents)), expected, atol=1e-3, rtol=1e-3)


def test_students_that_do_not_fit_their_teacher_are_refused_with_the_reason() -> None:
    for teacher, image, form, reason in [
        (CifarResNet(cut="stage1"), CIFAR, "ver2", "no stem"),
        (ResNet(cut="layer3"), IMAGE, "entropic", "the teacher's latent is 1/16 as high"),
        (ResNet(cut="layer1"), IMAGE, "vgg16_fc", r"expected \[256, 56, 56\] from the decoder.*got \[256, 28, 28\]"),
        (RN50_2, (3, 225, 225), "ver2", r"expected \[512, 29, 29\] from the decoder.*got \[512, 28, 28\]"),
        (LeNet(), (1, 8, 8), "ver2", "28x28"),
        (RN50_2, MNIST, "ver2", "3 channels"),
    ]:
        net = Narrow(teacher=teacher, form=form)  # type: ignore[arg-type]
        with pytest.raises(ScenarioError, match=reason):
            net.latent_shape(image)
    assert Narrow(teacher=RN50_2).latent_shape((3, 72, 40)) == (12, 10, 6), "multiples of 8 fit"
    with pytest.raises(ScenarioError, match=r"expected latents \[12, h, w\] .*got \[3, 29, 29\]"):
        Narrow(teacher=RN50_2).tail((3, 29, 29), 1000)


def test_a_student_with_its_teacher_survives_json_as_an_artefacts_manifest_writes_it() -> None:
    adapter: TypeAdapter[NetConfig] = TypeAdapter(NetConfig)
    net = Narrow(teacher=Vgg(cut=8), form="layer1", channels=6, width=32)
    assert adapter.validate_python(dataclasses.asdict(net)) == net
    assert adapter.validate_json(adapter.dump_json(net)) == net
    for wrong in ({"teacher": {"kind": "small_conv"}}, {"teacher": {"kind": "lenet", "cut": "x"}}, {}):
        with pytest.raises(ValidationError):
            adapter.validate_python({"kind": "narrow", **wrong})
