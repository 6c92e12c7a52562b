"""A study on real processes: every attack against a live edge, its books, its tables, and what happens when it is cut off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from adversary.attacks import ATTACKS
from adversary.attacks.base import learns
from adversary.attacks.rays import RayS
from adversary.attacks.square import Square
from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.errors import ScenarioError
from splitcore.journal import read
from testbed.cli import app
from testbed.nodes import Node
from testbed.study.config import Cell, Place, Study, cells, load_study
from testbed.study.measure import measure
from testbed.study.run import run
from testbed.study.scene import StudyError, scene
from testbed.study.tables import of_grid

STUDIES = sorted((Path(__file__).parents[2] / "scenarios").glob("study-*.yaml"))
QUIET = Console(quiet=True)
PLACES = [
    {"name": "input", "point": "input"}, {"name": "latent", "point": "latent"},
    {"name": "wire 8 bit", "point": "wire", "codec": {"kind": "uniform", "bits": 8}},
    {"name": "wire 2 bit", "point": "wire", "codec": {"kind": "uniform", "bits": 2}},
]  # fmt: skip
BROKEN = """
class Untaught:
    feedback, norms, kind = "none", ("linf",), "untaught"

    def learn_from(self, pool, about):
        raise RuntimeError("it does not learn")

    def perturb(self, z, case):
        yield from ()


class Broken:
    feedback, norms, kind = "scores", ("linf",), "broken"

    def perturb(self, z, case):
        yield from ()
        raise RuntimeError("it does not work")
"""


def document(artefact: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "small", "subjects": [{"artefact": str(artefact)}], "places": PLACES, "samples": 5, "budget": 40, "pool": 40,
        "grids": [
            {"title": "one eps", "attacks": ["noise", "square", "rays"], "eps": {"linf": [0.5], "l2": [0.3]}},
            {"title": "over eps", "attacks": ["square"], "places": ["latent", "wire 2 bit"], "eps": {"linf": [0.1, 0.5]}},
        ],
        **changes,
    }  # fmt: skip


def study_file(folder: Path, artefact: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(document(artefact, **changes)))
    return path


def invoke(path: Path, folder: Path, *options: str) -> tuple[int, str]:
    arguments = ["study", str(path), "--out", str(folder / "out"), "--runs", str(folder / "runs"), "--device", "cpu", *options]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output + str(result.exception or "")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_is_valid_and_its_recipes_are_there(path: Path) -> None:
    study = load_study(path)
    assert path.stem == f"study-{study.name}"
    assert all((path.parent / subject.recipe).exists() for subject in study.subjects if subject.recipe is not None)
    every = [cell for grid in study.grids for cell in cells(study, grid)]
    assert {cell.attack.kind for cell in every} == {attack.kind for attack in ATTACKS}
    assert {cell.place.name for cell in every} == {place.name for place in study.places}


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_study_measures_every_cell_once_goes_on_where_it_was_cut_off_and_writes_its_tables(
    digits_artefact: Path, tmp_path: Path
) -> None:
    path = study_file(tmp_path, digits_artefact)
    code, said = invoke(path, tmp_path)
    assert code == 0, said
    journal = tmp_path / "runs" / "studies" / "small" / "cells.jsonl"
    rows = list(read(journal))
    # noise and square have two norms, rays one, at four places; the sweep adds eps 0.1 at two
    assert len(rows) == (2 + 2 + 1) * 4 + 2
    assert len({row["key"] for row in rows}) == len(rows)
    artefact = Artefact(digits_artefact)
    for row in rows:
        assert row["problems"] == []
        if "skipped" in row:
            assert (row["place"], row["norm"]) == ("wire 2 bit", "linf")
            continue
        assert row["books_agree"] is True
        assert row["n"] == row["asr"]["n"] == 5
        assert row["asr_raw"]["count"] == row["asr"]["count"] + row["tried"] - 5
        assert row["asr_raw"]["n"] == row["tried"]
        if row["attack"] == "noise":
            assert (row["queries"], row["rows"], row["requests"], row["needed"]) == (0, 5, 5, [])
        else:
            assert 5 <= row["queries"] == row["rows"] <= 5 * 40
            assert len(row["needed"]) == row["asr"]["count"]
            assert all(q <= 40 for q in row["needed"])
        if row["median_distance_of_eps"] is not None:
            assert row["median_distance_of_eps"] <= 1 + 1e-3
        # eps: the same ratio of signal to noise everywhere
        std = artefact.latent.std if row["point"] != "input" else float((artefact.samples[0] / 255).std())
        assert row["elements"] == (artefact.latent.elements if row["point"] != "input" else 64)
        radius = math.sqrt(row["elements"]) if row["norm"] == "l2" else 1.0
        assert row["eps_absolute"] == pytest.approx(row["eps"] * std * radius, rel=1e-5)
        assert row["mse"] == pytest.approx((row["eps"] * std) ** 2, rel=1e-5)
        assert row["snr_db"] == pytest.approx(-20 * math.log10(row["eps"]), abs=1e-9)
    assert not list((tmp_path / "runs").rglob("ledgers/*")), "books that agree have said what they know"

    # as a killed process leaves it: two cells missing, half a line
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]) + lines[-1][:50])
    code, said = invoke(path, tmp_path)
    assert code == 0, said
    assert f"{len(rows)} cells, {len(rows) - 2} measured before, 2 to be measured" in said
    again = {row["key"]: row for row in read(journal)}
    assert list(again) == [row["key"] for row in rows]
    assert [again[row["key"]] for row in rows[:-2]] == rows[:-2]

    code, said = invoke(path, tmp_path)
    assert code == 0
    assert "0 to be measured" in said
    text = (tmp_path / "out" / "small.md").read_text()
    assert text.count("### digits") == 2
    assert "| attack | sees | norm | eps | input | latent | wire 8 bit | wire 2 bit |" in text
    assert "| attack | norm | point | eps 0.1 | eps 0.5 |" in text
    assert "n/a" in text
    assert "more are not measured" not in text
    saved = json.loads((tmp_path / "out" / "small.json").read_text())
    assert [row["key"] for row in saved["rows"]] == [row["key"] for row in rows]
    assert (tmp_path / "out" / "small.png").read_bytes().startswith(b"\x89PNG")

    # another budget is another study of the same name: nothing of it is taken for measured
    code, said = invoke(study_file(tmp_path, digits_artefact, budget=41), tmp_path, "--only", "wire 8 bit rays linf")
    assert code == 0
    assert f"{len(rows)} cells, 0 measured before, 1 to be measured" in said
    assert f"1 cells, {len(rows) - 1} more are not measured yet" in (tmp_path / "out" / "small.md").read_text()


@pytest.mark.long
@pytest.mark.timeout(240)
def test_every_attack_there_is_can_be_studied_in_every_norm_on_the_wire(digits_artefact: Path, tmp_path: Path) -> None:
    study = Study.model_validate(
        document(digits_artefact, samples=2, budget=30, places=PLACES[2:3], grids=[{"title": "all", "eps": [0.5]}])
    )
    rows = run(study, {"digits": digits_artefact}, tmp_path, QUIET, device="cpu")
    assert [(row["attack"], row["norm"]) for row in rows] == [
        (attack.kind, norm) for attack in ATTACKS for norm in attack.norms
    ]
    for row in rows:
        assert row["books_agree"], row
        assert (row["learn_s"] is not None) == learns(next(a for a in ATTACKS if a.kind == row["attack"])())
        blind = row["feedback"] == "none"
        assert row["queries"] == 0 if blind else row["queries"] >= 2
        assert not blind or row["rows"] == 2, "what a blind attack found is sent on once"
    assert of_grid(study, study.grids[0], rows) == rows


@pytest.mark.long
@pytest.mark.timeout(120)
def test_an_attack_that_fails_is_an_error_after_everything_else_was_measured(digits_artefact: Path, tmp_path: Path) -> None:
    (tmp_path / "broken_attack.py").write_text(BROKEN)
    attacks = [
        {"name": "mine", "attack": {"kind": "broken_attack:Broken"}},
        {"name": "other", "attack": {"kind": "broken_attack:Untaught"}},
        {"attack": {"kind": "square"}, "norms": ["linf"]},
    ]
    path = study_file(
        tmp_path, digits_artefact, places=PLACES[1:2], trust=["broken_attack.py"],
        grids=[{"title": "three", "attacks": attacks, "eps": [0.5]}],
    )  # fmt: skip
    code, said = invoke(path, tmp_path)
    assert code != 0
    assert "2 of 3 cells have problems" in said
    assert "it does not work" in said
    assert "it does not learn" in said
    text = (tmp_path / "out" / "small.md").read_text()
    assert "| square |" in text
    assert "| mine |" not in text
    code, said = invoke(path, tmp_path)
    assert code != 0
    assert "3 cells, 1 measured before, 2 to be measured" in said, "a cell with problems is measured again"


class Forgetful(Node):
    """An edge whose log has lost its last row."""

    def save(self, path: str, into: Path, **query: str) -> None:
        super().save(path, into, **query)
        if "clean" not in query["run"]:
            into.write_bytes(b"".join(into.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.timeout(120)
def test_books_that_disagree_are_a_problem_of_the_cell_and_are_kept(digits_artefact: Path, tmp_path: Path) -> None:
    study = Study.model_validate(document(digits_artefact))
    cell = Cell(
        subject="digits", place=Place(name="latent", point="latent"), label="square", attack=Square(), norm="linf", eps=0.5,
        samples=3, budget=20,
    )  # fmt: skip
    with scene(Artefact(digits_artefact), tmp_path, run="small", max_rows=64, device="cpu") as there:
        assert measure(there, cell, study, lambda ended, fell: None)["problems"] == []
        there.node = Forgetful(there.node.name, there.node.control, there.node.token)
        row = measure(there, cell, study, lambda ended, fell: None)
    assert row["books_agree"] is False
    assert any("answered in the ledger, but not in the server's log" in problem for problem in row["problems"])
    assert len(list((tmp_path / "ledgers").iterdir())) == 2


@pytest.mark.timeout(120)
def test_what_the_adversary_recorded_are_other_samples_as_they_look_at_the_point_of_attack(
    digits_artefact: Path, tmp_path: Path
) -> None:
    artefact = Artefact(digits_artefact)
    codec = fit("uniform2/channel", artefact.latent)
    with scene(artefact, tmp_path, run="small", max_rows=64, device="cpu") as there:
        place = Study.model_validate(document(digits_artefact)).place("wire 2 bit")
        pool = there.pool(place, slice(10, 30))
        clean = there.clean(place)
        # its own server says the same of the same latents, asked another way
        assert (codec.snap(there.latents[10:30]) == pool.points).all()
        assert (pool.labels == clean.scores[10:30].argmax(1)).all()
        assert (clean.right == (clean.labels == artefact.samples[1])).all()
        assert there.pool(Place(name="input", point="input"), slice(0, 4)).points.shape == (4, 1, 8, 8)
        with pytest.raises(StudyError, match="1 of 1 frames were not answered"), there.books("wrong") as books:
            there.send([there.frame(f"{books.run}/c/0", codec, [b"too short"])], books.ledger, "clean")


@pytest.mark.parametrize(("change", "said"), [
    ({"subjects": [{"title": "x"}]}, "expected a `recipe` or an `artefact`"),
    ({"places": PLACES[:1] * 2}, "names that differ"),
    ({"grids": [{"title": "x", "attacks": ["square"], "eps": [0.5], "places": ["moon"]}]}, "expected places of .*got moon"),
    ({"grids": [{"title": "x", "attacks": ["square"], "eps": [0.5], "subjects": ["moon"]}]}, "expected subjects of"),
    ({"grids": [{"title": "x", "attacks": [{"attack": {"kind": "rays"}, "norms": ["l2"]}], "eps": [1]}]}, "rays has norms"),
    ({"grids": [{"title": "x", "attacks": ["magic"], "eps": [0.5]}]}, "magic"),
    ({"grids": [{"title": "x", "eps": []}]}, "eps"),
    ({"grids": [{"title": "x", "eps": {"l1": [1]}}]}, "l1"),
    ({"sample": 3}, "sample"),
])  # fmt: skip
def test_a_study_that_cannot_be_is_refused_by_name(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=rf"small.yaml is not a study(?s:.)*{said}"):
        load_study(study_file(tmp_path, Path("digits"), **change))


def test_an_eps_of_one_norm_leaves_the_other_norms_out() -> None:
    grid = {"title": "x", "attacks": ["square", "rays"], "places": ["latent"], "eps": {"l2": [0.1, 0.2]}}
    study = Study.model_validate(document(Path("digits"), grids=[grid]))
    assert [(cell.label, cell.norm, cell.eps) for cell in cells(study, study.grids[0])] == [
        ("square", "l2", 0.1), ("square", "l2", 0.2),
    ]  # fmt: skip
    assert study.grids[0].is_sweep
    assert RayS.norms == ("linf",)
