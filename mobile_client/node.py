"""The phone as one process on one event loop: serves its control API until /exit, SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from mobile_client.control import Passes, phone_app
from mobile_client.live import live_phone
from mobile_client.metrics import Counts, registry_of
from mobile_client.phone import Phone, PhoneConfig
from splitcore.control import load_token, serving
from splitcore.live.serve import serve_live
from splitcore.node import begin, joined, on_end, tell_ready
from splitcore.telemetry.exposition import serve_metrics
from splitcore.telemetry.spans import Telemetry
from splitcore.telemetry.tracing import TraceConfig
from splitcore.wire.channel import split_address
from splitcore.wire.tls import ServerTls


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """Everything of the command line that is not a pass's."""

    state: Path
    control: str = "127.0.0.1:0"
    token_file: Path | None = None
    names: frozenset[str] = frozenset()
    telemetry: str | None = None
    trace: TraceConfig | None = None
    control_tls: ServerTls | None = None


async def serve(config: NodeConfig, phone_config: PhoneConfig) -> int:
    """The exit code that was asked for; 0 after a signal. Raises LatentbedError, OSError, ValueError at the start."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    on_end(lambda: end(0))
    begin(config.state)
    token = load_token(config.token_file or config.state / "token")
    telemetry = Telemetry(phone_config.node, config.telemetry, config.trace)
    try:
        phone = Phone(phone_config, telemetry)
        counts = Counts()
        passes = Passes(phone, config.state / "passes", counts)
        app = phone_app(passes, token=token, names=config.names, end=end)
        serve_metrics(app, registry_of(counts, telemetry))
        live = live_phone(counts, passes, phone_config)
        serve_live(app, live)
        host, port = split_address(config.control)
        async with live.history.kept(), serving(app, host, port, tls=config.control_tls) as bound:
            address = joined(host, bound)
            scheme = "http" if config.control_tls is None else "https"
            tell_ready(config.state, control=address)
            print(
                f"mobile client: control {scheme}://{address}, target {phone_config.target}, head {phone_config.setting}",
                flush=True,
            )
            code = await ended
            await passes.stop()
        phone.close()
    finally:
        telemetry.close()
    return code
