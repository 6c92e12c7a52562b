"""A Debian root file system for 64-bit ARM with the phone's dependencies, run by qemu's user mode: a phone without the phone.

debootstrap's first stage unpacks Debian and this file what it left packed; nothing is configured, so nothing of ARM runs while
the folder is made, and no binfmt is needed. pip, on the host, puts the wheels for aarch64 into it: none for a dependency of the
phone is an error. Made once, and again when a pin changes; some 470 MB below LATENTBED_ARM64_ROOT or ~/.cache/latentbed-arm64.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SUITE, PYTHON = "bookworm", "3.11"
"""those of the phone's image, docker/Dockerfile"""
PACKAGES = f"python{PYTHON}-minimal,libpython{PYTHON}-stdlib"
MIRROR = os.environ.get("LATENTBED_DEBIAN", "http://deb.debian.org/debian")
GLIBC = 36
"""bookworm's, 2.36: wheels for it and for any older one"""
QEMU = "qemu-aarch64-static"
TOOLS = (QEMU, "debootstrap", "dpkg-deb", "tar", "chroot")
SITE, CODE, WORK = "opt/site-packages", "opt/latentbed", "work"


def missing() -> str | None:
    """Why there can be no such root here; None where there can."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if sys.platform != "linux" or absent:
        return f"needs Linux with {', '.join(TOOLS)}; not found: {', '.join(absent)} (Debian: qemu-user-static, debootstrap)"
    if os.geteuid() != 0:
        return "needs root, for debootstrap and chroot"
    return None


def requirements() -> list[str]:
    """What the extra `client` installs."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["client"]]


def wheels_only(python: str) -> list[str]:
    """pip's options for wheels of 64-bit ARM Linux and a Python that is not this one."""
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1))]
    named = [word for platform in platforms for word in ("--platform", platform)]
    pins = ("-c", str(CHECKOUT / "constraints.txt"))
    return [*named, "--python-version", python, "--implementation", "cp", "--only-binary=:all:", *pins]


class Root:
    """The file system. `python` runs in it what `command` says; `work` is a folder that both sides see."""

    def __init__(self) -> None:
        cache = Path(os.environ.get("LATENTBED_ARM64_ROOT") or Path.home() / ".cache" / "latentbed-arm64")
        self.path = cache / "root"
        stamp = cache / "made.json"
        wanted = {"suite": SUITE, "packages": PACKAGES, "requirements": requirements(), "pins": _digest("constraints.txt")}
        if not (self.path.is_dir() and stamp.is_file() and json.loads(stamp.read_text()) == wanted):
            stamp.unlink(missing_ok=True)
            shutil.rmtree(self.path, ignore_errors=True)
            cache.mkdir(parents=True, exist_ok=True)
            self._make()
            stamp.write_text(json.dumps(wanted))
        self.work = self._fresh(WORK)
        code = self._fresh(CODE)
        for package in ("splitcore", "mobile_client"):
            shutil.copytree(CHECKOUT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))

    def _fresh(self, name: str) -> Path:
        folder = self.path / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _make(self) -> None:
        options = ("--arch=arm64", "--foreign", "--variant=minbase", f"--include={PACKAGES}")
        _run("debootstrap", *options, SUITE, str(self.path), MIRROR)
        unpacked = (self.path / "debootstrap" / "required").read_text().split()
        for package in sorted((self.path / "var/cache/apt/archives").glob("*.deb")):
            if package.name.partition("_")[0] not in unpacked:
                archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True).stdout
                # Debian's /lib and /bin are links into /usr: they stay
                command = ["tar", "-x", "--keep-directory-symlink", "-C", self.path]
                subprocess.run(command, input=archive, check=True, capture_output=True)
        shutil.copy(shutil.which(QEMU) or QEMU, self.path / "usr/bin" / QEMU)
        for name in ("possible", "present"):  # where ONNX Runtime looks for the cores
            (self.path / "sys/devices/system/cpu").mkdir(parents=True, exist_ok=True)
            (self.path / "sys/devices/system/cpu" / name).write_text("0\n")
        target = ("--target", str(self.path / SITE), "--no-compile")
        _run(sys.executable, "-m", "pip", "install", "-qq", *target, *wheels_only(PYTHON), *requirements())

    def command(self, *arguments: object) -> list[str]:
        """For the host's own machine: `python arguments...` in the root, on the host's network."""
        variables = {"PYTHONPATH": f"/{CODE}:/{SITE}", "OMP_NUM_THREADS": "1", "HOME": "/tmp", "COLUMNS": "120"}
        given = [word for key, value in variables.items() for word in ("-E", f"{key}={value}")]
        return ["chroot", str(self.path), f"/usr/bin/{QEMU}", *given, f"/usr/bin/python{PYTHON}", *map(str, arguments)]


def _digest(name: str) -> str:
    return hashlib.sha256((CHECKOUT / name).read_bytes()).hexdigest()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
