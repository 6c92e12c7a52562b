"""`python -m adversary`: the man in the middle."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from adversary.node import run
from adversary.relay.interception import interception
from splitcore.errors import LatentbedError
from splitcore.node import new_event_loop
from splitcore.telemetry.tracing import trace_config
from splitcore.wire.certificates import LOCAL_NAMES
from splitcore.wire.channel import split_address
from splitcore.wire.described import described
from splitcore.wire.tls import client_tls, server_tls


def main(
    upstream: Annotated[str, typer.Option(help="the server behind, host:port")],
    state: Annotated[Path, typer.Option(help="folder for the ledger and what else must outlive the process")],
    artefact: Annotated[
        Path | None, typer.Option(help="the split model under attack: shapes, codec, and the head for insiders")
    ] = None,
    model: Annotated[str | None, typer.Option(help="instead: a model of any server of the Open Inference Protocol")] = None,
    model_version: Annotated[str, typer.Option(help="of --model; default: the server's choice")] = "",
    input_name: Annotated[str, typer.Option("--input", help="of --model: the attacked input; default: its only one")] = "",
    output_name: Annotated[str, typer.Option("--output", help="of --model: the output that answers; default: found out")] = "",
    reads: Annotated[str, typer.Option(help="what that output is: auto, scores or labels")] = "auto",
    low: Annotated[float | None, typer.Option(help="of --model: the smallest usual value of its input")] = None,
    high: Annotated[float | None, typer.Option(help="and the largest; default: as a recording has it")] = None,
    std: Annotated[float | None, typer.Option(help="and their standard deviation; default: as a recording has it")] = None,
    endpoint: Annotated[
        Path | None, typer.Option(help="all of that in a file of JSON, with more: batched, max_rows, classes, dialect")
    ] = None,
    listen: Annotated[str, typer.Option(help="where the client connects, host:port; port 0: any free one")] = "127.0.0.1:0",
    control: Annotated[str, typer.Option(help="control API, host:port")] = "127.0.0.1:0",
    token_file: Annotated[Path | None, typer.Option(help="the control API's token; made when missing. STATE/token")] = None,
    names: Annotated[str, typer.Option(help="more host names that the control API answers to, with commas")] = "",
    telemetry: Annotated[str | None, typer.Option(help="the collector, tcp://host:port")] = None,
    trace_endpoint: Annotated[
        str | None,
        typer.Option(help="OTLP/HTTP collector, http://host:4318; none: off", envvar="LATENTBED_TRACE_ENDPOINT"),
    ] = None,
    node: Annotated[str, typer.Option(help="this node's name in telemetry")] = "adversary",
    allow: Annotated[list[str] | None, typer.Option(help="a host outside private ranges that is yours to attack")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="data sets, for insiders", envvar="LATENTBED_DATA")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM: shown to clients, who then speak TLS with us")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM, of --tls-certificate")] = None,
    ca_certificate: Annotated[
        Path | None, typer.Option(help="PEM: instead, an authority that makes one for each name that clients ask for")
    ] = None,
    ca_key: Annotated[Path | None, typer.Option(help="PEM, of --ca-certificate")] = None,
    tls_names: Annotated[str, typer.Option(help="of the one for clients that ask for no name, with commas")] = ",".join(
        LOCAL_NAMES
    ),
    upstream_trust: Annotated[
        Path | None, typer.Option(help="PEM: authorities of UPSTREAM; with it queries go over TLS")
    ] = None,
    upstream_certificate: Annotated[
        Path | None, typer.Option(help="PEM: for an upstream that wants one, a stolen one say")
    ] = None,
    upstream_key: Annotated[Path | None, typer.Option(help="PEM, of --upstream-certificate")] = None,
    upstream_name: Annotated[str | None, typer.Option(help="the name in the upstream's certificate; default: its host")] = None,
    control_certificate: Annotated[Path | None, typer.Option(help="PEM; with it the control API speaks TLS alone")] = None,
    control_key: Annotated[Path | None, typer.Option(help="PEM, of --control-certificate")] = None,
    trust: Annotated[
        list[str] | None, typer.Option(help="MODULE, or FILE.py, whose attacks `module:Class` may run here; repeatable")
    ] = None,
) -> None:
    """Relays every gRPC method between a client and UPSTREAM, and does to the frames what its behaviour says."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    said = {
        "model": model, "version": model_version, "input": input_name, "output": output_name,
        "reads": "" if reads == "auto" else reads, "low": low, "high": high, "std": std,
    }  # fmt: skip
    options = {key: value for key, value in said.items() if value not in (None, "")}
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            runner.run(
                run(
                    artefact=artefact, endpoint=described(endpoint, options), listen=listen, upstream=upstream,
                    control=control, state=state,
                    token_file=token_file or state / "token", names=frozenset(filter(None, names.split(","))),
                    telemetry=telemetry, trace=trace_config(trace_endpoint), node=node,
                    allow=frozenset(allow or ()), data_dir=data_dir, trust=frozenset(trust or ()),
                    upstream_tls=client_tls(upstream_trust, upstream_certificate, upstream_key, upstream_name),
                    control_tls=server_tls(control_certificate, control_key),
                    intercepting=interception(
                        tls_certificate, tls_key, ca_certificate, ca_key,
                        [*filter(None, tls_names.split(",")), split_address(upstream)[0]],
                    ),
                )
            )  # fmt: skip
        except (LatentbedError, OSError, ValueError) as error:
            sys.exit(f"adversary: {error}")


if __name__ == "__main__":
    typer.run(main)
