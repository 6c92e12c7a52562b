"""A whole report, of an invented run: the numbers are drawn at random and measure nothing.

`python tests/testbed/test_report_of_a_run.py DIR` writes that run and its report, to look at.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from splitcore import artefact as artefacts
from splitcore.journal import Journal
from testbed.report.build import build, compute
from testbed.report.model import Report
from testbed.report.schema import PATH, schema

MS = 1_000_000
CODEC = "uniform8/channel"
ATTACKS: tuple[dict[str, Any], ...] = (
    {"kind": "noise", "point": "wire", "norm": "linf", "eps": 0.5, "flips": 0.04, "hold": 3, "feedback": "none"},
    {"kind": "record", "point": None, "norm": None, "eps": None, "flips": 0.0, "hold": 0, "feedback": "none"},
    {"kind": "square", "point": "wire", "norm": "linf", "eps": 0.5, "flips": 0.61, "hold": 900, "feedback": "scores",
     "phases": {"clean": 1, "initial": 1, "search": 1}, "typical": 140, "batch": 1},
    {"kind": "square", "point": "latent", "norm": "linf", "eps": 0.5, "flips": 0.66, "hold": 850, "feedback": "scores",
     "phases": {"clean": 1, "initial": 1, "search": 1}, "typical": 120, "batch": 1},
    {"kind": "nes", "point": "wire", "norm": "linf", "eps": 0.5, "flips": 0.42, "hold": 310, "feedback": "scores",
     "phases": {"clean": 1, "gradient": 50, "check": 1}, "typical": 420, "batch": 50},
    {"kind": "hopskipjump", "point": "wire", "norm": "l2", "eps": 0.5, "flips": 0.31, "hold": 520, "feedback": "label",
     "phases": {"clean": 1, "start": 3, "boundary": 18, "gradient": 100, "step": 6}, "typical": 600, "batch": 40},
)  # fmt: skip


def write_artefact(folder: Path, rng: np.random.Generator, n: int = 360) -> artefacts.Artefact:
    folder.mkdir(parents=True)
    labels = rng.integers(0, 10, n)
    unsplit = np.where(rng.random(n) < 0.97, labels, (labels + 1) % 10)
    np.savez(folder / artefacts.SAMPLES, images=rng.integers(0, 255, (n, 1, 8, 8)).astype(np.uint8), labels=labels)
    np.savez(folder / artefacts.UNSPLIT_LABELS, labels=unsplit)
    manifest = artefacts.Manifest.model_validate(
        {
            "name": "digits-small",
            "approach": "sc",
            "cut": "after block 1",
            "input_shape": (1, 8, 8),
            "preprocessing": "x / 16",
            "latent": {"shape": (4, 4, 4), "lo": (0.0,) * 4, "hi": (6.0, 5.0, 4.5, 7.1), "std": 1.1},
            "codec": {"kind": "uniform", "bits": 8, "per": "channel"},
            "classes": [str(digit) for digit in range(10)],
            "tail": {"net": "small_tail"},
            "dataset": "digits",
            "accuracy": float((labels == unsplit).mean()),
            "files": {
                name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
                for name in (artefacts.SAMPLES, artefacts.UNSPLIT_LABELS)
            },
            "made_with": {"torch": "2.13.0", "seed": 0},
        }
    )
    return artefacts.write(folder, manifest)


class InventedPass:
    """Writes one pass as the nodes and the driver would; spans go to the run's journal."""

    def __init__(self, run: Path, spans: Journal, artefact: artefacts.Artefact, rng: np.random.Generator, **info: Any):
        self.number = len(list(run.glob("passes/*")))
        self.folder = run / "passes" / f"{self.number:02}-{info['name']}"
        self.spans, self.artefact, self.rng, self.info = spans, artefact, rng, info
        self.run = f"{run.name}.{self.number:02}"
        self.clock = (50 + 100 * self.number) * 1000 * MS
        self.tables: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("frames", "attempts", "queries", "sessions", "server")
        }
        self.asked = 0

    def frame(self, sequence: int, attack: dict[str, Any] | None) -> None:
        rng, tables = self.rng, self.tables
        frame = f"{self.run}/phone/{sequence}"
        label, clean = int(self.artefact.samples[1][sequence]), int(self.artefact.unsplit_labels[sequence])
        predicted, hold_ns, relayed = clean, 0, self.info["adversary"]
        sent = {"event": "sent", "id": frame, "attempt": 1, "rows": 1, "kind": "clean", "t_ns": self.clock}
        if relayed:
            hold_ns = int(rng.gamma(3, 0.01) * MS)
        if attack and attack["kind"] != "record":
            success = bool(rng.random() < attack["flips"] + (0.4 if clean != label else 0))
            predicted = (clean + 1) % 10 if success else clean
            hold_ns += self.session(frame, attack, success, clean, predicted)
            sent |= {"kind": "forwarded", "why": "success" if success else "budget" if attack.get("typical") else "blind"}
        elif relayed:
            sent["why"] = "recorded" if attack else "passed"
        steps = {
            "scheduled": 0.0, "head_start": rng.gamma(2, 0.05), "head_end": rng.gamma(20, 0.03), "encoded": 0.05,
            "sent": rng.gamma(2, 0.02), "relay_in": rng.gamma(6, 0.1), "relay_out": hold_ns / MS,
            "received": rng.gamma(6, 0.05), "dequeued": rng.gamma(2, 0.1), "decoded": rng.gamma(4, 0.02),
            "tail_done": rng.gamma(20, 0.02), "replied": 0.02, "reply_in": rng.gamma(3, 0.05), "reply_out": 0.02,
            "answered": rng.gamma(6, 0.1),
        }  # fmt: skip
        t, now = {}, self.clock
        for name, step in steps.items():
            if relayed or not name.startswith(("relay", "reply")):
                now += int(step * MS)
                t[name] = now
        for node, names in {
            "client": ("scheduled", "head_start", "head_end", "encoded", "sent", "answered"),
            "adversary": ("relay_in", "relay_out", "reply_in", "reply_out"),
            "edge": ("received", "dequeued", "decoded", "tail_done", "replied"),
        }.items():
            times = {name: t[name] for name in names if name in t}
            if times:
                self.spans.append({"kind": "span", "node": node, "frame": frame, "attempt": 1, "t": times})
        answered = {"event": "answered", "id": frame, "attempt": 1, "t_ns": now}
        tables["server"].append({"id": frame, "attempt": 1, "origin": "client", "rows": 1, "t_ns": t["received"]})
        tables["attempts"] += [{**sent, "kind": "clean", "reason": None}, {**answered, "rows": 1, "kind": "clean"}]
        if relayed:
            tables["queries"] += [{**sent, "bytes": 64, "t_ns": t["relay_out"]}, answered]
        tables["frames"].append(
            {"id": frame, "sequence": sequence, "sample": sequence, "label": label, "predicted": predicted, "error": None,
             "attempts": 1, "scheduled_ns": self.clock, "answered_ns": now, "total_ms": (now - self.clock) / MS,
             "late": False, "bytes_up": 190 + (64 if "uniform8" in self.info["codec"] else 256)}
        )  # fmt: skip
        self.clock += 4 * MS

    def session(self, frame: str, attack: dict[str, Any], success: bool, clean: int, predicted: int) -> int:
        """How long it held the frame, in ns."""
        budget, phases = self.info["budget"], attack.get("phases", {})
        spent = min(budget, 2 + int(self.rng.lognormal(np.log(attack["typical"]), 0.9))) if phases else 0
        spent = spent if success or not phases else budget
        by_phase: dict[str, int] = {}
        left, requests = spent, 0
        names = list(phases)
        while left:
            phase = names[0] if left == spent else names[1:][requests % (len(names) - 1)]
            rows = min(left, phases[phase])
            self.asked += 1
            identity = {"id": f"{self.run}/adversary/{self.asked}", "attempt": 1}
            self.tables["queries"] += [
                {"event": "sent", **identity, "kind": "query", "rows": rows, "asks": [[frame, phase, rows]],
                 "bytes": 64 * rows, "t_ns": self.clock + requests * MS},
                {"event": "answered", **identity, "t_ns": self.clock + (requests + 1) * MS},
            ]  # fmt: skip
            self.tables["server"].append({**identity, "origin": "query", "rows": rows, "t_ns": self.clock})
            by_phase[phase] = by_phase.get(phase, 0) + rows
            left -= rows
            requests += 1
        hold_ms = attack["hold"] * (spent / budget if phases else 1) * self.rng.gamma(30, 1 / 30)
        reason = "blind" if not phases else "success" if success else "budget"
        self.tables["sessions"].append(
            {"frame": frame, "attack": attack["kind"], "point": attack["point"], "success": success and bool(phases),
             "queries": spent, "by_phase": by_phase, "first_success": spent if success and phases else None,
             "distance": 0.5 * float(self.rng.random()) if success else None, "label": clean, "predicted": predicted,
             "reason": reason, "wall_ms": hold_ms, "held_ms": hold_ms, "requests": requests}
        )  # fmt: skip
        return int(hold_ms * MS)

    def write(self, count: int, attack: dict[str, Any] | None = None) -> None:
        for sequence in range(count):
            self.frame(sequence, attack)
        self.folder.mkdir(parents=True)
        for name, rows in self.tables.items():
            with Journal(self.folder / f"{name}.jsonl") as journal:
                journal.append(*rows)
        info = {
            "run": self.run, "count": count, "load": {"kind": "server", "rate_hz": 50.0}, "window": 16, "link": "wifi",
            "deadline_ms": None, "attack": None, "feedback": "none", "budget": None, "order": "overtake", "wall_s": 0.1 * count,
            "artefact_handshake": self.artefact.manifest.handshake, "device": "cpu", **self.info,
        }  # fmt: skip
        (self.folder / "pass.json").write_text(json.dumps(info))


def write_run(folder: Path, *, clean: int = 60, attacked: int = 24, budget: int = 200, seed: int = 7) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    artefact = write_artefact(folder / "artefact", rng)
    with Journal(folder / "spans.jsonl") as spans:
        InventedPass(folder, spans, artefact, rng, name="identity", kind="identity", adversary=False,
                     codec="identity").write(clean)  # fmt: skip
        InventedPass(folder, spans, artefact, rng, name="clean", kind="clean", adversary=True, codec=CODEC).write(clean)
        for attack in ATTACKS:
            same_kind = [a for a in ATTACKS if a["kind"] == attack["kind"]]
            name = attack["kind"] if len(same_kind) == 1 else f"{attack['kind']}-{attack['point']}"
            InventedPass(
                folder, spans, artefact, rng, name=name, kind="attack", adversary=True, codec=CODEC,
                attack={"kind": attack["kind"]}, point=attack["point"], norm=attack["norm"], eps=attack["eps"],
                eps_unit="std" if attack["eps"] else None, eps_absolute=0.55 if attack["eps"] else None,
                feedback=attack["feedback"], budget=budget if attack.get("phases") else None,
            ).write(attacked, attack)  # fmt: skip
    nobody = {"offset_ns": 0, "uncertainty_ns": 0}
    clocks = {"client": nobody, "edge": nobody, "adversary": nobody}
    (folder / "clocks.json").write_text(json.dumps({**clocks, "dropped": {"client": 0, "edge": 0, "adversary": 0}}))
    (folder / "versions.json").write_text(
        json.dumps({"latentbed": "0.1.0", "commit": "TEST DATA", "python": "3.11.2", "torch": "2.13.0+cpu",
                    "onnxruntime": "1.23.0", "grpcio": "1.76.0", "numpy": "2.3.0", "platform": "Linux x86_64"})
    )  # fmt: skip
    (folder / "scenario.yaml").write_text(
        yaml.safe_dump({"name": "invented-run", "seed": seed, "note": "invented numbers, they measure nothing",
                        "client": {"codec": {"kind": "uniform", "bits": 8}, "load": {"kind": "server", "rate_hz": 50.0}},
                        "attacks": [{"kind": a["kind"], "point": a["point"]} for a in ATTACKS]})
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "invented")


@pytest.fixture(scope="module")
def report(run_dir: Path) -> Report:
    return build(run_dir)


def rewritten(run_dir: Path, table: str, change: Any) -> None:
    """Changes every row of a table of a pass; a row changed to None is taken out."""
    [path] = run_dir.glob(f"passes/{table}")
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None))


def test_the_run_is_read_and_reconciled(report: Report) -> None:
    assert report.ledger.agrees, report.ledger.disagreements
    assert report.ledger.rows == report.ledger.queries + report.ledger.forwarded + report.ledger.clean
    assert report.ledger.queries == sum(attack.queries.total for attack in report.attacks)
    assert report.telemetry.full == report.telemetry.frames == 2 * 60 + len(ATTACKS) * 24
    assert report.notes == []


def test_the_split_model_is_held_to_the_unsplit_one(report: Report) -> None:
    clean = report.clean
    assert clean.agreement_with_unsplit == 1.0 and clean.agreement_with_unsplit_rate is not None
    assert clean.agreement_with_unsplit_rate.n == 60
    assert clean.accuracy == clean.unsplit_accuracy and clean.agreement_through_codec == 1.0


def test_only_frames_that_the_clean_pass_got_right_are_in_the_denominator(run_dir: Path, report: Report) -> None:
    [clean] = run_dir.glob("passes/*-clean/frames.jsonl")
    right = {r["sample"] for r in map(json.loads, clean.read_text().splitlines()) if r["predicted"] == r["label"]}
    for attack in report.attacks:
        [frames] = run_dir.glob(f"passes/*-{attack.name}/frames.jsonl")
        counted = [r for r in map(json.loads, frames.read_text().splitlines()) if r["sample"] in right]
        wrong = sum(r["predicted"] != r["label"] for r in counted)
        assert (attack.asr.count, attack.asr.n) == (wrong, len(counted))
        assert attack.asr_raw.n == 24
        assert attack.curve[-1][1] == attack.asr.value
        if not attack.baseline:
            assert attack.asr_claimed == attack.asr and attack.claimed_minus_measured == 0


def test_baselines_are_rows_of_the_same_table(report: Report) -> None:
    assert {attack.name for attack in report.attacks if attack.baseline} == {"noise", "record"}


def test_frames_that_came_back_with_an_error_or_not_at_all_are_never_a_success(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=40, attacked=20)
    before = {a.name: a for a in compute(run)[0].attacks}["square-wire"]

    def spoil(row: dict[str, Any]) -> dict[str, Any] | None:
        if row["sequence"] == 19:
            return None
        return row | {"predicted": None, "error": "UNAVAILABLE: test"} if row["sequence"] < 10 else row

    rewritten(run, "*-square-wire/frames.jsonl", spoil)
    after = {a.name: a for a in compute(run)[0].attacks}["square-wire"]
    assert (after.frames.errors, after.frames.missing, after.frames.answered) == (10, 1, 9)
    assert after.asr.n in (before.asr.n, before.asr.n - 1), "errors stay in the denominator"
    assert after.asr.count <= 9 and after.asr_raw.n == 20
    assert after.claimed_minus_measured is not None and after.claimed_minus_measured > 0


def test_an_attack_whose_codec_no_clean_pass_used_has_no_success_rate(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=10, attacked=5)
    [path] = run.glob("passes/*-nes/pass.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codec": "float16"}))
    report = compute(run)[0]
    nes = {a.name: a for a in report.attacks}["nes"]
    assert nes.asr.value is None and nes.reference is None
    assert any("nes" in note and "float16" in note for note in report.notes)


def test_a_disagreement_is_counted_told_and_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=10, attacked=5)
    rewritten(run, "*-nes/server.jsonl", lambda row: None if row["origin"] == "query" else row)
    report = build(run)
    assert not report.ledger.agrees and not report.ledger.passes["nes"].agrees
    assert len(report.ledger.disagreements) == min(20, report.ledger.disagreement_count)
    assert all(line.startswith("nes: ") for line in report.ledger.disagreements)
    assert "log disagree" in (run / "report.html").read_text()
    assert "DISAGREE" in (run / "report.md").read_text()


def test_without_the_artefact_the_report_says_what_it_cannot_tell(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=10, attacked=5)
    (run / "artefact" / "manifest.json").unlink()
    report = compute(run)[0]
    assert report.clean.agreement_with_unsplit is None and report.clean.accuracy is not None
    assert any("without the run's artefact" in note for note in report.notes)


def test_an_artefact_that_the_nodes_did_not_agree_on_is_not_used(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=10, attacked=5)
    other = write_artefact(tmp_path / "other", np.random.default_rng(1))
    report, _ = compute(run, other.folder)
    assert report.clean.agreement_with_unsplit is None
    assert any("the nodes agreed on" in note for note in report.notes)


def test_the_recipes_artefact_beside_the_runs_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=10, attacked=5)
    (run / "artefact").rename(tmp_path / "moved")
    (tmp_path / "artefacts").mkdir()
    (tmp_path / "moved").rename(tmp_path / "artefacts" / "digits")
    (run / "scenario.yaml").write_text(yaml.safe_dump({"name": "x", "recipe": "/somewhere/recipes/digits.yaml"}))
    (tmp_path / "latest").symlink_to(run.name)
    assert compute(tmp_path / "latest")[0].clean.agreement_with_unsplit == 1.0


def test_one_way_times_within_the_uncertainty_of_the_clocks_are_not_given(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=10, attacked=5)
    clocks = json.loads((run / "clocks.json").read_text())
    (run / "clocks.json").write_text(json.dumps(clocks | {"edge": {"offset_ns": 0, "uncertainty_ns": 10**8}}))
    report = compute(run)[0]
    assert not report.clocks.shared and report.clocks.uncertainty_ms == 100
    for stages in (report.latency_ms.clean, report.latency_ms.attacked):
        assert stages["uplink"].p50 is None and stages["uplink"].hidden and stages["network"].p50 is not None


def test_a_run_without_any_telemetry_still_has_its_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=10, attacked=5)
    (run / "spans.jsonl").unlink()
    (run / "clocks.json").unlink()
    report = build(run)
    assert report.telemetry.full == 0 and report.latency_ms.clean["total"].p50 is None
    assert report.clean.accuracy is not None and report.ledger.agrees


def test_a_run_without_an_attack_still_has_its_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=10, attacked=5)
    for folder in run.glob("passes/0[2-9]*"):
        (folder / "pass.json").unlink()
    report = build(run)
    assert report.attacks == [] and report.ledger.clean == 20


def test_a_run_in_which_nothing_fell_still_has_its_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=10, attacked=5)
    for folder in sorted(run.glob("passes/0[2-9]*")):
        rewritten(run, f"{folder.name}/frames.jsonl", lambda row: row | {"predicted": row["label"]})
    report = build(run)
    assert all(attack.asr.count == 0 and attack.within is None for attack in report.attacks)
    assert "Figure 3." in (run / "report.html").read_text() and "Figure 4." not in (run / "report.html").read_text()


def test_the_report_file_is_the_report_and_follows_the_schema(run_dir: Path, report: Report) -> None:
    text = (run_dir / "report.json").read_text()
    assert Report.model_validate_json(text) == report
    jsonschema.validate(json.loads(text), json.loads(schema()))


def test_the_schema_in_the_docs_is_that_of_the_models() -> None:
    assert PATH.read_text(encoding="utf-8") == schema(), "run `python -m testbed.report.schema`"


def test_building_again_gives_the_same_files(run_dir: Path, report: Report) -> None:
    before = {path.name: path.read_bytes() for path in run_dir.glob("report.*")}
    assert build(run_dir) == report
    assert {path.name: path.read_bytes() for path in run_dir.glob("report.*")} == before
    assert not list(run_dir.glob(".*")), "no temporary file is left"


class Page(HTMLParser):
    """What a page would load, its ids, and the elements that were never closed."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.uses: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed", "base"), tag
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster") and value:
                (self.uses if value.startswith("#") else self.loads).append(value.removeprefix("#"))
            self.uses += re.findall(r"url\(#([^)]*)\)", value or "")
            assert name != "style" or not re.search(r"url\((?!#)", value or ""), value


@pytest.mark.usefixtures("report")
def test_the_page_is_one_file_that_loads_nothing(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == [] and page.open == []
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert len(page.ids) == len(set(page.ids)), "an id stands once in a page"
    assert set(page.uses) <= set(page.ids)
    assert text.count("<svg") == 16 and "#0100" not in text, "eight figures in two widths, no stand-in colour left"


def test_words_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clean=5, attacked=3)
    (run / "scenario.yaml").write_text(yaml.safe_dump({"name": "<script>alert(1)</script>"}))
    [path] = run.glob("passes/*-nes/pass.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": '"><script>'}))
    build(run)
    Page((run / "report.html").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("report")
def test_the_tables_have_a_line_for_each_attack_frame_and_request(run_dir: Path) -> None:
    def lines(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((run_dir / name).open(encoding="utf-8")))

    requests = sum(
        json.loads(line)["event"] == "sent"
        for path in (*run_dir.glob("passes/0[1-9]*/queries.jsonl"), *run_dir.glob("passes/00*/attempts.jsonl"))
        for line in path.read_text().splitlines()
    )
    assert len(lines("attacks.csv")) == len(ATTACKS)
    assert len(lines("frames.csv")) == 2 * 60 + len(ATTACKS) * 24
    assert len(lines("queries.csv")) == requests
    assert {line["stage"] for line in lines("latency.csv")} >= {"head", "hold", "total"}


def test_a_folder_that_is_no_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "testbed.report", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "expected a run directory" in done.stderr and "latentbed run" in done.stderr


if __name__ == "__main__":
    print(build(write_run(Path(sys.argv[1]), clean=300, attacked=97, budget=1000)).ledger.model_dump(exclude={"passes"}))
