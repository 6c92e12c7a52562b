"""docker-compose.yml of a copy of this checkout, under a project name, ports and volumes of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, timeout_s: float = 60, **options: Any) -> str:
    """What it printed. Raises RuntimeError with it all when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def compose_command() -> list[str]:
    """`docker compose` where it is installed, else docker-compose 1.29."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return ["docker-compose"] if plugin.returncode else ["docker", "compose"]


def copy_checkout(into: Path) -> None:
    """What git tracks here, or would: no runs, no caches."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file():  # not one that was deleted and is still in the index
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into / name)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Composition:
    """One project. Its volumes live until `remove`, so that only the first run trains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.ports = [free_port(), free_port()]
        self.project = f"latentbed-test-{secrets.token_hex(4)}"
        self._compose = [*compose_command(), "-p", self.project]
        self._environment = {
            **os.environ, "EDGE_CONTROL_PORT": str(self.ports[0]), "ADVERSARY_CONTROL_PORT": str(self.ports[1]),
        }  # fmt: skip

    def build(self) -> None:
        # the services of a profile are built from the same targets
        run(*self._compose, "--profile", "direct", "build", cwd=self.folder, env=self._environment, timeout_s=1500)

    def start(self, *, scenario: str | None = None, direct: bool = False, over: str = "") -> subprocess.Popen[bytes]:
        """`up` as docs/containers.md has it; what it prints goes to up.log. Whoever starts it waits for it.

        `over`: a file that lies over docker-compose.yml.
        """
        files = ["-f", "docker-compose.yml", "-f", over] if over else []
        environment = self._environment | ({} if scenario is None else {"SCENARIO": scenario})
        profile = ["--profile", "direct"] if direct else []
        client = "direct_client" if direct else "mobile_client"
        services = ["edge_server", "direct_client", "direct_testbed"] if direct else []
        command = [*self._compose, *files, *profile, "up", "--abort-on-container-exit", "--exit-code-from", client, *services]
        with (self.folder / "up.log").open("wb") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def up(self, *, scenario: str, direct: bool = False, over: str = "") -> int:
        """The exit status of a whole run."""
        return self.start(scenario=scenario, direct=direct, over=over).wait(600)

    def log(self) -> str:
        return (self.folder / "up.log").read_text(errors="replace")[-6000:]

    def down(self, *options: str) -> None:
        run(*self._compose, "--profile", "direct", "down", "--timeout", "2", *options, cwd=self.folder, env=self._environment)

    def remove(self) -> None:
        """The containers, networks, volumes and files away."""
        self.down("--volumes")
        self.forget_runs()
        shutil.rmtree(self.folder)

    def forget_runs(self) -> None:
        """./runs is absent again, as in a fresh clone."""
        if self.runs.exists():
            if os.getuid():
                self.chown_runs(os.getuid())
            shutil.rmtree(self.runs)

    def chown_runs(self, uid: int) -> None:
        """By a container: on the host only root may give files away."""
        run("docker", "run", "--rm", "--user", "0", "--entrypoint", "chown", "-v", f"{self.folder}:/checkout",
            "latentbed/testbed", "-R", f"{uid}:{uid}", "/checkout/runs")  # fmt: skip

    def container(self, service: str) -> str:
        """The id of a service's running container. Raises RuntimeError when there is none."""
        found = run(
            "docker", "ps", "--quiet", "--no-trunc", "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip
        if len(found) != 1:
            raise RuntimeError(f"expected one running container of {service}, got {len(found)}:\n{self.log()}")
        return found[0]

    def networks(self, service: str) -> dict[str, dict[str, Any]]:
        """By the network's name in docker-compose.yml: what `docker inspect` says of the service's end."""
        inspected = json.loads(run("docker", "inspect", self.container(service)))[0]["NetworkSettings"]["Networks"]
        return {name.removeprefix(f"{self.project}_"): end for name, end in inspected.items()}

    def python(self, service: str, program: str, *arguments: str) -> Any:
        """The JSON that a Python program prints inside the service's container."""
        return json.loads(run("docker", "exec", self.container(service), "python", "-c", program, *arguments))
