"""`python -m edge_server`: the edge server's command line."""

from __future__ import annotations

import asyncio
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edge_server.detectors.read import read_detector
from edge_server.node import EdgeConfig, serve
from edge_server.policy import BatchSettings, QueuePolicy, policy_of
from splitcore.errors import LatentbedError
from splitcore.node import new_event_loop
from splitcore.telemetry.tracing import trace_config
from splitcore.wire.sealing import load_key
from splitcore.wire.tls import server_tls

TraceEndpoint = Annotated[
    str | None, typer.Option(help="OTLP/HTTP collector, http://host:4318; none: off", envvar="LATENTBED_TRACE_ENDPOINT")
]


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Outputs(StrEnum):
    SCORES = "scores"
    LABEL = "label"


class TailForm(StrEnum):
    AUTO = "auto"
    PLAIN = "plain"
    EAGER = "eager"
    CHANNELS_LAST = "channels-last"
    BFLOAT16 = "bfloat16"
    COMPILE = "compile"
    CUDA_GRAPHS = "cuda-graphs"
    ONNXRUNTIME = "onnxruntime"


class TimeoutAction(StrEnum):
    REJECT = "REJECT"
    DELAY = "DELAY"


class Status(StrEnum):
    GRPC = "grpc"
    TRITON = "triton"


def main(
    state: Annotated[Path, typer.Option(help="folder for ready.json, the token and server.jsonl")],
    artefact: Annotated[
        list[Path] | None,
        typer.Option(help="artefact whose tail is served, DIR or DIR@VERSION; repeatable, the first is the default"),
    ] = None,
    repository: Annotated[
        list[Path] | None, typer.Option(help="folder with artefacts as NAME/VERSION, all served; repeatable")
    ] = None,
    version_policy: Annotated[
        str, typer.Option(help="which of a model's versions are served: all, latest, or latest:N")
    ] = "all",
    listen: Annotated[str, typer.Option(help="address of the data plane; port 0: any free one")] = "127.0.0.1:0",
    control: Annotated[str, typer.Option(help="address of the control plane; port 0: any free one")] = "127.0.0.1:0",
    token_file: Annotated[Path | None, typer.Option(help="default: STATE/token, made when absent")] = None,
    names: Annotated[str, typer.Option(help="further Host names of the control plane, comma-separated")] = "",
    telemetry: Annotated[str | None, typer.Option(help="tcp://host:port of the collector; none: no spans")] = None,
    trace_endpoint: TraceEndpoint = None,
    trace_rate: Annotated[float, typer.Option(min=0, max=1, help="share of the frames that came untraced")] = 0.0,
    node: Annotated[str, typer.Option(help="this node's name in the telemetry")] = "edge",
    device: Annotated[Device, typer.Option(help="auto: cuda where there is one")] = Device.AUTO,
    tail: Annotated[
        TailForm, typer.Option(help="form of the tail; auto: the fastest, by measurement at load, in STATE/tail.json")
    ] = TailForm.AUTO,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0: half the cores")] = 0,
    max_batch_size: Annotated[int, typer.Option(min=1, help="rows computed at once at most")] = 64,
    max_queue_delay_microseconds: Annotated[int, typer.Option(min=0, help="how long a request waits for others")] = 0,
    max_queue_size: Annotated[int, typer.Option(min=1, help="rows that may wait; above it: refused")] = 4096,
    preferred_batch_size: Annotated[
        str, typer.Option(help="rows, comma-separated: with a delay, such a batch goes at once")
    ] = "",
    preserve_ordering: Annotated[bool, typer.Option(help="answers of a stream leave in the order of its requests")] = False,
    priority_levels: Annotated[int, typer.Option(min=0, help="levels of the parameter `priority`, 1 the highest")] = 0,
    default_priority_level: Annotated[int, typer.Option(min=0, help="of requests without one; default: the lowest")] = 0,
    timeout_action: Annotated[TimeoutAction, typer.Option(help="of a request that waited too long")] = TimeoutAction.REJECT,
    default_timeout_microseconds: Annotated[int, typer.Option(min=0, help="of requests that say none; 0: no timeout")] = 0,
    allow_timeout_override: Annotated[bool, typer.Option(help="a request's own `timeout` counts, if shorter")] = True,
    priority_queue_policy: Annotated[
        list[str] | None,
        typer.Option(help="LEVEL:NAME=VALUE,... for one level, e.g. 1:max_queue_size=64,timeout_action=DELAY; repeatable"),
    ] = None,
    status: Annotated[
        Status, typer.Option(help="triton: UNAVAILABLE where a queue is full or a deadline passes")
    ] = Status.GRPC,
    outputs: Annotated[Outputs, typer.Option(help="scores: logits and label; label: the label alone")] = Outputs.SCORES,
    trust: Annotated[
        list[str] | None,
        typer.Option(help="MODULE, or FILE.py, whose code may build an artefact's tail or be a detector; repeatable"),
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM; with it the data plane speaks TLS alone")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM, of --tls-certificate")] = None,
    client_trust: Annotated[
        Path | None, typer.Option(help="PEM: authorities of clients, who must show a certificate of theirs then (mTLS)")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="YAML or JSON: who may ask what, by bearer token; none: everybody who gets through")
    ] = None,
    seal_key_file: Annotated[
        Path | None, typer.Option(help="key of sealed frames, as `latentbed seal-key` makes it; else LATENTBED_SEAL_KEY")
    ] = None,
    require_seal: Annotated[bool, typer.Option("--require-seal", help="refuse frames that are not sealed")] = False,
    control_certificate: Annotated[Path | None, typer.Option(help="PEM; with it the control plane speaks TLS alone")] = None,
    control_key: Annotated[Path | None, typer.Option(help="PEM, of --control-certificate")] = None,
    drain_delay_s: Annotated[
        float, typer.Option("--drain-delay", min=0, help="seconds between NOT_SERVING and refusing, for load balancers")
    ] = 0.0,
    detector: Annotated[
        list[str] | None,
        typer.Option(help='what watches queries: a kind, as blacklight, or JSON, as {"kind": "query_rate", "rows_per_s": 30}'),
    ] = None,
    grace_s: Annotated[float, typer.Option(min=0, help="seconds that clients have to half-close at the end")] = 3.0,
) -> None:
    """Serves artefacts' tails over the Open Inference Protocol until SIGTERM."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        default = QueuePolicy(
            timeout_action=timeout_action.value,
            default_timeout_microseconds=default_timeout_microseconds,
            allow_timeout_override=allow_timeout_override,
            max_queue_size=max_queue_size,
        )
        config = EdgeConfig(
            artefact=artefact[0] if artefact else None,
            others=tuple(artefact[1:]) if artefact else (),
            repositories=tuple(repository or ()),
            version_policy=version_policy,
            state=state,
            listen=listen,
            control=control,
            token_file=token_file,
            names=frozenset(filter(None, names.split(","))),
            telemetry=telemetry,
            trace=trace_config(trace_endpoint, trace_rate),
            node=node,
            device=device.value,
            tail=tail.value,
            threads=threads,
            labels_only=outputs is Outputs.LABEL,
            tls=server_tls(tls_certificate, tls_key, client_trust),
            tokens=tokens,
            seal_key=load_key(seal_key_file),
            require_seal=require_seal,
            control_tls=server_tls(control_certificate, control_key),
            trust=tuple(trust or ()),
            detectors=tuple(read_detector(text) for text in detector or ()),
            batching=BatchSettings(
                **vars(default),
                max_batch_size=max_batch_size,
                preferred_batch_size=tuple(map(int, filter(None, preferred_batch_size.split(",")))),
                max_queue_delay_microseconds=max_queue_delay_microseconds,
                preserve_ordering=preserve_ordering,
                priority_levels=priority_levels,
                default_priority_level=default_priority_level or priority_levels,
                priority_queue_policy=dict(policy_of(text, default) for text in priority_queue_policy or ()),
                status=status.value,
            ),
            drain_delay_s=drain_delay_s,
            grace_s=grace_s,
        )
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(config))
    except (LatentbedError, OSError, ValueError) as error:
        print(f"edge server: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
