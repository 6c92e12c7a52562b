"""A foreign server as the driver sees it: an address, a model, and what it counts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from splitcore.artefact import ONNX_TAIL, Artefact
from splitcore.errors import HandshakeError, LatentbedError, ScenarioError
from splitcore.node import END_WITH_STDIN
from splitcore.wire.channel import sync_channel
from splitcore.wire.described import EndpointConfig
from splitcore.wire.endpoint import Endpoint
from splitcore.wire.look import look
from testbed.foreign.config import AnyServer, MLServer
from testbed.foreign.counts import Counts, counts

RUNTIME = Path(__file__).resolve().parents[2] / "examples" / "mlserver" / "models.py"
START_S = 90.0


@dataclass(frozen=True)
class Foreign:
    """One that answers."""

    target: str
    config: EndpointConfig
    endpoint: Endpoint
    metrics: str | None = None
    allow: tuple[str, ...] = ()

    @property
    def says(self) -> str:
        """What it calls itself."""
        return self.endpoint.server or "unnamed"

    def counts(self) -> Counts:
        return counts(self.target, self.config.model, self.metrics)

    def describe(self, path: Path) -> Path:
        """Writes what phone and adversary are told of it."""
        said = {key: value for key, value in asdict(self.config).items() if value not in (None, "")}
        path.write_text(json.dumps(said, indent=1) + "\n")
        return path


@contextlib.contextmanager
def foreign_server(server: AnyServer | MLServer, artefact: Path, state: Path) -> Iterator[Foreign]:
    """Raises LatentbedError where it does not answer, or does not serve what it should."""
    if isinstance(server, AnyServer):
        yield _found(server.address, server.endpoint, server.metrics, server.allow)
        return
    with _mlserver(server, Artefact(artefact), state) as (target, metrics, config):
        yield _found(target, config, metrics)


def _found(target: str, config: EndpointConfig, metrics: str | None, allow: tuple[str, ...] = ()) -> Foreign:
    with sync_channel(target) as channel:
        return Foreign(target, config, look(channel, config), metrics, allow)


@contextlib.contextmanager
def _mlserver(server: MLServer, artefact: Artefact, state: Path) -> Iterator[tuple[str, str, EndpointConfig]]:
    """(target, metrics, model) of a process that serves the artefact's tail; it ends with the block, or with this process."""
    program = server.environment / "bin" / "mlserver"
    if not program.exists():
        raise ScenarioError(f"expected MLServer at {program}, there is none: make it with `make mlserver`")
    name = artefact.manifest.name
    ports = _free_ports(3)
    write_folder(state, artefact, server, ports)
    with (state / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [program, "start", str(state)], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **_clean_environment(), END_WITH_STDIN: "1"},
        )  # fmt: skip
    config, target = EndpointConfig(model=name), f"127.0.0.1:{ports[1]}"
    try:
        _await(process, target, config, state / "log.txt")
        yield target, f"http://127.0.0.1:{ports[2]}/metrics", config
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def write_folder(folder: Path, artefact: Artefact, server: MLServer, ports: tuple[int, ...]) -> None:
    """What `mlserver start FOLDER` serves the artefact's tail from. `ports`: of REST, gRPC, metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(RUNTIME, folder / RUNTIME.name)
    made = subprocess.run(
        [sys.executable, "-m", "splitcore.nn.tail_onnx", str(artefact.folder), str(folder / ONNX_TAIL)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise ScenarioError(f"the tail of {artefact} cannot be exported: {made.stderr.strip()[-500:]}")
    manifest = artefact.manifest
    tensor: dict[str, Any] = {"datatype": "FP32", "parameters": {"content_type": "np"}}
    model = {
        "name": manifest.name, "implementation": "models.OnnxTail",
        "parameters": {"uri": str(folder / ONNX_TAIL), "version": "v1"},
        "inputs": [{"name": "latent", "shape": [-1, *manifest.latent.shape], **tensor}],
        "outputs": [{"name": "scores", "shape": [-1, len(manifest.classes)], **tensor}],
        "max_batch_size": server.max_batch_size, "max_batch_time": server.max_batch_time,
    }  # fmt: skip
    http, grpc, metrics = ports
    settings = {
        "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0,
        "metrics_dir": str(folder), "logging_settings": None,
    }  # fmt: skip
    for path, content in (("model-settings.json", model), ("settings.json", settings)):
        (folder / path).write_text(json.dumps({k: v for k, v in content.items() if v is not None}, indent=1) + "\n")


def _await(process: subprocess.Popen[bytes], target: str, config: EndpointConfig, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with sync_channel(target) as channel:
                look(channel, config, patience_s=0.0)
            return
        except HandshakeError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                how = f"ended with {process.returncode}" if process.poll() is not None else f"did not answer in {START_S:.0f} s"
                raise LatentbedError(f"MLServer {how}: {error}\n{tail}") from error
            time.sleep(0.2)


def _clean_environment() -> dict[str, str]:
    """Without what would show it our packages, or another's settings."""
    return {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV") and "MLSERVER" not in key
    }


def _free_ports(n: int) -> tuple[int, ...]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(int(one.getsockname()[1]) for one in sockets)
