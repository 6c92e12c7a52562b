"""An attack that is not ours: run by nobody who does not trust its code, and by the adversary's process where it was named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from adversary.attacks import ATTACKS, AttackConfig, OwnAttack
from splitcore.errors import ScenarioError
from splitcore.journal import read
from testbed.drive import drive, new_run
from testbed.nodes import NodeError, local_nodes
from testbed.report.build import compute
from testbed.scenario import dump_scenario, load_scenario

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_attack"
OWN = str(EXAMPLE / "own_attack.py")
CONFIG: TypeAdapter[Any] = TypeAdapter(AttackConfig)

UNREAD = "raise SystemExit('this code was run')\n"


def flips(**arguments: Any) -> OwnAttack:
    return OwnAttack.model_validate({"kind": "own_attack:Flips", **arguments})


def test_every_attack_of_the_tuple_is_read_and_written_by_its_kind() -> None:
    for attack in ATTACKS:
        config = CONFIG.validate_python({"kind": attack.kind})
        assert type(config) is attack
        assert CONFIG.validate_json(CONFIG.dump_json(config)) == config


def test_an_unknown_kind_is_refused_with_all_that_there_are() -> None:
    kinds = ", ".join(str(attack.kind) for attack in ATTACKS)
    for wrong in ({"kind": "squaer"}, {}, {"kind": 3}, {"kind": "own_attack:"}, 7):
        got = wrong.get("kind") if isinstance(wrong, dict) else None
        with pytest.raises(ValidationError) as refused:
            CONFIG.validate_python(wrong)
        assert f"expected kind one of {kinds}, or one's own" in str(refused.value)
        assert f"got {got!r}" in str(refused.value)


def test_a_setting_of_ours_that_is_not_there_is_refused_by_its_name() -> None:
    with pytest.raises(ValidationError, match=r"square\.p\n"):
        CONFIG.validate_python({"kind": "square", "p": 1})


def test_reading_an_own_attack_runs_no_code_and_keeps_every_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unread_attack.py").write_text(UNREAD)
    monkeypatch.syspath_prepend(tmp_path)
    said = {"kind": "unread_attack:Flips", "rate": 0.5, "layers": [1, 2], "deep": {"a": None}}
    config = CONFIG.validate_python(said)
    assert CONFIG.dump_python(config, mode="json") == said
    assert "unread_attack" not in sys.modules


def test_only_trusted_code_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_attack.py").write_text(UNREAD)
    monkeypatch.syspath_prepend(tmp_path)
    for trusted in ([], ["another"], [str(EXAMPLE / "another.py")], ["own_attack_of_mine"]):
        with pytest.raises(
            ScenarioError, match=r"trusted module .* got 'own_attack'.*--trust path/to/own_attack\.py .*`adversary: \{trust"
        ):
            flips().build(trusted)
    attack: Any = flips(rate=0.5).build([OWN])
    assert (attack.kind, attack.rate, attack.width, attack.feedback) == ("flips", 0.5, 4, "scores")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from os import system as Flips", "defined in module own_attack, found none"),
        ("Flips = 3", "defined in module own_attack, found none"),
        ("import nowhere_to_be_found", "importing it gave ModuleNotFoundError"),
        ("class Flips:\n    kind, feedback = 'f', 'scores'", "has no norms, perturb"),
        ("class Flips:\n    kind, feedback, norms, perturb = 'f', 'gradient', ('linf',), 0", "feedback of scores, label, none"),
        ("class Flips:\n    kind, feedback, norms, perturb = 'f', 'label', ('l1',), 0", "norms of linf, l2, got .'l1'"),
        ("class Flips:\n    kind, feedback, norms, perturb = 'f', 'label', 'l2', 0", "norms of linf, l2, got 'l2'"),
    ],
)
def test_what_is_wrong_with_ones_own_code_is_said_before_a_frame_is_held(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own_attack.py").write_text(text + "\n")
    with pytest.raises(ScenarioError, match=said):
        flips().build([str(tmp_path / "own_attack.py")])


def test_an_argument_that_the_class_does_not_take_is_named() -> None:
    with pytest.raises(ScenarioError, match=r"(?s)own_attack:Flips cannot be built from \{'rat': 0\.5\}.*rat\n"):
        flips(rat=0.5).build([OWN])


def test_a_scenarios_trusted_attack_is_meant_from_its_folder_also_when_the_run_is_resumed(tmp_path: Path) -> None:
    scenario = load_scenario(EXAMPLE / "scenario.yaml")
    assert not isinstance(scenario.adversary, bool) and scenario.adversary.trust == (OWN,)
    (tmp_path / "scenario.yaml").write_text(dump_scenario(scenario))
    assert load_scenario(tmp_path / "scenario.yaml") == scenario


def install(package: Path) -> None:
    """What pip leaves of a package with an entry point, and its one module."""
    folder = package / "my_attacks-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: my-attacks\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[latentbed.attacks]\nmy-flips = my_attacks:Flips\n")
    (package / "my_attacks.py").write_text(Path(OWN).read_text())


@pytest.mark.long
@pytest.mark.timeout(180)
def test_the_example_runs_in_a_real_adversary_from_its_file_and_as_an_installed_package(
    digits_artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    document = yaml.safe_load((EXAMPLE / "scenario.yaml").read_text())
    noise, own, _ = document["attacks"]
    own["threat"]["budget"] = 300
    installed = {**own, "name": "installed", "attack": {"kind": "my-flips", "rate": 0.05}}
    document |= {
        "artefact": str(digits_artefact), "frames": 40, "window": 40, "edge": {"device": "cpu", "threads": 1},
        "adversary": {"trust": [OWN]}, "attacks": [noise, own, installed],
    }  # fmt: skip
    del document["recipe"]
    (tmp_path / "scenario.yaml").write_text(yaml.safe_dump(document))
    folder = new_run(load_scenario(tmp_path / "scenario.yaml"), tmp_path)
    drive(folder, digits_artefact, None, Console(quiet=True))
    report = compute(folder)[0]
    attacks = {attack.name: attack for attack in report.attacks}
    assert report.ledger.agrees, report.ledger.disagreements
    assert (attacks["flips"].kind, attacks["flips"].feedback, attacks["flips"].parameters) == (
        "own_attack:Flips", "scores", {"rate": 0.05},
    )  # fmt: skip
    assert attacks["flips"].asr.count > attacks["noise"].asr.count + 3, "what was asked was of use"
    assert attacks["flips"].queries.by_phase.keys() == {"clean", "flips"}
    [first, second] = [
        [(row["success"], row["queries"], row["payload"]) for row in sessions(folder, name)] for name in ("flips", "installed")
    ]
    assert first == second, "the same class by two names"
    assert max(queries for _, queries, _ in first) <= 300


def sessions(folder: Path, name: str) -> list[dict[str, Any]]:
    [path] = folder.glob(f"passes/*-{name}/sessions.jsonl")
    return sorted(read(path), key=lambda row: int(row["frame"].rpartition("/")[2]))


@pytest.mark.long
def test_an_adversary_that_trusts_nobody_refuses_whoever_holds_its_token(
    digits_artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unread_attack.py").write_text(UNREAD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    scenario = load_scenario(EXAMPLE / "scenario.yaml").model_copy(update={"attacks": ()})
    attack = {"kind": "attack", "run": "x", "threat": {"norm": "linf"}}
    with local_nodes(scenario, digits_artefact, tmp_path / "nodes", None, None) as nodes:
        assert nodes.adversary is not None
        for kind, said in (("unread_attack:Flips", "409 .*--trust"), ("os:system", "409 .*--trust"), ("nobodys", "422 ")):
            with pytest.raises(NodeError, match=said):
                nodes.adversary.put("/behaviour", {**attack, "attack": {"kind": kind}})
        with pytest.raises(NodeError, match=r"409 .*norms linf, got l2"):
            nodes.adversary.put("/behaviour", {**attack, "attack": {"kind": "own_attack:Flips"}, "threat": {"norm": "l2"}})
        told = nodes.adversary.put("/behaviour", {**attack, "attack": {"kind": "own_attack:Flips"}})
        assert (told["behaviour"], told["feedback"]) == ("attack", "scores")
        assert nodes.adversary.get("/behaviour")["attack"] == {"kind": "own_attack:Flips"}
