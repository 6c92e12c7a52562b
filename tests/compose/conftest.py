"""A real engine, real images, one real project for all tests. Without an engine these tests fail; they never skip."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from composition import Composition, copy_checkout


@pytest.fixture(scope="session")
def engine() -> None:
    answer = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.fail(f"expected a Docker engine that answers `docker info`: start one.\n{answer.stderr.strip()}")


@pytest.fixture(scope="session")
def composition(engine: None) -> Iterator[Composition]:
    """A built copy of the checkout. Not below pytest's own folder, which nobody else may enter."""
    folder = Path(tempfile.mkdtemp(prefix="latentbed-compose-"))
    folder.chmod(0o755)
    copy_checkout(folder)
    shorten(folder / "scenarios" / "compose.yaml", "tiny")
    shorten(folder / "scenarios" / "compose-direct.yaml", "tiny-direct")
    shorten(folder / "scenarios" / "compose-tls.yaml", "tiny-tls", attacks=[{"name": "probe", "probe": 2}])
    project = Composition(folder)
    try:
        project.build()
        yield project
    finally:
        project.remove()


def shorten(scenario: Path, name: str, **changes: Any) -> None:
    """Beside `scenario`, one that takes a second: eight frames, one attack at most."""
    document = yaml.safe_load(scenario.read_text())
    document |= {"name": name, "frames": 8, "attacks": document.get("attacks", [])[:1]} | changes
    scenario.with_name(f"{name}.yaml").write_text(yaml.safe_dump(document))
