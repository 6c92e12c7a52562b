"""`python -m mobile_client`: the phone. Without a command it serves its control API; `once` runs one pass and ends."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console

from mobile_client import bench
from mobile_client.node import NodeConfig, serve
from mobile_client.once import once
from mobile_client.passes import PassRequest
from mobile_client.phone import PhoneConfig
from mobile_client.settings import Setting
from splitcore import codec as codecs
from splitcore.artefact import FLOAT32, HEADS
from splitcore.artefact import Artefact as Opened
from splitcore.data import DATASETS
from splitcore.errors import LatentbedError, SecurityError
from splitcore.node import new_event_loop
from splitcore.telemetry.tracing import TraceConfig, trace_config
from splitcore.wire.described import described
from splitcore.wire.sealing import load_key
from splitcore.wire.tls import client_tls, server_tls

app = typer.Typer(add_completion=False, invoke_without_command=True, pretty_exceptions_enable=False)

Artefact = Annotated[
    list[Path] | None, typer.Option(help="folder of an artefact whose head runs here; repeatable, the first is the default")
]
State = Annotated[Path | None, typer.Option(help="folder for ready.json, the token and the passes")]
Target = Annotated[str | None, typer.Option(help="where frames go, host:port")]
Telemetry = Annotated[str | None, typer.Option(help="tcp://host:port of the collector; none: no spans")]
Node = Annotated[str, typer.Option(help="this node's name in frame ids and telemetry")]
DataDir = Annotated[Path | None, typer.Option(help="data sets", envvar="LATENTBED_DATA")]
HeadChoice = Annotated[
    str,
    typer.Option("--head", help=f"{', '.join(HEADS)}, or auto: as measured here once, kept in STATE/head.json"),
]
Threads = Annotated[int, typer.Option(min=1, help="threads of ONNX Runtime; --head auto chooses its own")]
Spinning = Annotated[bool, typer.Option("--spinning", help="idle threads of ONNX Runtime burn their core")]
MaxPointsLost = Annotated[float, typer.Option(min=0, help="points of accuracy that a recommended head may lose")]
TlsTrust = Annotated[Path | None, typer.Option(help="PEM: authorities of the server; with it frames go over TLS alone")]
TlsCertificate = Annotated[Path | None, typer.Option(help="PEM: the phone's own, for a server that wants one (mTLS)")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM, of --tls-certificate")]
TlsName = Annotated[str | None, typer.Option(help="the name in the server's certificate; default: the host of --target")]
AccessToken = Annotated[Path | None, typer.Option(help="the phone's token at a server that knows its clients by tokens")]
SealKey = Annotated[
    Path | None, typer.Option(help="key of sealed frames, as `latentbed seal-key` makes it; else LATENTBED_SEAL_KEY")
]
EndpointFile = Annotated[
    Path | None, typer.Option("--endpoint", help="JSON: the model of any other server of the protocol; default: an edge's")
]
Patience = Annotated[float, typer.Option(min=0, help="seconds of trying again before a pass fails")]


@app.callback()
def main(
    context: typer.Context,
    artefact: Artefact = None,
    state: State = None,
    target: Target = None,
    direct: Annotated[str | None, typer.Option(help="where frames of passes go that say `direct`, host:port")] = None,
    control: Annotated[str, typer.Option(help="address of the control API; port 0: any free one")] = "127.0.0.1:0",
    token_file: Annotated[Path | None, typer.Option(help="default: STATE/token, made when absent")] = None,
    names: Annotated[str, typer.Option(help="further Host names of the control API, comma-separated")] = "",
    telemetry: Telemetry = None,
    trace_endpoint: Annotated[
        str | None,
        typer.Option(help="OTLP/HTTP collector, http://host:4318; none: off", envvar="LATENTBED_TRACE_ENDPOINT"),
    ] = None,
    trace_rate: Annotated[
        float, typer.Option(min=0, max=1, help="share of the frames that are traced", envvar="LATENTBED_TRACE_RATE")
    ] = 0.001,
    node: Node = "client",
    data_dir: DataDir = None,
    head: HeadChoice = FLOAT32,
    threads: Threads = 1,
    spinning: Spinning = False,
    patience_s: Patience = 60.0,
    endpoint: EndpointFile = None,
    tls_trust: TlsTrust = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
    access_token_file: AccessToken = None,
    seal_key_file: SealKey = None,
    control_certificate: Annotated[Path | None, typer.Option(help="PEM; with it the control API speaks TLS alone")] = None,
    control_key: Annotated[Path | None, typer.Option(help="PEM, of --control-certificate")] = None,
) -> None:
    """Sends the latents of samples to TARGET, as the control API asks for, until POST /exit or SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if context.invoked_subcommand is not None:
        return
    config = NodeConfig(
        state=_given(state, "--state"),
        control=control,
        token_file=token_file,
        names=frozenset(filter(None, names.split(","))),
        telemetry=telemetry,
        trace=_traces(trace_endpoint, trace_rate),
        control_tls=_or_end(server_tls, control_certificate, control_key),
    )
    security = _or_end(_security, (tls_trust, tls_certificate, tls_key, tls_name), access_token_file, seal_key_file)
    setting = _setting(artefact, state, head, threads, spinning)
    phone = _phone(artefact, target, node=node, data_dir=data_dir, setting=setting, patience_s=patience_s, direct=direct,
                   endpoint=_or_end(described, endpoint), **security)  # fmt: skip
    raise typer.Exit(_run(serve(config, phone)))


@app.command("once")
def one_pass(
    count: Annotated[int, typer.Option(min=1, help="frames to send")],
    artefact: Artefact = None,
    state: State = Path("runs/phone"),
    target: Target = None,
    run: Annotated[str | None, typer.Option(help="name of the pass; an old one is resumed")] = None,
    source: Annotated[str, typer.Option(help="artefact, a data set's name, or a folder of images")] = "artefact",
    codec: Annotated[str | None, typer.Option(help="e.g. identity, uniform4/channel+zstd; default: the artefact's")] = None,
    load: Annotated[str, typer.Option(help="single_stream, server (with --rate-hz) or offline")] = "single_stream",
    rate_hz: Annotated[float | None, typer.Option(help="mean arrivals a second of the pattern server")] = None,
    window: Annotated[int, typer.Option(help="frames in flight at most")] = 16,
    deadline_ms: Annotated[float | None, typer.Option(help="of a frame, from its scheduled arrival")] = None,
    policy: Annotated[str, typer.Option(help="fixed: the first artefact; replan: the best for the link")] = "fixed",
    link: Annotated[str | None, typer.Option(help="wifi, lte, 5g or lan; default: the network as it is")] = None,
    seed: Annotated[int, typer.Option(help="of the arrivals and the link")] = 0,
    telemetry: Telemetry = None,
    node: Node = "client",
    data_dir: DataDir = None,
    head: HeadChoice = FLOAT32,
    threads: Threads = 1,
    spinning: Spinning = False,
    patience_s: Patience = 10.0,
    endpoint: EndpointFile = None,
    tls_trust: TlsTrust = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
    access_token_file: AccessToken = None,
    seal_key_file: SealKey = None,
) -> None:
    """Runs one pass and prints its accuracy and latency."""
    setting = _setting(artefact, state, head, threads, spinning)
    security = _or_end(_security, (tls_trust, tls_certificate, tls_key, tls_name), access_token_file, seal_key_file)
    phone = _phone(artefact, target, node=node, data_dir=data_dir, setting=setting, patience_s=patience_s,
                   endpoint=_or_end(described, endpoint), **security)  # fmt: skip
    try:
        request = PassRequest.model_validate(
            {
                "run": run or f"once-{time.time_ns() // 1_000_000}",
                "count": count,
                "source": _source(source),
                "codec": None if codec is None else codecs.parse(codec),
                "load": {"kind": load} | ({} if rate_hz is None else {"rate_hz": rate_hz}),
                "window": window,
                "deadline_ms": deadline_ms,
                "link": link,
                "policy": {"kind": policy},
                "seed": seed,
            }
        )
    except (ValidationError, LatentbedError) as error:
        raise typer.BadParameter(str(error)) from error
    _run(once(_given(state, "--state"), phone, request, telemetry, Console()))


@app.command("bench")
def bench_heads(
    artefact: Artefact = None,
    threads: Annotated[int | None, typer.Option(min=1, help="at most; default: the cores that this process may use")] = None,
    max_points_lost: MaxPointsLost = 1.0,
    rounds: Annotated[int, typer.Option(min=bench.FEWEST, help="in each of which every setting has its turn")] = bench.ROUNDS,
    json: Annotated[Path | None, typer.Option(help="write what was measured and chosen there")] = None,
    state: Annotated[Path | None, typer.Option(help="keep the choice for a phone with this STATE and --head auto")] = None,
) -> None:
    """Measures every head of the artefact on this device and recommends one: none that is slower, none that loses accuracy."""
    try:
        opened = Opened(_first(artefact))
        decision = bench.decide(opened, max_points_lost=max_points_lost, threads=threads, rounds=rounds)
        for path in (json, None if state is None else state / bench.DECISION):
            if path is not None:
                bench.keep(decision, path)
    except (LatentbedError, OSError) as error:
        print(f"mobile client: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    bench.show(decision, opened, Console(width=None if sys.stdout.isatty() else 110))


def _setting(artefact: list[Path] | None, state: Path | None, head: str, threads: int, spinning: bool) -> Setting:
    """As the options say; for `auto` as was measured, which takes seconds the first time."""
    if head != "auto":
        known = [name for name in HEADS if name == head]
        if not known:
            raise typer.BadParameter(f"expected --head of {', '.join(HEADS)} or auto, got {head!r}")
        return Setting(head=known[0], threads=threads, spinning=spinning)
    try:
        return bench.decided(Opened(_first(artefact)), _given(state, "--state")).setting
    except (LatentbedError, OSError) as error:
        print(f"mobile client: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _traces(endpoint: str | None, rate: float) -> TraceConfig | None:
    try:
        return trace_config(endpoint, rate)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _source(name: str) -> dict[str, str]:
    if name == "artefact":
        return {"kind": "artefact"}
    return {"kind": "dataset", "name": name} if name in DATASETS else {"kind": "folder", "path": name}


def _first(artefacts: list[Path] | None) -> Path:
    return _given(artefacts or None, "--artefact")[0]


def _phone(artefact: list[Path] | None, target: str | None, **rest: Any) -> PhoneConfig:
    first, *others = _given(artefact or None, "--artefact")
    return PhoneConfig(artefact=first, others=tuple(others), target=_given(target, "--target"), **rest)


_T = TypeVar("_T")


def _given(value: _T | None, option: str) -> _T:
    if value is None:
        raise typer.BadParameter(f"expected {option}, it was not given")
    return value


def _security(tls: tuple[Any, ...], access_token_file: Path | None, seal_key_file: Path | None) -> dict[str, Any]:
    """Of a PhoneConfig. Raises SecurityError."""
    token = None if access_token_file is None else _token(access_token_file)
    return {"tls": client_tls(*tls), "access_token": token, "seal_key": load_key(seal_key_file)}


def _token(path: Path) -> str:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecurityError(f"expected the phone's token in {path}: {error}") from error
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise SecurityError(f"expected a token of printable characters without spaces in {path}, got {len(text)} others")
    return text


def _or_end(make: Callable[..., _T], *options: Any) -> _T:
    """What `make` makes of options; the process ends where it refuses them."""
    try:
        return make(*options)
    except LatentbedError as error:
        print(f"mobile client: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _run(main: Coroutine[Any, Any, _T]) -> _T:
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(main)
    except asyncio.CancelledError:
        print("mobile client: stopped; the same --run goes on where it ended", file=sys.stderr)
        raise typer.Exit(0) from None
    except (LatentbedError, OSError, ValueError) as error:
        print(f"mobile client: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
