"""The real phone on 64-bit ARM, in Debian under qemu, with an edge server of this machine: it gets the labels that x86 gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import arm64_root
import pytest
from arm64_root import WORK, Root

from splitcore.artefact import Artefact
from splitcore.journal import read
from splitcore.nn.quantise.add import add_int8, calibration_images

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def root() -> Root:
    if (reason := arm64_root.missing()) is not None:
        pytest.skip(reason)
    return Root()


@pytest.fixture(scope="module")
def artefact(root: Root, digits_artefact: Path) -> Artefact:
    """The digits with heads in int8, in a folder that the ARM side sees too."""
    before = Artefact(digits_artefact)
    return add_int8(before, *calibration_images(before, None, 64, None), root.work / "digits")


@pytest.fixture(scope="module")
def edge(artefact: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an edge server of this machine."""
    state = tmp_path_factory.mktemp("edge")
    command = [sys.executable, "-m", "edge_server", "--state", str(state), "--artefact", str(artefact.folder)]
    with (state / "output").open("wb") as output:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--tail", "eager", "--threads", "1"], stdout=output, stderr=output
        )
    try:
        while not (state / "ready.json").exists():
            assert process.poll() is None, (state / "output").read_text()
            time.sleep(0.1)
        yield json.loads((state / "ready.json").read_text())["grpc"]
    finally:
        process.terminate()
        process.wait(20)


def inside(root: Root, *arguments: object) -> str:
    done = subprocess.run(root.command(*arguments), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def labels(passes: Path, head: str) -> list[int]:
    lines = sorted(read(passes / head / "frames.jsonl"), key=lambda line: line["sequence"])
    assert {(line["head"], line["error"]) for line in lines} == {(head, None)}
    return [line["predicted"] for line in lines]


def test_the_interpreter_and_every_dependency_with_code_of_its_own_are_for_arm(root: Root) -> None:
    assert inside(root, "-c", "import platform; print(platform.machine())").strip() == "aarch64"
    libraries = list((root.path / arm64_root.SITE).rglob("*.so"))
    assert len(libraries) > 30
    for library in libraries:
        with library.open("rb") as file:
            assert file.read(20)[18:] == (183).to_bytes(2, "little"), f"{library} is no ELF of EM_AARCH64"


@pytest.mark.parametrize("head", ["float32", "int8-s8", "int8-u8"])
def test_every_sample_gets_the_label_that_it_gets_on_this_machine(
    root: Root, artefact: Artefact, edge: str, tmp_path: Path, head: str
) -> None:
    count = len(artefact.unsplit_labels)
    common = ["-m", "mobile_client", "once", "--count", str(count), "--target", edge, "--run", head, "--head", head]
    common += ["--load", "offline", "--patience-s", "120"]
    here = [*common, "--artefact", str(artefact.folder), "--state", str(tmp_path)]
    subprocess.run([sys.executable, *here], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    inside(root, *common, "--artefact", f"/{WORK}/digits", "--state", f"/{WORK}/phone")
    there = labels(root.work / "phone" / "passes", head)
    assert len(there) == count
    assert there == labels(tmp_path / "passes", head)


def test_the_benchmark_runs_there_and_says_for_which_machine_it_decided(root: Root, artefact: Artefact) -> None:
    options = ("--threads", 1, "--rounds", 5, "--json", f"/{WORK}/bench.json")
    printed = inside(root, "-m", "mobile_client", "bench", "--artefact", f"/{WORK}/digits", *options)
    assert "recommended: --head" in printed
    decision = json.loads((root.work / "bench.json").read_text())
    assert decision["made_on"]["machine"] == "aarch64"
    assert {row["setting"]["head"] for row in decision["rows"]} == {"float32", "int8-u8", "int8-s8"}
