"""Recipes, training, calibration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from splitcore.data import Dataset, load
from splitcore.errors import ScenarioError
from splitcore.nn.augment import augment
from splitcore.nn.bottleneck import UniformBottleneck
from splitcore.nn.net import SmallConv
from splitcore.nn.recipe import RECIPE, Recipe, load_recipe
from splitcore.nn.split_model import as_unit, calibrate
from splitcore.nn.stage import Stage
from splitcore.nn.training import build, moments, pick_device, train

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = Recipe(
    name="tiny",
    dataset="digits",
    net=SmallConv(latent_channels=4, head_width=4, tail_width=8),
    bottleneck=UniformBottleneck(bits=4),
    epochs=1,
    batch=128,
    seed=7,
)


def test_every_shipped_recipe_is_valid_and_is_named_as_its_file() -> None:
    files = sorted(RECIPES.glob("*.yaml"))
    assert [load_recipe(file).name for file in files] == [file.stem for file in files]
    assert {load_recipe(file).dataset for file in files} == {"digits", "mnist", "fashion-mnist", "cifar10"}


@pytest.mark.parametrize(("file", "latent"), [
    ("digits", (8, 4, 4)), ("mnist", (8, 7, 7)), ("fashion-mnist", (8, 7, 7)), ("cifar10-small", (16, 8, 8)),
])  # fmt: skip
def test_a_shipped_recipes_model_has_the_latent_that_it_says(file: str, latent: tuple[int, ...]) -> None:
    recipe = load_recipe(RECIPES / f"{file}.yaml")
    side, channels = {"digits": (8, 1), "cifar10": (32, 3)}.get(recipe.dataset, (28, 1))
    images = np.random.default_rng(0).integers(0, 256, (4, channels, side, side), np.uint8)
    model = build(recipe, Dataset(images, np.zeros(4, np.int64), tuple("0123456789"), recipe.dataset, "train")).eval()
    assert model.head(as_unit(torch.from_numpy(images))).shape == (4, *latent)
    assert model(as_unit(torch.from_numpy(images))).shape == (4, 10)


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others() -> None:
    first, again = (train(TINY, progress=False, device="cpu") for _ in range(2))
    other = train(dataclasses.replace(TINY, seed=8), progress=False, device="cpu")
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert first.latent == again.latent
    assert not torch.equal(first.head[1].weight, other.head[1].weight)  # type: ignore[index]


def test_training_leaves_the_callers_random_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(TINY, progress=False, device="cpu")
    assert torch.equal(torch.rand(1), expected)


def test_the_calibrated_range_holds_every_latent_of_the_calibration_set_and_is_only_slightly_wider() -> None:
    model = train(TINY, progress=False, device="cpu")
    images = torch.from_numpy(load("digits", "train").images)
    with torch.inference_mode():
        latents = model.head(as_unit(images)).transpose(0, 1).flatten(1)
    lo, hi = torch.tensor(model.latent.lo), torch.tensor(model.latent.hi)
    assert (latents.amin(1) > lo).all()
    assert (latents.amax(1) < hi).all()
    assert ((hi - lo) < 1.05 * (latents.amax(1) - latents.amin(1))).all()
    assert model.latent.std == pytest.approx(float(latents.std()), rel=1e-5)
    assert calibrate(model.head, images, batch=100).lo == pytest.approx(model.latent.lo, abs=1e-5)


def test_a_dead_channel_still_gets_a_range() -> None:
    head = torch.nn.Conv2d(1, 2, 1)
    torch.nn.init.zeros_(head.weight)
    spec = calibrate(head, torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    assert all(lo < hi for lo, hi in zip(spec.lo, spec.hi, strict=True))


def test_an_uncalibrated_model_says_so() -> None:
    with pytest.raises(ScenarioError, match="freeze"):
        _ = build(TINY, load("digits", "test")).latent


def test_moments_are_those_of_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 200, (50, 3, 6, 6), np.uint8)
    mean, std = moments(images)
    assert mean == pytest.approx((images / 255).mean((0, 2, 3)))
    assert std == pytest.approx((images / 255).std((0, 2, 3)))


def test_augmentation_moves_and_mirrors_but_invents_no_pixel() -> None:
    images = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(40, 2, 1, 1)
    rng = torch.Generator().manual_seed(0)
    assert augment(images, "none", rng) is images
    moved = augment(images, "shift", rng)
    assert moved.shape == images.shape
    assert torch.equal(moved[:, 0], moved[:, 1])
    allowed = {images[0, 0].roll((dy, dx), (0, 1))[1:-1, 1:-1].numpy().tobytes() for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert {row[0, 1:-1, 1:-1].numpy().tobytes() for row in moved} == allowed
    flipped = augment(images, "shift_flip", rng)
    rising = (flipped[:, 0, 4, 4] > flipped[:, 0, 4, 3]).float().mean()
    assert 0.2 < rising < 0.8


@pytest.mark.parametrize("change", [
    {"epoch": 3}, {"epochs": 0}, {"lr": 0}, {"net": {"kind": "alexnet"}}, {"dataset": "svhn"}, {"name": "../x"},
    {"net": {"kind": "small_conv", "latent_channels": 1 << 20}}, {"bottleneck": {"kind": "uniform", "bits": 9}},
])  # fmt: skip
def test_a_recipe_with_an_unknown_key_or_value_is_refused_by_name(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(RECIPE.dump_json(TINY))  # JSON is YAML
    assert load_recipe(path) == TINY
    path.write_bytes(RECIPE.dump_json(TINY)[:-1] + b"," + b",".join(
        f'"{key}": {json.dumps(value)}'.encode() for key, value in change.items()) + b"}")  # fmt: skip
    with pytest.raises(ScenarioError, match=rf"recipe.yaml is not a recipe(?s:.)*{next(iter(change))}"):
        load_recipe(path)


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="expected a recipe at"):
        load_recipe(tmp_path / "absent.yaml")
    for text in ("{unclosed", "!!python/object/apply:os.getcwd []", "", "- a list"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ScenarioError, match=r"x\.yaml is not"):
            load_recipe(tmp_path / "x.yaml")


def test_too_many_halvings_and_an_unknown_device_are_refused() -> None:
    with pytest.raises(ScenarioError, match="lower `halvings`"):
        build(dataclasses.replace(TINY, net=SmallConv(halvings=3)), load("digits", "test"))
    with pytest.raises(ScenarioError, match="expected a device"):
        pick_device("gpu")


def test_one_stage_may_be_said_in_the_recipe_itself_and_is_the_same_training() -> None:
    said = Stage(epochs=TINY.epochs, batch=TINY.batch, lr=TINY.lr, weight_decay=TINY.weight_decay)
    assert TINY.training == (said,)
    in_stages = dataclasses.replace(TINY, epochs=0, stages=(said,))
    first, again = (train(recipe, progress=False, device="cpu").state_dict() for recipe in (TINY, in_stages))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(("change", "reason"), [
    ({"stages": [{"epochs": 1}]}, "one of `epochs` from 1, `stages` and `pretrained`"),
    ({"teacher": {"stages": [{"epochs": 1}]}}, "a net of kind narrow for a student"),
    ({"teacher": {}}, "expected either `pretrained` weights of the teacher or `stages`"),
    ({"epochs": 0, "stages": [{"epochs": 1, "objective": {"kind": "distil"}}]}, "a `teacher` for the objective distil"),
    ({"epochs": 0, "stages": [{"epochs": 1, "frozen": ["rest"]}]}, "kind narrow where decoder or rest is frozen"),
    ({"epochs": 0, "stages": [{"epochs": 1, "frozen": ["tail"]}]}, "'head', 'bottleneck', 'decoder' or 'rest'"),
])  # fmt: skip
def test_stages_that_do_not_fit_the_network_are_refused_in_words(
    change: dict[str, object], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**RECIPE.dump_python(TINY, mode="json", exclude_none=True), **change}))
    with pytest.raises(ScenarioError, match=reason):
        load_recipe(path)
