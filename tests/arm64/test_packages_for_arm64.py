"""What the phone's image for 64-bit ARM is made of: a Dockerfile that names no architecture, and wheels for all it installs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from arm64_root import CHECKOUT, PYTHON, requirements, wheels_only

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(900)]

NAMED = re.compile(r"amd64|x86|arm64|aarch64|--platform|@sha256", re.IGNORECASE)


def stage(name: str) -> str:
    """The lines of a stage of the Dockerfile and of those that it is made from."""
    stages = {}
    for part in (CHECKOUT / "docker" / "Dockerfile").read_text().split("\nFROM ")[1:]:
        base, called = re.match(r"(\S+) AS (\S+)\n", part).groups()  # type: ignore[union-attr]
        stages[called] = (base, f"FROM {part}")
    base, lines = stages[name]
    return lines if base not in stages else stage(base) + lines


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, timeout=600, check=False)


def test_no_stage_of_the_phones_image_names_an_architecture() -> None:
    lines = stage("mobile_client")
    assert lines.startswith(f"FROM python:{PYTHON}-")
    assert "mobile_client/" in lines
    assert "torch" not in lines.replace("torch_index.py", "")
    assert NAMED.findall(lines) == []


def test_every_pinned_dependency_of_the_phone_has_a_wheel_for_aarch64(tmp_path: Path) -> None:
    pins = ("-c", str(CHECKOUT / "constraints.txt"))
    if pip("download", "-qq", "--no-deps", "-d", str(tmp_path), *pins, "idna").returncode:
        pytest.skip("needs a package index that answers")
    done = pip("download", "-qq", "-d", str(tmp_path / "wheels"), *wheels_only(PYTHON), *requirements())
    assert done.returncode == 0, done.stderr
    wheels = [path.name for path in (tmp_path / "wheels").iterdir()]
    assert all(name.endswith(("aarch64.whl", "-any.whl")) for name in wheels), wheels
    assert {"onnxruntime", "numpy", "grpcio", "pillow", "pyzmq"} <= {
        name.partition("-")[0] for name in wheels if "aarch64" in name
    }
