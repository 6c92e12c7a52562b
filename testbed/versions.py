"""What a run was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "latentbed", "torch", "onnxruntime", "onnx", "numpy", "grpcio", "protobuf", "pyzmq", "fastapi", "uvicorn", "zstandard",
    "uvloop",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Packages, Python, the machine's kind, and the commit of this checkout where there is one."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "cpus": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # a testbed without the trainer has no torch
    commit = checkout_commit()
    if commit:
        found["commit"] = commit
    return found


def checkout_commit() -> str | None:
    """The commit of the checkout that this file is in, `+changes` when it has any; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # no git here, or a checkout of somebody else's
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
