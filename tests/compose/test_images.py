"""What is in an image, and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from composition import Composition, run

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

NODES = {"mobile_client", "adversary", "edge_server", "testbed"}
CONTENTS = """
import importlib.util, json, pathlib, sys, sysconfig
files = [path.lstat() for path in pathlib.Path(sysconfig.get_path("purelib")).rglob("*")]
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
print(json.dumps({"site_packages_mb": sum(file.st_blocks * 512 for file in files) / 1e6, "found": found}))
"""


def contents(node: str) -> dict[str, Any]:
    return dict(
        json.loads(run("docker", "run", "--rm", "--entrypoint", "python", f"latentbed/{node}", "-c", CONTENTS, "torch", *NODES))
    )


def test_the_phones_site_packages_are_at_most_250_mb(composition: Composition) -> None:
    assert 50 < contents("mobile_client")["site_packages_mb"] <= 250


def test_a_phone_has_no_torch_and_nobody_elses_code(composition: Composition) -> None:
    assert contents("mobile_client")["found"] == ["mobile_client"]


def test_an_adversary_has_no_torch_and_nobody_elses_code(composition: Composition) -> None:
    assert contents("adversary")["found"] == ["adversary"]


def test_an_edge_has_torch_and_nobody_elses_code(composition: Composition) -> None:
    assert set(contents("edge_server")["found"]) == {"torch", "edge_server"}
