"""Every way of training a split model, as its recipe says it, attacked on the wire of a live system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from splitcore.artefact import Artefact
from splitcore.nn.__main__ import main as train
from testbed.drive import drive, new_run
from testbed.rates.config import load_rates
from testbed.report.build import build
from testbed.scenario import load_scenario

SCENARIOS = Path(__file__).parents[2] / "scenarios"


def test_there_is_one_scenario_an_approach_and_it_attacks_with_scores_and_with_labels() -> None:
    files = sorted((SCENARIOS / "approaches").glob("*.yaml"))
    assert [file.stem for file in files] == ["bf", "es", "jc", "kd", "qt", "sc"]
    for file in files:
        scenario = load_scenario(file)
        assert {"square", "hopskipjump"} <= {attack.name for attack in scenario.attacks}
        assert {attack.threat.point for attack in scenario.attacks} == {"wire"}  # type: ignore[union-attr]


def test_every_shipped_file_of_curves_is_valid_and_names_recipes_that_are_there() -> None:
    files = sorted(SCENARIOS.glob("rates-*.yaml"))
    assert len(files) == 2
    for file in files:
        recipes = [file.parent / recipe for curve in load_rates(file).curves for recipe in curve.recipes]
        assert recipes and all(recipe.is_file() for recipe in recipes)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("approach", ["bf", "es", "jc", "kd", "qt", "sc"])
def test_an_approach_is_trained_by_its_recipe_served_and_attacked_and_the_books_agree(approach: str, tmp_path: Path) -> None:
    scenario = load_scenario(SCENARIOS / "approaches" / f"{approach}.yaml")
    short = tuple(attack.model_copy(update={"frames": 16}) for attack in scenario.attacks)
    scenario = scenario.model_copy(update={"frames": 60, "attacks": short})
    assert scenario.recipe is not None
    train(scenario.recipe, tmp_path / "artefact")
    artefact = Artefact(tmp_path / "artefact")
    assert artefact.manifest.approach == approach
    folder = new_run(scenario, tmp_path / "runs")
    drive(folder, artefact.folder, None, Console(quiet=True))
    report = json.loads(build(folder, artefact.folder).model_dump_json())
    assert report["ledger"]["disagreement_count"] == 0
    assert report["clean"]["accuracy"] > 0.85
    success = {attack["name"]: attack["asr"]["value"] for attack in report["attacks"]}
    # after JPEG hardly a candidate is in a ball that bounds every coordinate
    assert success["square"] > success["noise-linf"] or approach == "jc", success
    assert success["hopskipjump"] > success["noise-l2"], success
