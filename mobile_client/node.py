"""The phone as one process on one event loop: serves its control API until /exit, SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from mobile_client.control import Passes, phone_app
from mobile_client.phone import Phone, PhoneConfig
from splitcore.control import load_token, serving
from splitcore.telemetry.spans import Telemetry
from splitcore.wire.channel import split_address

READY_FILE = "ready.json"


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """Everything of the command line that is not a pass's."""

    state: Path
    control: str = "127.0.0.1:0"
    token_file: Path | None = None
    names: frozenset[str] = frozenset()
    telemetry: str | None = None


async def serve(config: NodeConfig, phone_config: PhoneConfig) -> int:
    """The exit code that was asked for; 0 after a signal. Raises LatentbedError, OSError, ValueError at the start."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, end, 0)
    config.state.mkdir(parents=True, exist_ok=True)
    ready_file = config.state / READY_FILE
    ready_file.unlink(missing_ok=True)
    token = load_token(config.token_file or config.state / "token")
    telemetry = Telemetry(phone_config.node, config.telemetry)
    try:
        phone = Phone(phone_config, telemetry)
        passes = Passes(phone, config.state / "passes")
        app = phone_app(passes, token=token, names=config.names, end=end)
        host, port = split_address(config.control)
        async with serving(app, host, port) as bound:
            address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
            _write_whole(ready_file, {"pid": os.getpid(), "grpc": None, "control": address})
            print(f"mobile client: control http://{address}, target {phone_config.target}", flush=True)
            code = await ended
            await passes.stop()
        phone.close()
    finally:
        telemetry.close()
    return code


def _write_whole(path: Path, content: dict[str, str | int | None]) -> None:
    """Who finds the file finds all of it."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
