"""What a stage minimises, beside closed forms; and what stands still meanwhile."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from splitcore.data import Dataset, load
from splitcore.errors import ScenarioError
from splitcore.nn.bottleneck import EntropyBottleneck, IdentityBottleneck
from splitcore.nn.fit import Fit
from splitcore.nn.net import LeNet, Narrow
from splitcore.nn.objective import CrossEntropy, Distil, Match
from splitcore.nn.split_model import SplitModel, as_unit
from splitcore.nn.stage import Stage
from splitcore.nn.training import moments

LENET = LeNet(resize=True)
DIGITS = load("digits", "train")


def whole(data: Dataset) -> SplitModel:
    head = LENET.head(data.shape, *moments(data.images))
    return SplitModel(head, IdentityBottleneck().build(), LENET.tail((6, 14, 14), 10)).eval()


def student(form: str = "ver2", bottleneck: IdentityBottleneck | EntropyBottleneck | None = None) -> SplitModel:
    net = Narrow(teacher=LENET, form=form, channels=4, width=8)  # type: ignore[arg-type]
    head = net.head(DIGITS.shape, *moments(DIGITS.images))
    return SplitModel(head, (bottleneck or IdentityBottleneck()).build(), net.tail(net.latent_shape(DIGITS.shape), 10))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return as_unit(torch.from_numpy(DIGITS.images[:6])), torch.from_numpy(DIGITS.labels[:6])


def test_cross_entropy_is_the_mean_surprise_at_the_labels(batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    model = student().eval()
    terms = CrossEntropy().terms(model, None, x, labels)
    p = model(x).detach().softmax(1)
    assert terms["labels"].item() == pytest.approx(-sum(math.log(p[i, y]) for i, y in enumerate(labels)) / 6, rel=1e-5)


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_distillation_is_alpha_cross_entropy_and_the_rest_divergence_times_t_squared(
    batch: tuple[Tensor, Tensor], t: float
) -> None:
    x, labels = batch
    model, teacher = student().eval(), whole(DIGITS)
    # one that is sure of itself: of two that have learned nothing the divergence is what float32 cannot tell from none
    last = [layer for layer in teacher.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(200)
    terms = Distil(alpha=0.3, temperature=t).terms(model, teacher, x, labels)
    p, q = ((of.detach().double() / t).softmax(1) for of in (teacher.unsplit(x), model(x)))
    kl = sum(float(p[i, c] * (p[i, c] / q[i, c]).log()) for i in range(6) for c in range(10)) / 6
    assert kl > 0.01
    assert terms["teacher"].item() == pytest.approx(0.7 * t * t * kl, rel=1e-4)
    assert terms["labels"].item() == pytest.approx(
        0.3 * CrossEntropy().terms(model, None, x, labels)["labels"].item(), rel=1e-5
    )


def test_who_agrees_with_the_teacher_pays_nothing_for_it(batch: tuple[Tensor, Tensor]) -> None:
    teacher = whole(DIGITS)
    assert Distil(alpha=0).terms(teacher, teacher, *batch)["teacher"].item() == pytest.approx(0, abs=1e-6)


def error_of(ours: Tensor, theirs: Tensor) -> float:
    return sum(float((mine - their).detach().square().sum()) for mine, their in zip(ours, theirs, strict=True)) / len(ours)


def test_matching_is_the_squared_error_an_image_after_the_decoder_and_after_each_named_part(
    batch: tuple[Tensor, Tensor],
) -> None:
    x, labels = batch
    model, teacher = student().eval(), whole(DIGITS)
    terms = Match(after=("conv2", "fc1")).terms(model, teacher, x, labels)
    ours, theirs = model.tail.get_submodule("decoder")(model.head(x)), teacher.head(x)
    assert terms["decoder"].item() == pytest.approx(error_of(ours, theirs), rel=1e-5)
    ours, theirs = model.tail.get_submodule("rest.conv2")(ours), teacher.tail.get_submodule("conv2")(theirs)
    assert terms["conv2"].item() == pytest.approx(error_of(ours, theirs), rel=1e-5)
    assert list(terms) == ["decoder", "conv2", "fc1"]
    assert not any(module._forward_hooks for module in (*model.modules(), *teacher.modules())), "the taps are gone"


def test_a_part_that_the_teacher_does_not_have_is_refused_with_those_that_it_has(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ScenarioError, match=r"conv2, fc1, fc2, fc3, got 'layer9'"):
        Match(after=("layer9",)).terms(student(), whole(DIGITS), *batch)


def fit(model: SplitModel, *stages: Stage) -> None:
    images, labels = torch.from_numpy(DIGITS.images[:300]), torch.from_numpy(DIGITS.labels[:300])
    Fit(model, whole(DIGITS), images, labels, seed=0, moved="none").run(stages, "a test", progress=False)


@pytest.mark.parametrize(
    ("frozen", "form"), [(("rest",), "ver2"), (("head", "bottleneck"), "entropic"), (("decoder",), "ver2")]
)
def test_what_is_frozen_keeps_weights_and_moments_and_everything_else_learns(frozen: tuple[str, ...], form: str) -> None:
    torch.manual_seed(0)
    model = student(form, EntropyBottleneck(channels=4, beta=0.1) if form == "entropic" else None)
    before = copy.deepcopy(model.state_dict())
    fit(model, Stage(objective=Match(after=("fc3",)), epochs=1, frozen=frozen))  # type: ignore[arg-type]
    still = tuple({"rest": "tail.rest.", "decoder": "tail.decoder."}.get(name, f"{name}.") for name in frozen)
    for name, weight in model.state_dict().items():
        if "normalise" not in name:
            assert torch.equal(weight, before[name]) == name.startswith(still), name
    assert all(parameter.requires_grad for parameter in model.parameters()), "the next stage may need them"


def test_a_frozen_density_sees_rounded_latents_and_a_learning_one_noise(batch: tuple[Tensor, Tensor]) -> None:
    x, _ = batch
    model = student("entropic", EntropyBottleneck(channels=4))
    Stage(epochs=1).parameters_of(model)
    assert not torch.equal(model.received(x), model.received(x).round())
    Stage(epochs=1, frozen=("head", "bottleneck")).parameters_of(model)
    assert torch.equal(model.received(x), model.received(x).round())


def test_a_dearer_bit_makes_fewer_bits() -> None:
    bits = []
    for beta in (0.001, 1.0):
        torch.manual_seed(0)
        model = student("entropic", EntropyBottleneck(channels=4, beta=beta, spread=2))
        fit(model, Stage(objective=Match(), epochs=6, batch=32, lr=0.03, frozen=("rest",)))
        model.eval()
        model.received(as_unit(torch.from_numpy(DIGITS.images[:64])))
        bits.append(float(model.bottleneck.bits().detach().mean()))  # type: ignore[operator]
    assert bits[1] < 0.7 * bits[0]


def test_the_learning_rate_falls_to_a_tenth_before_the_epochs_that_are_named() -> None:
    stage = Stage(epochs=5, optimiser="sgd", lr=0.1, drops=(2, 4))
    optimiser = stage.optimiser_of([torch.nn.Parameter(torch.zeros(1))])
    schedule = stage.schedule_of(optimiser, steps=3)
    rates = []
    for _ in range(15):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates == pytest.approx([0.1] * 6 + [0.01] * 6 + [0.001] * 3)


def test_a_loss_that_is_no_number_ends_the_training_in_words() -> None:
    with pytest.raises(ScenarioError, match=r"expected a finite loss.*lower the learning rate"):
        fit(student(), Stage(objective=Match(after=("fc3",)), epochs=30, optimiser="sgd", lr=1.0, frozen=("rest",)))
