"""Programs of the machine that some tests run: a browser, a proxy, Prometheus."""

from __future__ import annotations

import os
import shutil

import pytest

MUST = "LATENTBED_TOOLS"
"""environment: `required` makes a missing program a failure, as in CI; else its tests are skipped, and say so"""


def tool(name: str, package: str) -> str:
    """The program's path. Skips, or fails, where it is not installed."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        said = f"{name} is not installed (Debian: apt-get install {package})"
        if os.environ.get(MUST) == "required":
            pytest.fail(said)
        pytest.skip(said)
    return path
